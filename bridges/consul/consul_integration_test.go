//go:build integration

package consul_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/consul/api"

	"github.com/isthmus-mesh/isthmus/bridges/consul"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// mesh is a sink that holds what it was told and lets a test wait for it.
type mesh struct {
	mu       sync.Mutex // guards the fields below
	services map[model.Host]*model.Service
	status   model.SourceStatus
	change   chan struct{}
}

func (m *mesh) Apply(u model.Update) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.Full {
		clear(m.services)
	}
	for _, s := range u.Services {
		m.services[s.Host] = s
	}
	for _, h := range u.Removed {
		delete(m.services, h)
	}
	m.signal()
}

func (m *mesh) Report(s model.SourceStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = s
	m.signal()
}

// signal wakes whoever waits; called with mu held.
func (m *mesh) signal() {
	close(m.change)
	m.change = make(chan struct{})
}

// await waits until ready, which is called with mu held.
func (m *mesh) await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		m.mu.Lock()
		ok, change, status, n := ready(), m.change, m.status, len(m.services)
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-limit.C:
			t.Fatalf("%s: not within 30 s; %d services, %+v", what, n, status)
		}
	}
}

// endpoints waits until the host has so many and returns them.
func (m *mesh) endpoints(t *testing.T, h model.Host, n int) []model.Endpoint {
	t.Helper()
	var out []model.Endpoint
	m.await(t, fmt.Sprintf("%d endpoints of %s", n, h), func() bool {
		s := m.services[h]
		if s == nil || len(s.Endpoints) != n {
			return false
		}
		out = s.Endpoints
		return true
	})
	return out
}

func (m *mesh) live(t *testing.T) {
	t.Helper()
	m.await(t, "live", func() bool { return m.status.Phase == model.Live })
}

