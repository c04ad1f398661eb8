package bridgetest

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// scenario is one thing that happens to registries.
type scenario struct {
	name    string
	network bool // needs a network between source and registry
	play    func(*stage)
}

// Run plays every scenario against registries of h.
func Run(t *testing.T, h Harness) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			registry := h.Start(t)
			if s.network && registry.Addr() == "" {
				t.Skip("the registry is in this process: nothing between it and the source can fail")
			}
			st := &stage{T: t, Registry: registry, dir: t.TempDir()}
			via := ""
			if registry.Addr() != "" {
				st.proxy = h.Proxy(t, registry.Addr())
				via = st.proxy.Addr()
			}
			st.source = func() bridges.Source { return registry.Source(t, via) }
			s.play(st)
			st.stop()
		})
	}
}

// stage is where a scenario is played: a registry, the way to it, and a
// supervised source with the mesh's end.
type stage struct {
	*testing.T
	Registry
	proxy  Proxy
	source func() bridges.Source
	dir    string
	hurry  bool // a source that ended is run again at once

	mesh  *recorder
	check *checked
	end   context.CancelFunc
	ended chan error
}

// start runs a new source under supervision, with a new mesh that knows nothing.
func (s *stage) start() {
	s.Helper()
	s.mesh = newRecorder(s)
	s.check = &checked{Source: s.source(), t: s}
	cfg := bridges.Config{
		Source: s.check, Sink: s.mesh, Dir: s.dir,
		RetryLow: 20 * time.Millisecond, RetryHigh: 500 * time.Millisecond, SaveEvery: 50 * time.Millisecond,
	}
	if s.hurry {
		cfg.RetryLow, cfg.RetryHigh = time.Millisecond, 2*time.Millisecond
	}
	supervisor, err := bridges.New(cfg)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.Context())
	ended := make(chan error, 1)
	s.end, s.ended = cancel, ended
	s.Cleanup(s.stop) // when a scenario ends early
	go func() { ended <- supervisor.Run(ctx) }()
}

// stop ends the source in an orderly way; it does nothing when none runs.
func (s *stage) stop() {
	s.Helper()
	if s.end == nil {
		return
	}
	s.end()
	s.end = nil
	select {
	case err := <-s.ended:
		if err != nil {
			s.Errorf("supervisor ended with %v", err)
		}
	case <-time.After(patience):
		s.Fatalf("the source runs on %v after its context ended", patience)
	}
}

// live starts a source and waits until all of these are in the mesh and pinned.
func (s *stage) live(all ...Instance) {
	s.Helper()
	s.start()
	s.mesh.pin(all...)
	s.mesh.awaitPhase(s, model.Live)
	s.mesh.awaitAll(s, all...)
}

// alive proves that changes arrive: an instance comes, changes and goes.
func (s *stage) alive(service string) {
	s.Helper()
	i := Instance{Service: service, Address: netip.MustParseAddrPort("127.0.99.99:9999"), Version: "first"}
	s.Put(s, i)
	s.mesh.awaitAll(s, i)
	i.Version = "second"
	s.Put(s, i)
	s.mesh.awaitAll(s, i)
	s.Remove(s, i)
	s.mesh.awaitGone(s, i)
}

// estate makes services with as many instances each.
func estate(services, each int) []Instance {
	var all []Instance
	for n := range services {
		for i := range each {
			ip := netip.AddrFrom4([4]byte{127, byte(1 + n/250), byte(n % 250), byte(1 + i)})
			all = append(all, Instance{Service: fmt.Sprintf("shop.service%d", n), Address: netip.AddrPortFrom(ip, 8080), Version: "v1"})
		}
	}
	return all
}

// nextPort is the same address with another port.
func nextPort(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()+1) }
