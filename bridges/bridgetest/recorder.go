package bridgetest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// patience bounds every wait for something that must come. It is no measure of
// speed: machines that run tests are slow.
const patience = 30 * time.Second

// recorder is the mesh's end: a Sink that holds what it was told, checks every
// step, and lets the test wait for a state.
type recorder struct {
	t testing.TB

	mu       sync.Mutex // guards the fields below
	services map[model.Host]*model.Service
	status   model.SourceStatus
	phases   []model.SourcePhase
	updates  []model.Update
	pinned   map[Instance]bool
	lost     map[Instance]bool // reported already
	change   chan struct{}     // closed and replaced at every call
}

func newRecorder(t testing.TB) *recorder {
	return &recorder{
		t: t, services: map[model.Host]*model.Service{}, pinned: map[Instance]bool{}, lost: map[Instance]bool{}, change: make(chan struct{}),
	}
}

// Apply implements bridges.Sink.
func (r *recorder) Apply(u model.Update) {
	for _, s := range u.Services {
		for _, complaint := range wellFormed(s) {
			r.t.Errorf("service %s: %s", s.Host, complaint)
		}
	}
	r.mu.Lock()
	if u.Full {
		clear(r.services)
	}
	for _, s := range u.Services {
		r.services[s.Host] = s
	}
	for _, host := range u.Removed {
		delete(r.services, host)
	}
	r.updates = append(r.updates, u)
	var lost []string
	for i := range r.pinned {
		if !r.has(i) && !r.lost[i] {
			r.lost[i] = true
			lost = append(lost, fmt.Sprint(i))
		}
	}
	r.signal()
	r.mu.Unlock()
	if len(lost) > 0 {
		slices.Sort(lost)
		r.t.Errorf("update %s lost %d endpoints that the registry never took away, the first is %s", describe(u), len(lost), lost[0])
	}
}

// Report implements bridges.Sink.
func (r *recorder) Report(status model.SourceStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.phases) == 0 || r.phases[len(r.phases)-1] != status.Phase {
		r.phases = append(r.phases, status.Phase)
	}
	r.status = status
	r.signal()
}

// signal wakes whoever waits; called with mu held.
func (r *recorder) signal() {
	close(r.change)
	r.change = make(chan struct{})
}

// has reports whether i is held as it was put; called with mu held.
func (r *recorder) has(i Instance) bool {
	s := r.services[model.Host(i.Service)]
	if s == nil {
		return false
	}
	for _, e := range s.Endpoints {
		if version, _ := e.Labels.Get("version"); e.Address == i.Address && version == i.Version {
			return true
		}
	}
	return false
}

// hasAddress reports whether anything is held at i's address; called with mu held.
func (r *recorder) hasAddress(i Instance) bool {
	s := r.services[model.Host(i.Service)]
	return s != nil && slices.ContainsFunc(s.Endpoints, func(e model.Endpoint) bool { return e.Address == i.Address })
}

// pin says that the registry holds all of these from now on: any update after
// which one is missing is an error. unpin takes it back.
func (r *recorder) pin(all ...Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range all {
		r.pinned[i] = true
	}
}

func (r *recorder) unpin(all ...Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range all {
		delete(r.pinned, i)
	}
}

// await waits until ready, which is called with mu held, and fails the test when
// that takes longer than patience.
func (r *recorder) await(t testing.TB, what string, ready func() bool) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		r.mu.Lock()
		ok, change := ready(), r.change
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-limit.C:
			t.Fatalf("%s: not within %v; %s", what, patience, r.summary())
		}
	}
}

func (r *recorder) awaitPhase(t testing.TB, phase model.SourcePhase) {
	t.Helper()
	r.await(t, "phase "+phase.String(), func() bool { return r.status.Phase == phase && r.status.Source != "" })
}