// follow runs a source of cfg until the test ends. Its Run is called again when it
// ends by itself, as a supervisor does.
func follow(t *testing.T, cfg consul.Config) *mesh {
	t.Helper()
	m := &mesh{services: map[model.Host]*model.Service{}, change: make(chan struct{})}
	source := newSource(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := source.Run(ctx, m); err != nil {
				m.Report(model.SourceStatus{Err: err.Error()})
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

func of(server *peers.Consul) consul.Config {
	return consul.Config{Addresses: []string{server.Scheme + "://" + server.Addr}, Token: consul.Secret(server.Token)}
}

// service is a registration with a TTL check that passes.
func service(name, addr string, change func(*api.AgentServiceRegistration)) *api.AgentServiceRegistration {
	at := netip.MustParseAddrPort(addr)
	s := &api.AgentServiceRegistration{
		ID: name + "-" + addr, Name: name, Address: at.Addr().String(), Port: int(at.Port()),
		Check: &api.AgentServiceCheck{CheckID: "check-" + addr, TTL: "10m", Status: api.HealthPassing},
	}
	if change != nil {
		change(s)
	}
	return s
}

func register(t *testing.T, c *api.Client, s *api.AgentServiceRegistration) {
	t.Helper()
	if err := c.Agent().ServiceRegister(s); err != nil {
		t.Fatalf("register %s: %v", s.ID, err)
	}
}

func TestHealthWeightsTagsAndMeta(t *testing.T) {
	server := peers.StartConsul(t, peers.ConsulConfig{})
	c := clientOf(t, server)
	register(t, c, service("Cart", "10.0.0.1:8080", func(s *api.AgentServiceRegistration) {
		s.Tags = []string{"blue", "track=canary"}
		s.Meta = map[string]string{"version": "v2", "protocol": "grpc"}
		s.Weights = &api.AgentWeights{Passing: 5, Warning: 2}
	}))
	register(t, c, service("Cart", "10.0.0.2:8080", func(s *api.AgentServiceRegistration) {
		s.Connect = &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{}}
	}))
	m := follow(t, of(server))
	m.live(t)
	m.mu.Lock()
	got := m.services["cart"]
	n := len(m.services)
	m.mu.Unlock()
	want := &model.Service{
		Host: "cart", Name: "Cart", Namespace: "default",
		Ports: []model.Port{{Number: 80, Protocol: model.HTTP}, {Number: 50051, Protocol: model.GRPC}},
		Endpoints: []model.Endpoint{
			{
				Address: netip.MustParseAddrPort("10.0.0.1:8080"), Port: 50051, Weight: 500, Locality: model.Locality{Region: "dc1"},
				Labels: model.NewLabels(map[string]string{
					"app": "Cart", "dc": "dc1", "version": "v2", "protocol": "grpc", "tag.blue": "true", "track": "canary",
				}),
			},
			{
				Address: netip.MustParseAddrPort("10.0.0.2:8080"), Port: 80, Weight: 100, Locality: model.Locality{Region: "dc1"},
				Labels: model.NewLabels(map[string]string{"app": "Cart", "dc": "dc1"}),
			},
		},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(model.Labels{}, netip.AddrPort{})); d != "" || n != 1 {
		t.Errorf("%d services, want 1 without proxies and Consul itself (-want +got):\n%s", n, d)
	}

	check := func(status string) {
		t.Helper()
		if err := c.Agent().UpdateTTL("check-10.0.0.1:8080", "told so", status); err != nil {
			t.Fatal(err)
		}
	}
	is := func(what string, h model.Health, weight uint32) {
		t.Helper()
		m.await(t, what, func() bool {
			s := m.services["cart"]
			return s != nil && len(s.Endpoints) == 2 && s.Endpoints[0].Health == h && s.Endpoints[0].Weight == weight
		})
	}
	check("warn")
	is("a warning", model.Healthy, 200)
	check("fail")
	is("a failure", model.Unhealthy, 500)
	check("pass")
	is("health again", model.Healthy, 500)
	if err := c.Agent().EnableServiceMaintenance("Cart-10.0.0.1:8080", "upgrade"); err != nil {
		t.Fatal(err)
	}
	is("maintenance", model.Draining, 500)
	if err := c.Agent().DisableServiceMaintenance("Cart-10.0.0.1:8080"); err != nil {
		t.Fatal(err)
	}
	is("after maintenance", model.Healthy, 500)
}

// policy makes a token that may read services and nodes.
func policy(t *testing.T, c *api.Client, name, rules string) string {
	t.Helper()
	p, _, err := c.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := c.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: p.ID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return token.SecretID
}

const reads = `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`

// TestTokens: what a token may not see is unknown, not gone.
func TestTokens(t *testing.T) {
	server := peers.StartConsul(t, peers.ConsulConfig{ACL: true})
	c := clientOf(t, server)
	register(t, c, service("cart", "10.0.0.1:8080", nil))
	register(t, c, service("pay", "10.0.0.2:8080", nil))
	with := func(token string) consul.Config {
		cfg := of(server)
		cfg.Token = consul.Secret(token)
		return cfg
	}
	t.Run("least rights", func(t *testing.T) {
		m := follow(t, with(policy(t, c, "reader", reads)))
		m.live(t)
		m.endpoints(t, "cart", 1)
		m.endpoints(t, "pay", 1)
	})
	t.Run("rights on one service", func(t *testing.T) {
		m := follow(t, with(policy(t, c, "narrow", `service "cart" { policy = "read" } node_prefix "" { policy = "read" }`)))
		m.live(t)
		m.endpoints(t, "cart", 1)
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.services) != 1 {
			t.Errorf("%d services", len(m.services))
		}
	})
	for name, token := range map[string]string{"no token": "", "unknown token": "11111111-2222-3333-4444-555555555555"} {
		t.Run(name, func(t *testing.T) {
			m := follow(t, with(token))
			m.await(t, "a reason", func() bool { return strings.Contains(m.status.Err, "token") })
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.status.Phase != model.Syncing || len(m.services) != 0 {
				t.Errorf("%+v", m.status)
			}
			if token != "" && strings.Contains(m.status.Err, token) {
				t.Errorf("the token is in %q", m.status.Err)
			}
		})
	}
	t.Run("deleted while in use", func(t *testing.T) {
		secret := policy(t, c, "short", reads)
		m := follow(t, with(secret))
		m.live(t)
		self, _, err := c.ACL().TokenReadSelf(&api.QueryOptions{Token: secret})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ACL().TokenDelete(self.AccessorID, nil); err != nil {
			t.Fatal(err)
		}
		register(t, c, service("cart", "10.0.0.3:8080", nil)) // makes open queries return
		m.await(t, "stale with a reason", func() bool { return m.status.Phase == model.Stale && strings.Contains(m.status.Err, "refused") })
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.services) != 2 {
			t.Errorf("%d services are left", len(m.services))
		}
	})
	t.Run("rights taken away while in use", func(t *testing.T) {
		p, _, err := c.ACL().PolicyCreate(&api.ACLPolicy{Name: "shrinks", Rules: reads}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := c.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: p.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		m := follow(t, with(token.SecretID))
		m.live(t)
		p.Rules = `service "cart" { policy = "read" } node_prefix "" { policy = "read" }`
		if _, _, err := c.ACL().PolicyUpdate(p, nil); err != nil {
			t.Fatal(err)
		}
		register(t, c, service("other", "10.0.0.4:8080", nil))
		register(t, c, service("pay", "10.0.0.5:8080", nil))
		m.await(t, "stale with a reason", func() bool { return m.status.Phase == model.Stale && strings.Contains(m.status.Err, "service pay") })
		m.endpoints(t, "pay", 1)
		p.Rules = reads
		if _, _, err := c.ACL().PolicyUpdate(p, nil); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTLSSharesConnections(t *testing.T) {
	server := peers.StartConsul(t, peers.ConsulConfig{TLS: true})
	c := clientOf(t, server)
	const n = 400 // more than an agent takes connections of one client
	for i := range n {
		register(t, c, &api.AgentServiceRegistration{Name: fmt.Sprintf("s%d", i), Address: "10.0.0.1", Port: 1000 + i})
	}
	cfg := of(server)
	cfg.TLS = trust(t, server)
	m := follow(t, cfg)
	m.live(t)
	m.endpoints(t, "s399", 1)
	start := time.Now()
	register(t, c, &api.AgentServiceRegistration{ID: "second", Name: "s7", Address: "10.0.0.2", Port: 80})
	m.endpoints(t, "s7", 2)
	if took := time.Since(start); took > 5*time.Second { // in turns it would take up to 10 s
		t.Errorf("one change among %d services took %v", n, took)
	}

	wrong := of(server) // the system's roots do not vouch for it
	bad := follow(t, wrong)
	bad.await(t, "a reason", func() bool { return strings.Contains(bad.status.Err, "certificate") })
}

func TestFederatedDatacenters(t *testing.T) {
	one := peers.StartConsul(t, peers.ConsulConfig{Datacenter: "dc1"})
	two := peers.StartConsul(t, peers.ConsulConfig{Datacenter: "dc2", Join: one})
	c1, c2 := clientOf(t, one), clientOf(t, two)
	register(t, c1, service("cart", "10.1.0.1:8080", nil))
	register(t, c2, service("cart", "10.2.0.1:8080", nil))
	register(t, c2, service("pay", "10.2.0.2:8080", nil))
	cfg := of(one)
	cfg.Datacenters = []string{"dc1", "dc2"}
	m := follow(t, cfg)
	m.live(t)
	for i, e := range m.endpoints(t, "cart", 2) {
		want := fmt.Sprintf("dc%d", i+1)
		if dc, _ := e.Labels.Get("dc"); dc != want || e.Locality.Region != want {
			t.Errorf("%v has label dc=%s and region %s, want %s", e.Address, dc, e.Locality.Region, want)
		}
	}
	register(t, c2, service("cart", "10.2.0.3:8080", nil))
	m.endpoints(t, "cart", 3)

	two.Kill()
	m.await(t, "stale for dc2", func() bool { return m.status.Phase == model.Stale && strings.Contains(m.status.Err, "dc2") })
	register(t, c1, service("cart", "10.1.0.2:8080", nil))
	m.endpoints(t, "cart", 4)
	m.endpoints(t, "pay", 1)
	two.Start()
	m.live(t)
	if err := c2.Agent().ServiceDeregister("pay-10.2.0.2:8080"); err != nil {
		t.Fatal(err)
	}
	m.await(t, "pay gone", func() bool { return m.services["pay"] == nil })
}

func TestSpringCloudProvider(t *testing.T) {
	server := peers.StartConsul(t, peers.ConsulConfig{})
	m := follow(t, of(server))
	m.live(t)
	app := peers.StartSpring(t, peers.SpringConfig{Name: "greeting", Consul: server.Addr})
	var e model.Endpoint
	m.await(t, "a healthy greeting", func() bool {
		s := m.services["greeting"]
		if s == nil || len(s.Endpoints) != 1 || s.Endpoints[0].Health != model.Healthy {
			return false
		}
		e = s.Endpoints[0]
		return len(s.Ports) == 1 && s.Ports[0] == model.Port{Number: 80, Protocol: model.HTTP}
	})
	if secure, _ := e.Labels.Get("secure"); e.Address.String() != app.Addr || secure != "false" {
		t.Errorf("endpoint %v with %v, want %s and what Spring says of it", e.Address, e.Labels, app.Addr)
	}
	app.Stop()
	m.await(t, "greeting gone", func() bool { return m.services["greeting"] == nil })
}
