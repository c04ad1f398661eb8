// Package builtin is the registry that comes with the mesh: a sidecar, meshctl or
// the Mesh API registers a workload under a lease and renews it; a workload whose
// lease ends is gone, one that leaves is gone at once.
//
// New makes a Registry, which is a bridges.Source for bridges.New and takes
// Register, Renew, Leave and List from any goroutine, also before and after Run.
// Workloads handed in and out are never modified.
//
// Where leases survive a restart and why renewals are not written: RATIONALE.md.
package builtin

import (
	"container/heap"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Kind is the sort of registry in reports.
const Kind = "builtin"

// Errors that callers branch on.
var (
	// ErrUnknownLease: the lease ended, was replaced or never was. Register again.
	ErrUnknownLease = errors.New("unknown lease")
	// ErrFull: Config.MaxWorkloads are registered.
	ErrFull = errors.New("the registry is full")
	// ErrInvalid: the workload or its lease time is not acceptable; the error
	// that wraps it names every mistake.
	ErrInvalid = errors.New("invalid workload")
)

// Config is what New needs. All fields have defaults.
type Config struct {
	// Name is the source's in the mesh; empty means "builtin".
	Name string
	// Dir is the folder for the leases file; it must exist when Run starts.
	// Empty keeps leases in memory only: a restart then forgets them.
	Dir string
	// MaxWorkloads bounds what is registered at once; 0 means 100,000.
	MaxWorkloads int
	// Log nil discards; Registerer nil registers nothing.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

const defaultMaxWorkloads = 100_000

// Registry holds the leases. Make one with New.
type Registry struct {
	cfg     Config
	metrics *metrics
	journal *journal      // used by Run only; nil without Config.Dir
	wake    chan struct{} // capacity 1: something is dirty, or the next end changed

	mu      sync.Mutex // guards the fields below
	running bool
	seq     uint64
	byName  map[string]*lease
	byID    map[string]*lease
	byHost  map[model.Host]map[*lease]struct{}
	byPlace map[netip.AddrPort]map[*lease]struct{} // by where endpoints of its inbound ports stand
	ends    endings
	dirty   changes
}

// lease is one registered workload. All but end and place are immutable; a
// workload that registers again gets a new one.
type lease struct {
	id       string
	seq      uint64 // order of registration
	ttl      time.Duration
	workload *model.Workload
	hosts    []model.Host // of its inbound ports, each once

	end   time.Time
	place int // in Registry.ends
}

// changes is what Run has not yet reported.
type changes struct {
	hosts  map[model.Host]struct{}
	names  map[string]struct{} // workloads
	leases map[string]struct{} // names of workloads whose lease the file does not have
}

func newChanges() changes {
	return changes{hosts: map[model.Host]struct{}{}, names: map[string]struct{}{}, leases: map[string]struct{}{}}
}

// Lease is a registration as List shows it. The id is not in it: whoever knows
// it may end the lease.
type Lease struct {
	Workload *model.Workload
	TTL      time.Duration
	Ends     time.Time
}

// New checks cfg and makes a registry; it reads nothing.
func New(cfg Config) (*Registry, error) {
	if cfg.Name == "" {
		cfg.Name = Kind
	}
	if cfg.MaxWorkloads == 0 {
		cfg.MaxWorkloads = defaultMaxWorkloads
	}
	if cfg.MaxWorkloads < 0 {
		return nil, fmt.Errorf("builtin %s: maxWorkloads: %d, want at least 1", cfg.Name, cfg.MaxWorkloads)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{
		cfg: cfg, wake: make(chan struct{}, 1),
		byName: map[string]*lease{}, byID: map[string]*lease{}, byHost: map[model.Host]map[*lease]struct{}{},
		byPlace: map[netip.AddrPort]map[*lease]struct{}{},
		dirty:   newChanges(),
	}
	if cfg.Dir != "" {
		r.journal = newJournal(cfg.Dir, cfg.Name)
	}
	var err error
	r.metrics, err = newMetrics(cfg.Name, cfg.Registerer)
	return r, err
}

var _ bridges.Source = (*Registry)(nil)

// Name implements bridges.Source.
func (r *Registry) Name() string { return r.cfg.Name }

// Kind implements bridges.Source.
func (r *Registry) Kind() string { return Kind }

// Register checks w and gives it a lease of ttl, 1 s to 1 h. A workload of the
// same name is replaced and its lease ends; to register the same again changes
// nothing that others see. Errors wrap ErrInvalid or ErrFull.
func (r *Registry) Register(ctx context.Context, w model.Workload, ttl time.Duration) (id string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	w.Inbound = slices.Clone(w.Inbound) // check normalises it
	hosts, err := check(&w, ttl)
	if err != nil {
		return "", err
	}
	l := &lease{id: rand.Text(), ttl: ttl, workload: &w, hosts: hosts}

	r.mu.Lock()
	old := r.byName[w.Name]
	if old == nil && len(r.byName) >= r.cfg.MaxWorkloads {
		r.mu.Unlock()
		return "", fmt.Errorf("register %s: %w: %d workloads", w.Name, ErrFull, r.cfg.MaxWorkloads)
	}
	r.seq++
	l.seq, l.end = r.seq, time.Now().Add(ttl)
	if old != nil && sameWorkload(old.workload, l.workload) {
		l.seq, l.workload = old.seq, old.workload
		r.remove(old)
		r.add(l)
		r.dirty.leases[w.Name] = struct{}{}
	} else {
		if old != nil {
			r.remove(old)
			r.mark(old)
		}
		r.add(l)
		r.mark(l)
	}
	n := len(r.byName)
	r.mu.Unlock()

	r.metrics.workloads.Set(float64(n))
	r.poke()
	return l.id, nil
}

// Renew gives the lease its whole time again. The error wraps ErrUnknownLease
// when there is no such lease.
func (r *Registry) Renew(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l, now := r.byID[id], time.Now()
	if l == nil || !now.Before(l.end) {
		return fmt.Errorf("renew: %w", ErrUnknownLease)
	}
	l.end = now.Add(l.ttl)
	heap.Fix(&r.ends, l.place)
	return nil
}

// Leave ends the lease and removes its workload at once. The error wraps
// ErrUnknownLease when there is no such lease.
func (r *Registry) Leave(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	l := r.byID[id]
	if l == nil {
		r.mu.Unlock()
		return fmt.Errorf("leave: %w", ErrUnknownLease)
	}
	r.remove(l)
	r.mark(l)
	n := len(r.byName)
	r.mu.Unlock()

	r.metrics.ended.WithLabelValues(left).Inc()
	r.metrics.workloads.Set(float64(n))
	r.poke()
	return nil
}

// List returns the leases that have not ended, by name of workload.
func (r *Registry) List() []Lease {
	now := time.Now()
	r.mu.Lock()
	out := make([]Lease, 0, len(r.byName))
	for l := range maps.Values(r.byName) {
		if now.Before(l.end) {
			out = append(out, Lease{Workload: l.workload, TTL: l.ttl, Ends: l.end})
		}
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b Lease) int { return strings.Compare(a.Workload.Name, b.Workload.Name) })
	return out
}

func (r *Registry) poke() {
	select {
	case r.wake <- struct{}{}:
	default: // a wake-up is pending; Run will find what is dirty
	}
}

// add and remove keep the maps and the heap; r.mu is held.
func (r *Registry) add(l *lease) {
	r.byName[l.workload.Name], r.byID[l.id] = l, l
	for _, h := range l.hosts {
		if r.byHost[h] == nil {
			r.byHost[h] = map[*lease]struct{}{}
		}
		r.byHost[h][l] = struct{}{}
	}
	for i := range l.workload.Inbound {
		at := placeOf(l.workload, i)
		if r.byPlace[at] == nil {
			r.byPlace[at] = map[*lease]struct{}{}
		}
		r.byPlace[at][l] = struct{}{}
	}
	heap.Push(&r.ends, l)
}

func (r *Registry) remove(l *lease) {
	delete(r.byName, l.workload.Name)
	delete(r.byID, l.id)
	for _, h := range l.hosts {
		if delete(r.byHost[h], l); len(r.byHost[h]) == 0 {
			delete(r.byHost, h)
		}
	}
	for i := range l.workload.Inbound {
		at := placeOf(l.workload, i)
		if delete(r.byPlace[at], l); len(r.byPlace[at]) == 0 {
			delete(r.byPlace, at)
		}
	}
	heap.Remove(&r.ends, l.place)
}

// mark notes that what others see of l changed, and what they see of those whose
// places it took or gave back; r.mu is held.
func (r *Registry) mark(l *lease) {
	r.dirty.names[l.workload.Name] = struct{}{}
	r.dirty.leases[l.workload.Name] = struct{}{}
	for _, h := range l.hosts {
		r.dirty.hosts[h] = struct{}{}
	}
	for i := range l.workload.Inbound {
		for other := range r.byPlace[placeOf(l.workload, i)] {
			r.dirty.names[other.workload.Name] = struct{}{}
		}
	}
}

// expire removes what has ended by now and returns how many; r.mu is held.
func (r *Registry) expire(now time.Time) int {
	n := 0
	for len(r.ends) > 0 && !now.Before(r.ends[0].end) {
		l := r.ends[0]
		r.remove(l)
		r.mark(l)
		n++
	}
	return n
}

// endings is a heap of leases, the first to end on top.
type endings []*lease

func (e endings) Len() int           { return len(e) }
func (e endings) Less(i, j int) bool { return e[i].end.Before(e[j].end) }

func (e endings) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].place, e[j].place = i, j
}

// Push is for container/heap.
func (e *endings) Push(x any) {
	l := x.(*lease)
	l.place = len(*e)
	*e = append(*e, l)
}

// Pop is for container/heap.
func (e *endings) Pop() any {
	old := *e
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*e = old[:len(old)-1]
	return l
}