func (r *recorder) awaitAll(t testing.TB, all ...Instance) {
	t.Helper()
	missing := func() []Instance {
		return slices.DeleteFunc(slices.Clone(all), r.has)
	}
	r.await(t, fmt.Sprintf("%d instances", len(all)), func() bool { return len(missing()) == 0 })
}

func (r *recorder) awaitGone(t testing.TB, all ...Instance) {
	t.Helper()
	r.await(t, fmt.Sprintf("%d instances gone", len(all)), func() bool { return !slices.ContainsFunc(all, r.hasAddress) })
}

// summary describes the state for a failure.
func (r *recorder) summary() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	endpoints := 0
	for _, s := range r.services {
		endpoints += len(s.Endpoints)
	}
	last := "none"
	if n := len(r.updates); n > 0 {
		last = describe(r.updates[n-1])
	}
	return fmt.Sprintf("phase %v, err %q, skipped %v, %d services, %d endpoints, %d updates, the last %s",
		r.status.Phase, r.status.Err, r.status.Skipped, len(r.services), endpoints, len(r.updates), last)
}

// count returns the number of updates so far.
func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.updates)
}

// since returns the updates after the first n.
func (r *recorder) since(n int) []model.Update {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.updates[n:])
}

func (r *recorder) last() model.SourceStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

func describe(u model.Update) string {
	step := "delta"
	if u.Full {
		step = "full"
	}
	names := make([]string, 0, len(u.Services))
	for _, s := range u.Services[:min(len(u.Services), 5)] {
		names = append(names, fmt.Sprintf("%s(%d)", s.Host, len(s.Endpoints)))
	}
	return fmt.Sprintf("%s of %d services [%s], %d removed", step, len(u.Services), strings.Join(names, " "), len(u.Removed))
}

// maxLabelBytes is what one endpoint's labels may take.
const maxLabelBytes = 1024

// wellFormed returns what is wrong with a service, by the contract of model.
func wellFormed(s *model.Service) []string {
	var wrong []string
	if host, err := model.ParseHost(string(s.Host)); err != nil || host != s.Host {
		wrong = append(wrong, fmt.Sprintf("host is not folded: %v", err))
	}
	if s.Namespace == "" {
		wrong = append(wrong, "no namespace")
	}
	ports := map[uint16]bool{}
	for _, p := range s.Ports {
		ports[p.Number] = true
	}
	if len(ports) != len(s.Ports) || !slices.IsSortedFunc(s.Ports, func(a, b model.Port) int { return cmp.Compare(a.Number, b.Number) }) {
		wrong = append(wrong, fmt.Sprintf("ports do not ascend: %v", slices.Collect(maps.Keys(ports))))
	}
	type place struct {
		address netip.AddrPort
		port    uint16
	}
	seen := map[place]bool{}
	for i, e := range s.Endpoints {
		switch at := (place{e.Address, e.Port}); {
		case !e.Address.IsValid() || e.Address.Port() == 0:
			wrong = append(wrong, fmt.Sprintf("endpoints[%d] has address %v", i, e.Address))
		case seen[at]:
			wrong = append(wrong, fmt.Sprintf("endpoints[%d] %v stands twice at port %d", i, e.Address, e.Port))
		case !ports[e.Port]:
			wrong = append(wrong, fmt.Sprintf("endpoints[%d] is of port %d, which the service lacks", i, e.Port))
		case e.Labels.Bytes() > maxLabelBytes:
			wrong = append(wrong, fmt.Sprintf("endpoints[%d] has %d bytes of labels", i, e.Labels.Bytes()))
		case e.Workload != "" || len(e.Registries) > 0:
			wrong = append(wrong, fmt.Sprintf("endpoints[%d] has fields that only the catalog sets", i))
		default:
			seen[at] = true
		}
	}
	if !slices.IsSortedFunc(s.Endpoints, func(a, b model.Endpoint) int { return a.Address.Compare(b.Address) }) {
		wrong = append(wrong, "endpoints do not ascend")
	}
	return wrong
}
