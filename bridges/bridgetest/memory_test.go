package bridgetest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// memory is the smallest registry: instances in a map, in this process. faults
// make its source break the contract in one way each.
type memory struct {
	faults faults

	mu        sync.Mutex // guards the fields below
	instances map[string]map[netip.AddrPort]string
	broken    map[string]map[netip.AddrPort]bool // the zero address stands for what never was an instance
	changed   map[string]bool
	wake      chan struct{}
}

type faults struct {
	emptyFirst, deltaFirst, liveFirst, late, forgetful bool
}

func newMemory(f faults) *memory {
	return &memory{
		faults: f, instances: map[string]map[netip.AddrPort]string{}, broken: map[string]map[netip.AddrPort]bool{}, changed: map[string]bool{}, wake: make(chan struct{}, 1),
	}
}

func (m *memory) Start(testing.TB) Registry                { return newMemory(m.faults) }
func (m *memory) Proxy(t testing.TB, _ string) Proxy       { t.Fatal("there is no network"); return nil }
func (m *memory) Addr() string                             { return "" }
func (m *memory) Kill(testing.TB)                          {}
func (m *memory) Restart(testing.TB)                       {}
func (m *memory) Durable() bool                            { return true }
func (m *memory) Source(testing.TB, string) bridges.Source { return memorySource{m} }

func (m *memory) change(service string, do func(map[netip.AddrPort]string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.instances[service] == nil {
		m.instances[service], m.broken[service] = map[netip.AddrPort]string{}, map[netip.AddrPort]bool{}
	}
	do(m.instances[service])
	m.changed[service] = true
	select {
	case m.wake <- struct{}{}:
	default: // a wake-up is pending
	}
}

func (m *memory) Put(_ testing.TB, i Instance) {
	m.change(i.Service, func(all map[netip.AddrPort]string) {
		all[i.Address] = i.Version
		delete(m.broken[i.Service], i.Address)
	})
}

func (m *memory) PutAll(t testing.TB, all []Instance) {
	for _, i := range all {
		m.Put(t, i)
	}
}

func (m *memory) Remove(_ testing.TB, i Instance) {
	m.change(i.Service, func(all map[netip.AddrPort]string) {
		delete(all, i.Address)
		delete(m.broken[i.Service], i.Address)
	})
}

func (m *memory) Break(_ testing.TB, i Instance) string {
	m.change(i.Service, func(all map[netip.AddrPort]string) {
		m.broken[i.Service][i.Address] = true
		if m.faults.forgetful {
			delete(all, i.Address)
		}
	})
	return "broken thing"
}

func (m *memory) PutBroken(_ testing.TB, service string) string {
	m.change(service, func(map[netip.AddrPort]string) { m.broken[service][netip.AddrPort{}] = true })
	return "broken thing"
}

func (m *memory) Expire(testing.TB) {
	for _, service := range slices.Collect(maps.Keys(m.instances)) {
		m.change(service, func(all map[netip.AddrPort]string) { clear(all) })
	}
}

// read returns what changed, or all.
func (m *memory) read(all bool) (u model.Update, skipped []model.Rejected) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u.Full = all
	for _, name := range slices.Sorted(maps.Keys(m.instances)) {
		if len(m.broken[name]) > 0 {
			skipped = append(skipped, model.Rejected{Where: name, Reason: "broken thing"})
		}
		if !all && !m.changed[name] {
			continue
		}
		s := &model.Service{Host: model.Host(name), Name: name, Namespace: "default", Ports: []model.Port{{Number: 80, Protocol: model.HTTP}}}
		for _, address := range slices.SortedFunc(maps.Keys(m.instances[name]), netip.AddrPort.Compare) {
			s.Endpoints = append(s.Endpoints, model.Endpoint{
				Address: address, Port: 80, Labels: model.NewLabels(map[string]string{"version": m.instances[name][address]}),
			})
		}
		u.Services = append(u.Services, s)
	}
	clear(m.changed)
	return u, skipped
}

type memorySource struct{ m *memory }

func (memorySource) Name() string { return "memory" }
func (memorySource) Kind() string { return "memory" }

func (s memorySource) Run(ctx context.Context, sink bridges.Sink) error {
	f := s.m.faults
	if f.liveFirst {
		sink.Report(model.SourceStatus{Phase: model.Live})
	}
	if f.deltaFirst {
		sink.Apply(model.Update{Removed: []model.Host{"x"}})
	}
	if f.emptyFirst {
		sink.Apply(model.Update{Full: true})
	}
	for full := true; ; full = false {
		u, skipped := s.m.read(full)
		if full || len(u.Services) > 0 {
			sink.Apply(u)
		}
		sink.Report(model.SourceStatus{Phase: model.Live, Skipped: skipped})
		select {
		case <-ctx.Done():
			if f.late {
				return fmt.Errorf("stopped: %w", ctx.Err())
			}
			return nil
		case <-s.m.wake:
		}
	}
}
