package catalog_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func endpoint(addr string, labels ...string) model.Endpoint {
	m := map[string]string{}
	for i := 0; i+1 < len(labels); i += 2 {
		m[labels[i]] = labels[i+1]
	}
	return model.Endpoint{Address: netip.MustParseAddrPort(addr), Port: 80, Labels: model.NewLabels(m)}
}

func service(host string, endpoints ...model.Endpoint) *model.Service {
	return &model.Service{Host: model.Host(host), Name: host, Ports: []model.Port{{Number: 80, Protocol: model.HTTP}}, Endpoints: endpoints}
}

func newCatalog(priority ...string) *catalog.Catalog {
	return catalog.New(catalog.Config{Priority: priority, Log: slog.New(slog.DiscardHandler)})
}

// seen is what a test compares of an endpoint.
type seen struct {
	Address, Registered, Labels, Workload, Health string
	Registries                                    []string
}

func endpoints(c *catalog.Catalog, host string) []seen {
	s := c.View().Service(model.Host(host))
	if s == nil {
		return nil
	}
	var out []seen
	for _, e := range s.Endpoints {
		registered := ""
		if e.Registered.IsValid() {
			registered = e.Registered.String()
		}
		out = append(out, seen{e.Address.String(), registered, e.Labels.String(), e.Workload, e.Health.String(), e.Registries})
	}
	return out
}

func check(t *testing.T, c *catalog.Catalog, host string, want ...seen) {
	t.Helper()
	if d := cmp.Diff(want, endpoints(c, host), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("endpoints of %s (-want +got):\n%s", host, d)
	}
}

func TestMerge(t *testing.T) {
	early, late := time.Unix(100, 0), time.Unix(200, 0)
	at := func(e model.Endpoint, when time.Time) model.Endpoint { e.Changed = when; return e }
	sick := func(e model.Endpoint) model.Endpoint { e.Health = model.Unhealthy; return e }

	t.Run("two registries with different endpoints are one service", func(t *testing.T) {
		c := newCatalog()
		c.Source("zk").Apply(model.Update{Full: true, Services: []*model.Service{service("cart", endpoint("10.0.0.2:80"))}})
		c.Source("consul").Apply(model.Update{Full: true, Services: []*model.Service{service("cart", endpoint("10.0.0.1:80"))}})
		check(t, c, "cart",
			seen{"10.0.0.1:80", "", "mesh-origin=consul", "", "healthy", []string{"consul"}},
			seen{"10.0.0.2:80", "", "mesh-origin=zk", "", "healthy", []string{"zk"}})
		check(t, c, "cart@zk", seen{"10.0.0.2:80", "", "mesh-origin=zk", "", "healthy", []string{"zk"}})
		check(t, c, "cart@eureka")
	})
	t.Run("among sources that are listed nowhere the newest report of an address wins", func(t *testing.T) {
		c := newCatalog()
		c.Source("a").Apply(model.Update{Services: []*model.Service{service("cart", at(endpoint("10.0.0.1:80", "v", "old"), early))}})
		c.Source("b").Apply(model.Update{Services: []*model.Service{service("cart", at(endpoint("10.0.0.1:80", "v", "new"), late))}})
		check(t, c, "cart", seen{"10.0.0.1:80", "", "mesh-origin=b,v=new", "", "healthy", []string{"a", "b"}})
	})
	t.Run("a configured priority beats a newer report", func(t *testing.T) {
		c := newCatalog("a")
		c.Source("b").Apply(model.Update{Services: []*model.Service{service("cart", at(endpoint("10.0.0.1:80", "v", "new"), late))}})
		c.Source("a").Apply(model.Update{Services: []*model.Service{service("cart", at(endpoint("10.0.0.1:80", "v", "old"), early))}})
		check(t, c, "cart", seen{"10.0.0.1:80", "", "mesh-origin=a,v=old", "", "healthy", []string{"a", "b"}})
	})
	t.Run("unhealthy in one registry is unhealthy", func(t *testing.T) {
		c := newCatalog("a")
		c.Source("a").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.1:80"))}})
		c.Source("b").Apply(model.Update{Services: []*model.Service{service("cart", sick(endpoint("10.0.0.1:80")))}})
		check(t, c, "cart", seen{"10.0.0.1:80", "", "mesh-origin=a", "", "unhealthy", []string{"a", "b"}})
	})
	t.Run("a full update removes what it does not name, of its own source only", func(t *testing.T) {
		c := newCatalog()
		c.Source("a").Apply(model.Update{Full: true, Services: []*model.Service{service("cart", endpoint("10.0.0.1:80")), service("shop", endpoint("10.0.0.9:80"))}})
		c.Source("b").Apply(model.Update{Full: true, Services: []*model.Service{service("cart", endpoint("10.0.0.2:80"))}})
		c.Source("a").Apply(model.Update{Full: true})
		check(t, c, "cart", seen{"10.0.0.2:80", "", "mesh-origin=b", "", "healthy", []string{"b"}})
		check(t, c, "shop")
	})
	t.Run("an unsorted report is ordered", func(t *testing.T) {
		c := newCatalog()
		c.Source("a").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.2:80"), endpoint("10.0.0.1:80"))}})
		c.Source("a").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.2:80"))}})
		check(t, c, "cart", seen{"10.0.0.2:80", "", "mesh-origin=a", "", "healthy", []string{"a"}})
	})
}

