// Package conformance holds one table of requests that an Isthmus sidecar and an
// Envoy, beside the same MeshServer and under the same rules, must answer alike.
//
// testdata/rules.yaml has the rules, table_integration_test.go the requests, each
// with the fields of docs/rules.md that it covers and the answer that is right.
// The test fails when the two proxies differ, when an answer is not the expected
// one, or when an enforced field is covered by no row.
package conformance
