package model

import "time"

// Update is one step of a source: what changed since its last one. A Service in
// it is always complete, endpoints included; it replaces what the source held
// under that host.
type Update struct {
	// Full says that the update names all that the source holds, after a
	// complete authoritative read: what it does not name is gone. Without
	// Full only Removed and RemovedWorkloads delete.
	Full             bool
	Services         []*Service
	Removed          []Host
	Workloads        []*Workload
	RemovedWorkloads []string
}

// SourcePhase says how far what a source reports can be trusted.
type SourcePhase uint8

// Phases of a source.
const (
	Syncing SourcePhase = iota // no complete read yet; nothing is known
	Live                       // complete, and changes arrive
	Stale                      // last complete read is served; the registry does not answer
)

var phaseNames = [...]string{"syncing", "live", "stale"}

// String returns the lower-case name.
func (p SourcePhase) String() string { return phaseNames[p] }

// Rejected is one thing of a registry that could not be understood. It is left
// out; its neighbours live.
type Rejected struct{ Where, Reason string }

// SourceStatus is the state of one source, shown to operators.
type SourceStatus struct {
	Source  string // "zk-main"
	Kind    string // "zookeeper"
	Phase   SourcePhase
	Since   time.Time // when Phase began
	Read    time.Time // end of the last complete read; zero means never
	Err     string    // why it is not Live; empty when it is
	Skipped []Rejected
}
