// Package watch follows one Consul through blocking queries and reports what
// changes: one query on the list of services of each data centre, one on the
// health of each service.
//
// bridges/consul wires it to wire.Client and a sink; Rules.part turns answers
// into endpoints and is pure. One goroutine owns all state of a Run, so nothing
// here is locked; Run may be called again after it returned, and then knows what
// it knew. Follower's other methods may be called from any goroutine.
//
// What is asked when, what deletes, what freezes: ../RATIONALE.md.
package watch