func workload(name, address, app, listen string, labels ...string) *model.Workload {
	e := endpoint("0.0.0.0:1", labels...)
	return &model.Workload{
		Name: name, App: "cart-app", Address: netip.MustParseAddr(address), Labels: e.Labels,
		Inbound: []model.Inbound{{App: netip.MustParseAddrPort(app), Listen: netip.MustParseAddrPort(listen)}},
	}
}

func TestJoin(t *testing.T) {
	joined := seen{"10.0.0.1:20881", "10.0.0.1:8080", "app=cart-app,mesh-origin=zk,version=v2", "w1", "healthy", []string{"zk"}}
	bare := seen{"10.0.0.1:8080", "", "mesh-origin=zk", "", "healthy", []string{"zk"}}
	registered := model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.1:8080"))}}
	arrives := model.Update{Workloads: []*model.Workload{workload("w1", "10.0.0.1", "127.0.0.1:8080", "0.0.0.0:20881", "version", "v2")}}
	leaves := model.Update{RemovedWorkloads: []string{"w1"}}

	t.Run("the workload comes after the endpoint, and leaves", func(t *testing.T) {
		c := newCatalog()
		sub := c.Subscribe()
		defer sub.Close()
		c.Source("zk").Apply(registered)
		check(t, c, "cart", bare)
		sub.Take()
		c.Source("builtin").Apply(arrives)
		check(t, c, "cart", joined)
		if _, changes := sub.Take(); changes["cart"] != catalog.EndpointsChanged {
			t.Errorf("changes %v, want the endpoints of cart alone", changes)
		}
		c.Source("builtin").Apply(leaves)
		check(t, c, "cart", bare)
	})
	t.Run("the workload comes first", func(t *testing.T) {
		c := newCatalog()
		c.Source("builtin").Apply(arrives)
		c.Source("zk").Apply(registered)
		check(t, c, "cart", joined)
	})
	t.Run("an application on loopback is not taken for another machine's", func(t *testing.T) {
		c := newCatalog()
		c.Source("builtin").Apply(arrives)
		c.Source("zk").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("127.0.0.1:8080"))}})
		check(t, c, "cart", seen{"127.0.0.1:8080", "", "mesh-origin=zk", "", "healthy", []string{"zk"}})
	})
	t.Run("a workload that restarts on another port moves its endpoint", func(t *testing.T) {
		c := newCatalog()
		c.Source("zk").Apply(registered)
		c.Source("builtin").Apply(arrives)
		c.Source("builtin").Apply(model.Update{Full: true, Workloads: []*model.Workload{workload("w1", "10.0.0.1", "127.0.0.1:8080", "0.0.0.0:30000", "version", "v2")}})
		moved := joined
		moved.Address = "10.0.0.1:30000"
		check(t, c, "cart", moved)
	})
}

// TestJoinWhileMigrating: one registry holds the application's own address, and
// another the listener that its sidecar registered.
func TestJoinWhileMigrating(t *testing.T) {
	sick := endpoint("10.0.0.1:8080")
	sick.Health = model.Unhealthy
	c := newCatalog()
	c.Source("builtin").Apply(model.Update{Workloads: []*model.Workload{workload("w1", "10.0.0.1", "127.0.0.1:8080", "0.0.0.0:20881", "version", "v2")}})
	c.Source("zk").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.1:20881"))}})
	check(t, c, "cart", seen{"10.0.0.1:20881", "", "app=cart-app,mesh-origin=zk,version=v2", "w1", "healthy", []string{"zk"}})

	c.Source("consul").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.1:8080"))}})
	joined := seen{"10.0.0.1:20881", "10.0.0.1:8080", "app=cart-app,mesh-origin=consul,version=v2", "w1", "healthy", []string{"consul", "zk"}}
	check(t, c, "cart", joined)
	check(t, c, "cart@zk", joined)

	c.Source("consul").Apply(model.Update{Services: []*model.Service{service("cart", sick)}})
	joined.Health = "unhealthy"
	check(t, c, "cart", joined)
}

