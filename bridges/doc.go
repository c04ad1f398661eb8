// Package bridges connects foreign registries with the mesh: it declares what a
// registry's bridge must do, and keeps each bridge running.
//
// A Source reads one registry; New and Run supervise it: back-off, the last
// complete read on disk, the state that operators see. What comes out goes to a
// Sink, which is the catalog. Nothing here deletes an endpoint that a source did
// not read as gone.
//
// A Supervisor's methods may be called from any goroutine; it calls its Sink from
// the goroutine of Run alone, so a Sink needs no lock against it.
//
// Format and rate of the files, and why a lost connection costs a whole read:
// RATIONALE.md.
package bridges
