// Package conformance holds one table of requests that an Isthmus sidecar and an
// Envoy, beside the same MeshServer and under the same rules, must answer alike.
//
// testdata/rules.yaml has the rules, table_integration_test.go the requests, each
// with the fields of docs/rules.md that it covers and the answer that is right.
// The test fails when the two proxies differ, when an answer is not the expected
// one, or when an enforced field is covered by no row.
//
// Two differences are known and let through: the text of a failure in which Envoy
// says that it retried, and the Location header that Envoy adds to direct
// responses of status 201 and 3xx, which no row asks for.
package conformance
