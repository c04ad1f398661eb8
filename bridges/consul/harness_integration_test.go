//go:build integration

package consul_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/bridgetest"
	"github.com/isthmus-mesh/isthmus/bridges/consul"
	"github.com/isthmus-mesh/isthmus/testenv/faultproxy"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBridge(t *testing.T) { bridgetest.Run(t, harness{}) }

// harness runs the suite against a real Consul server.
type harness struct{}

// Start implements bridgetest.Harness.
func (harness) Start(t testing.TB) bridgetest.Registry {
	return &registry{server: peers.StartConsul(t, peers.ConsulConfig{}), ids: map[string]struct{}{}}
}

// Proxy implements bridgetest.Harness.
func (harness) Proxy(t testing.TB, target string) bridgetest.Proxy {
	return faultproxy.Start(t, target)
}

// registry is a Consul server with services registered at its agent.
type registry struct {
	server *peers.Consul
	api    *api.Client // opened by the first call that needs it

	mu  sync.Mutex
	ids map[string]struct{} // of registered services
}

func (r *registry) Addr() string  { return r.server.Addr }
func (r *registry) Durable() bool { return true }

func (r *registry) Source(t testing.TB, via string) bridges.Source {
	// A query that waits no longer than 2 s is a proxy's connection no longer
	// than that after the source has gone.
	return newSource(t, consul.Config{Addresses: []string{"http://" + via}, Wait: 2 * time.Second})
}

func newSource(t testing.TB, cfg consul.Config) *consul.Source {
	t.Helper()
	cfg.Name, cfg.Heartbeat = "consul-test", 2*time.Second
	s, err := consul.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// client talks to the server directly.
func (r *registry) client(t testing.TB) *api.Client {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.api == nil {
		r.api = clientOf(t, r.server)
	}
	return r.api
}

func clientOf(t testing.TB, server *peers.Consul) *api.Client {
	t.Helper()
	cfg := api.DefaultConfig()
	cfg.Address, cfg.Scheme, cfg.Token = server.Addr, server.Scheme, server.Token
	if server.CAFile != "" {
		cfg.Transport.TLSClientConfig = trust(t, server)
	}
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cfg.Transport.CloseIdleConnections)
	return c
}

// trust is a TLS configuration that believes the server's root only.
func trust(t testing.TB, server *peers.Consul) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(server.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", server.CAFile)
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

func (r *registry) Put(t testing.TB, i bridgetest.Instance) {
	t.Helper()
	r.register(t, &api.AgentServiceRegistration{
		ID: i.Service + "-" + i.Address.String(), Name: i.Service, Address: i.Address.Addr().String(), Port: int(i.Address.Port()),
		Meta: map[string]string{"version": i.Version},
	})
}

func (r *registry) register(t testing.TB, s *api.AgentServiceRegistration) {
	t.Helper()
	if err := r.client(t).Agent().ServiceRegister(s); err != nil {
		t.Errorf("register %s: %v", s.ID, err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[s.ID] = struct{}{}
}

func (r *registry) PutAll(t testing.TB, all []bridgetest.Instance) {
	t.Helper()
	work := make(chan bridgetest.Instance)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range work {
				r.Put(t, i)
			}
		})
	}
	for _, i := range all {
		work <- i
	}
	close(work)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func (r *registry) Remove(t testing.TB, i bridgetest.Instance) {
	t.Helper()
	r.deregister(t, i.Service+"-"+i.Address.String())
}

func (r *registry) deregister(t testing.TB, id string) {
	t.Helper()
	if err := r.client(t).Agent().ServiceDeregister(id); err != nil {
		t.Fatalf("deregister %s: %v", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ids, id)
}

// PutBroken registers an instance whose address is a host name.
func (r *registry) PutBroken(t testing.TB, service string) string {
	t.Helper()
	const name = "no-address.example"
	r.register(t, &api.AgentServiceRegistration{ID: service + "-broken", Name: service, Address: name, Port: 80})
	return name
}

// Break registers the instance anew, at a host name.
func (r *registry) Break(t testing.TB, i bridgetest.Instance) string {
	t.Helper()
	const name = "moved.example"
	r.register(t, &api.AgentServiceRegistration{
		ID: i.Service + "-" + i.Address.String(), Name: i.Service, Address: name, Port: int(i.Address.Port()), Meta: map[string]string{"version": i.Version},
	})
	return name
}

// Expire deregisters everything at once. Consul itself waits at least a minute
// before it does so with services whose checks fail.
func (r *registry) Expire(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	var ids []string
	for id := range r.ids {
		ids = append(ids, id)
	}
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if err := r.client(t).Agent().ServiceDeregister(id); err != nil {
				t.Errorf("deregister %s: %v", id, err)
			}
		})
	}
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.ids)
}

func (r *registry) Kill(t testing.TB)    { r.server.Kill() }
func (r *registry) Restart(t testing.TB) { r.server.Start() }
