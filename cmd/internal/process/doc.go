// Package process is the shell that every daemon runs in: flags, the strict
// configuration file, logging, signals, limits of the container, the operations
// port (/metrics, /readyz, /debug/pprof) and the one sentence on stderr when
// something is wrong.
//
// cmd/meshserver and cmd/sidecar describe themselves as a Daemon and call its
// Main; Main is called once a process, from the main goroutine. Shell, Ops and
// the decoders may be used from any goroutine. Nothing here is imported from
// outside cmd.
//
// Why not the runtime's own GOMAXPROCS, and why an own YAML walk: RATIONALE.md.
package process
