// Package wire speaks Consul's HTTP API: it asks, checks the bytes that come
// back and decodes them, and says in five kinds what went wrong.
//
// bridges/consul/watch asks through Client; Decode functions are pure. A value
// returned is the caller's. Clients may be used from any goroutine.
//
// Why answers are decoded here and not into the api package's types:
// ../RATIONALE.md, "One bad instance".
package wire
