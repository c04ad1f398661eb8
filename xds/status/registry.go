// Package status answers what each xDS stream acknowledged or refused.
//
// It keeps no copy of that: xds/server attaches itself as a Source and is asked when
// somebody wants to know; xds/manage reads Clients, Applied and Refusals, and CSDS
// serves the same by Envoy's client status discovery. Only refusals are remembered
// here, the newest of them, so that one can be explained after its stream is gone.
// All methods may be called from any goroutine.
//
// Why on demand: xds/RATIONALE.md, "Status is derived".
package status

import (
	"cmp"
	"iter"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// keptRefusals is how many refusals are remembered: some screens full. The oldest go
// first.
const keptRefusals = 512

// Source knows the open streams. Its methods may be called from any goroutine.
type Source interface {
	// Clients describes the streams whose node match accepts, one after the other
	// as the loop asks for them, in no order. Items are filled in if detail is set.
	Clients(match func(*corev3.Node) bool, detail bool) iter.Seq[Client]
	// Rollout describes, for every origin that only accepts, how each node that
	// subscribes to a resource of that origin stands; the key of the inner map is
	// the node's id.
	Rollout(only func(origin string) bool) map[string]map[string]Stage
}

// Stage is how far a rule got on a node.
type Stage uint8

// The stages, the worst last: a node with several streams or resources counts as
// its worst.
const (
	Applied Stage = iota
	Waiting       // not sent, or not acknowledged yet
	Refused
)

// Progress says on how many nodes a rule is in force.
type Progress struct {
	Applied int      // nodes that acknowledged every resource the rule shaped
	Total   int      // nodes that subscribe to one
	Waiting []string // ids of nodes that did not answer yet, sorted
	Refused []string // ids of nodes that refused a resource, sorted
}

// Client is one open stream, as it was when asked.
type Client struct {
	Node      *corev3.Node // as sent by the client; must not be modified
	Address   string       // remote address
	Scope     string       // resource.Feed.Scope
	Delta     bool         // incremental protocol
	Connected time.Time
	Types     []TypeState // subscribed types, in the order in which they are sent
}

// TypeState is a client's state for one resource type.
type TypeState struct {
	Type     resource.Type
	Wildcard bool
	// Held is the number of resources that were sent to the client, or that it had
	// from before.
	Held int
	// Waiting is the number of resources whose newest version it has not
	// acknowledged.
	Waiting int
	// Version is a hash over names and versions of what was sent; two clients of a
	// scope that hold the same have the same. Acked is the same of what was
	// acknowledged; "" before the first acknowledgement.
	Version, Acked string
	LastAck        time.Time // zero before the first
	Refusals       []Refusal // resources that the client refuses at present
	Items          []Item    // sorted by name; only in detail
}

// Item is one resource that a client subscribes to.
type Item struct {
	Name  string
	State State
	// Sent is the version that the client holds or is about to acknowledge.
	Sent string
	// Current is the newest resource; nil if there is none of that name.
	Current *resource.Resource
	// Refusal is set in state Nacked.
	Refusal *Refusal
}

// State is how a client stands to one resource.
type State uint8

// The states.
const (
	Requested State = iota // asked for, not sent yet
	Sent                   // sent, not answered
	Acked                  // holds the newest version
	Stale                  // holds an older version
	Nacked                 // refused the newest version
	Missing                // was told that it does not exist
)

// Refusal is a NACK of one resource.
type Refusal struct {
	At      time.Time
	NodeID  string
	Scope   string
	Type    resource.Type
	Name    string
	Version string
	Origins []string // rules that shaped the resource
	Detail  string   // the client's error text
	// Quarantined: new streams of the scope get the last good version instead.
	Quarantined bool
}

// Registry is where sources and readers meet. Make one with NewRegistry.
type Registry struct {
	mu       sync.Mutex
	sources  []Source
	refusals []Refusal // a ring once it is full
	next     int       // index of the oldest in a full ring
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{} }

// Attach adds a source for good.
func (r *Registry) Attach(s Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources = append(slices.Clip(r.sources), s)
}

// Record remembers a refusal.
func (r *Registry) Record(f Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refusals) < keptRefusals {
		r.refusals = append(r.refusals, f)
		return
	}
	r.refusals[r.next] = f
	r.next = (r.next + 1) % keptRefusals
}

// Refusals returns what is remembered, the newest first.
func (r *Registry) Refusals() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Concat(r.refusals[r.next:], r.refusals[:r.next])
	slices.Reverse(all)
	return all
}

func (r *Registry) attached() []Source {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sources
}

// Clients describes every open stream whose node match accepts (nil: all), sorted by
// node id and the time of connection. With detail it lists every resource of each.
func (r *Registry) Clients(match func(*corev3.Node) bool, detail bool) []Client {
	if match == nil {
		match = func(*corev3.Node) bool { return true }
	}
	var all []Client
	for _, s := range r.attached() {
		all = slices.AppendSeq(all, s.Clients(match, detail))
	}
	slices.SortFunc(all, func(a, b Client) int {
		return cmp.Or(cmp.Compare(a.Node.GetId(), b.Node.GetId()), a.Connected.Compare(b.Connected))
	})
	return all
}

// Applied says for each of the origins (none: for all that any resource names) on
// how many nodes it is in force. A named origin that no subscribed resource carries
// has a zero Progress.
func (r *Registry) Applied(origins ...string) map[string]Progress {
	only := func(o string) bool { return len(origins) == 0 || slices.Contains(origins, o) }
	worst := map[string]map[string]Stage{}
	for _, s := range r.attached() {
		for origin, nodes := range s.Rollout(only) {
			if worst[origin] == nil {
				worst[origin] = map[string]Stage{}
			}
			for id, stage := range nodes {
				worst[origin][id] = max(worst[origin][id], stage)
			}
		}
	}
	all := map[string]Progress{}
	for _, o := range origins {
		all[o] = Progress{}
	}
	for origin, nodes := range worst {
		all[origin] = count(nodes)
	}
	return all
}

func count(nodes map[string]Stage) Progress {
	p := Progress{Total: len(nodes)}
	for id, stage := range nodes {
		switch stage {
		case Applied:
			p.Applied++
		case Refused:
			p.Refused = append(p.Refused, id)
		default:
			p.Waiting = append(p.Waiting, id)
		}
	}
	slices.Sort(p.Waiting)
	slices.Sort(p.Refused)
	return p
}
