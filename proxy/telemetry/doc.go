// Package telemetry counts and logs requests: the metrics of SPEC 4.10 with
// exactly those keys, histograms beside them, and the access log.
//
// Counters are sharded and cache-line padded; whoever counts passes the shard of
// its connection. They are resolved when listeners and clusters are made, never
// on the request path.
package telemetry