func TestInboundOfAnotherAddressJoinsNothing(t *testing.T) {
	c := newCatalog()
	c.Source("zk").Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.9:8080"))}})
	c.Source("builtin").Apply(model.Update{Workloads: []*model.Workload{workload("thief", "10.6.6.6", "10.0.0.9:8080", "10.6.6.6:20881")}})
	check(t, c, "cart", seen{"10.0.0.9:8080", "", "mesh-origin=zk", "", "healthy", []string{"zk"}})
}

func TestSubscription(t *testing.T) {
	c := newCatalog()
	zk := c.Source("zk")
	zk.Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.1:80"))}})
	sub := c.Subscribe()
	defer sub.Close()
	take := func() map[model.Host]catalog.Change {
		t.Helper()
		select {
		case <-sub.Wake():
		default:
			t.Fatal("no wake-up is pending")
		}
		_, changes := sub.Take()
		return changes
	}
	all := catalog.ShapeChanged | catalog.EndpointsChanged
	if d := cmp.Diff(map[model.Host]catalog.Change{"cart": all}, take()); d != "" {
		t.Errorf("first changes (-want +got):\n%s", d)
	}
	zk.Apply(model.Update{Services: []*model.Service{service("cart", endpoint("10.0.0.2:80")), service("shop")}})
	zk.Apply(model.Update{Removed: []model.Host{"shop"}})
	if d := cmp.Diff(map[model.Host]catalog.Change{"cart": catalog.EndpointsChanged, "shop": all}, take()); d != "" {
		t.Errorf("coalesced changes (-want +got):\n%s", d)
	}
	renewed := endpoint("10.0.0.2:80")
	renewed.Changed = time.Now()
	before := c.View()
	zk.Apply(model.Update{Services: []*model.Service{service("cart", renewed)}})
	select {
	case <-sub.Wake():
		t.Error("a renewed registration alone woke the subscriber")
	default:
	}
	if got := before.Service("cart").Endpoints[0].Changed; !got.IsZero() {
		t.Errorf("a published view changed: %v", got)
	}
}

// BenchmarkEndpointChange shows that one change costs the same at any size.
func BenchmarkEndpointChange(b *testing.B) {
	for _, total := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(total), func(b *testing.B) {
			c := newCatalog()
			zk := c.Source("zk")
			const each = 20
			full := model.Update{Full: true}
			for i := range total / each {
				full.Services = append(full.Services, instances(i, each))
			}
			zk.Apply(full)
			sub := c.Subscribe()
			defer sub.Close()
			sub.Take()
			more, fewer := instances(7, each), instances(7, each-1)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				next := more
				if i%2 == 0 {
					next = fewer
				}
				zk.Apply(model.Update{Services: []*model.Service{next}})
				if _, changes := sub.Take(); len(changes) != 1 {
					b.Fatalf("%d services changed, want 1", len(changes))
				}
			}
		})
	}
}

func instances(service, n int) *model.Service {
	s := &model.Service{Host: model.Host(fmt.Sprintf("svc-%d", service)), Ports: []model.Port{{Number: 80, Protocol: model.HTTP}}}
	for i := range n {
		ip := netip.AddrFrom4([4]byte{10, byte(service >> 8), byte(service), byte(i)})
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: netip.AddrPortFrom(ip, 8080), Port: 80, Labels: model.NewLabels(map[string]string{"zone": "a"}),
		})
	}
	return s
}

// TestEndpointChangeAllocation is the promise of the benchmark as a test: at
// 100,000 endpoints one change allocates at most twice what it does at 1,000.
func TestEndpointChangeAllocation(t *testing.T) {
	bytes := func(total int) int64 {
		c := newCatalog()
		zk := c.Source("zk")
		full := model.Update{Full: true}
		for i := range total / 20 {
			full.Services = append(full.Services, instances(i, 20))
		}
		zk.Apply(full)
		more, fewer := instances(7, 20), instances(7, 19)
		r := testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				zk.Apply(model.Update{Services: []*model.Service{fewer}})
				zk.Apply(model.Update{Services: []*model.Service{more}})
			}
		})
		return r.AllocedBytesPerOp()
	}
	small, large := bytes(1000), bytes(100_000)
	t.Logf("two changes allocate %d bytes at 1,000 endpoints, %d at 100,000", small, large)
	if large > 2*small {
		t.Errorf("allocated %d bytes at 100,000 endpoints, %d at 1,000: more than twice", large, small)
	}
}
