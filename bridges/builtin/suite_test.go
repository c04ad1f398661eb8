package builtin_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/bridgetest"
	"github.com/isthmus-mesh/isthmus/bridges/builtin"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestBridge(t *testing.T) { bridgetest.Run(t, harness{}) }

// harness runs the suite against the registry itself; what a network does to
// others does not concern it.
type harness struct{}

// Start implements bridgetest.Harness.
func (harness) Start(t testing.TB) bridgetest.Registry {
	r, err := builtin.New(builtin.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return &suite{r: r, ids: map[netip.AddrPort]string{}, put: map[netip.AddrPort]model.Workload{}}
}

// Proxy implements bridgetest.Harness; it is not called.
func (harness) Proxy(t testing.TB, _ string) bridgetest.Proxy {
	t.Fatal("there is no network to break")
	return nil
}

// suite is a registry with the leases of the instances put into it.
type suite struct {
	r   *builtin.Registry
	mu  sync.Mutex
	ids map[netip.AddrPort]string
	put map[netip.AddrPort]model.Workload
}

func (s *suite) Addr() string                             { return "" }
func (s *suite) Durable() bool                            { return true }
func (s *suite) Source(testing.TB, string) bridges.Source { return s.r }
func (s *suite) PutBroken(testing.TB, string) string      { return "" } // Register refuses it
func (s *suite) Break(testing.TB, bridgetest.Instance) string {
	return "" // as well
}
func (s *suite) Kill(t testing.TB)    { t.Fatal("it dies with this process") }
func (s *suite) Restart(t testing.TB) { t.Fatal("it dies with this process") }
func (s *suite) PutAll(t testing.TB, all []bridgetest.Instance) {
	for _, i := range all {
		s.Put(t, i)
	}
}

func (s *suite) Put(t testing.TB, i bridgetest.Instance) {
	t.Helper()
	s.register(t, model.Workload{
		Name: i.Service + "-" + i.Address.String(), Address: i.Address.Addr(),
		Labels:  model.NewLabels(map[string]string{"version": i.Version}),
		Inbound: []model.Inbound{{App: i.Address, Protocol: model.HTTP, Service: i.Service}},
	}, time.Hour)
}

func (s *suite) register(t testing.TB, w model.Workload, ttl time.Duration) {
	t.Helper()
	id, err := s.r.Register(t.Context(), w, ttl)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[w.Inbound[0].App], s.put[w.Inbound[0].App] = id, w
}

func (s *suite) Remove(t testing.TB, i bridgetest.Instance) {
	t.Helper()
	s.mu.Lock()
	id := s.ids[i.Address]
	delete(s.ids, i.Address)
	delete(s.put, i.Address)
	s.mu.Unlock()
	if err := s.r.Leave(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// Expire makes all leases short and lets them end.
func (s *suite) Expire(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	var all []model.Workload
	for _, w := range s.put {
		all = append(all, w)
	}
	s.mu.Unlock()
	for _, w := range all {
		s.register(t, w, time.Second)
	}
	limit := time.After(30 * time.Second)
	for len(s.r.List()) > 0 {
		select {
		case <-limit:
			t.Fatalf("%d leases go on", len(s.r.List()))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
