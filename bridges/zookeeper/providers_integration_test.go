//go:build integration

package zookeeper_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/bridgetest"
	"github.com/isthmus-mesh/isthmus/bridges/zookeeper"
	"github.com/isthmus-mesh/isthmus/testenv/faultproxy"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// board is a Sink that lets a test wait for a state.
type board struct {
	mu       sync.Mutex // guards the fields below
	services map[model.Host]*model.Service
	status   model.SourceStatus
	change   chan struct{}
}

func (b *board) Apply(u model.Update) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if u.Full {
		clear(b.services)
	}
	for _, s := range u.Services {
		b.services[s.Host] = s
	}
	for _, h := range u.Removed {
		delete(b.services, h)
	}
	close(b.change)
	b.change = make(chan struct{})
}

func (b *board) Report(s model.SourceStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = s
	close(b.change)
	b.change = make(chan struct{})
}

// await waits until ready, which is called with the lock held.
func (b *board) await(t testing.TB, what string, ready func() bool) {
	t.Helper()
	limit := time.After(60 * time.Second)
	for {
		b.mu.Lock()
		ok, change := ready(), b.change
		b.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-limit:
			b.mu.Lock()
			defer b.mu.Unlock()
			t.Fatalf("%s: not in time; status %+v, %d services", what, b.status, len(b.services))
		}
	}
}

// endpoint returns the endpoint at an address; called with the lock held.
func (b *board) endpoint(host, address string) (model.Endpoint, bool) {
	s := b.services[model.Host(host)]
	if s == nil {
		return model.Endpoint{}, false
	}
	i := slices.IndexFunc(s.Endpoints, func(e model.Endpoint) bool { return e.Address == netip.MustParseAddrPort(address) })
	if i < 0 {
		return model.Endpoint{}, false
	}
	return s.Endpoints[i], true
}

// follow runs a supervised source until the test ends.
func follow(t *testing.T, cfg zookeeper.Config) *board {
	t.Helper()
	b := &board{services: map[model.Host]*model.Service{}, change: make(chan struct{})}
	cfg.Name = "zk-test"
	supervisor, err := bridges.New(bridges.Config{Source: newSource(t, cfg), Sink: b, RetryLow: 20 * time.Millisecond, RetryHigh: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- supervisor.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b
}

func label(e model.Endpoint, key string) string {
	value, _ := e.Labels.Get(key)
	return value
}

func TestRealDubboProvidersAreRead(t *testing.T) {
	server := peers.StartZooKeeper(t, "maxSessionTimeout=2000")
	b := follow(t, zookeeper.Config{Servers: []string{server.Addr}})
	b.await(t, "live on an empty registry", func() bool { return b.status.Phase == model.Live })

	three := peers.StartDubboProvider(t, peers.DubboConfig{
		Release: peers.Dubbo3, ZooKeeper: server.Addr, Group: "blue", Version: "1.0.0", Properties: []string{"dubbo.application.register-mode=all"},
	})
	two := peers.StartDubboProvider(t, peers.DubboConfig{Release: peers.Dubbo2, ZooKeeper: server.Addr, Version: "2.0.0"})
	triple := peers.StartDubboProvider(t, peers.DubboConfig{
		Release: peers.Dubbo3, ZooKeeper: server.Addr, Properties: []string{"dubbo.protocol.name=tri", "dubbo.application.register-mode=interface"},
	})
	host := strings.ToLower(peers.DubboInterface)
	for _, want := range []struct {
		provider       *peers.Dubbo
		port           uint16
		group, version string
	}{{three, 20880, "blue", "1.0.0"}, {two, 20880, "", "2.0.0"}, {triple, 50051, "", ""}} {
		b.await(t, want.provider.Addr, func() bool {
			e, ok := b.endpoint(host, want.provider.Addr)
			return ok && e.Port == want.port && e.Health == model.Healthy && label(e, "group") == want.group && label(e, "version") == want.version &&
				label(e, "app") == "greeting-provider" && label(e, "methods") == "" && time.Since(e.Changed) < time.Hour
		})
	}
	b.mu.Lock()
	s := b.services[model.Host(host)]
	if s.Name != peers.DubboInterface || len(s.Ports) != 2 || s.Ports[0].Protocol != model.Dubbo || s.Ports[1].Protocol != model.Triple || len(s.Endpoints) != 3 {
		t.Errorf("service %+v", s)
	}
	b.mu.Unlock()
	b.await(t, "the application level named and left alone", func() bool {
		return len(b.services) == 1 && slices.ContainsFunc(b.status.Skipped, func(r model.Rejected) bool {
			return r.Where == "/services/greeting-provider" && strings.Contains(r.Reason, "application level")
		})
	})

	start := time.Now()
	two.Kill()
	b.await(t, "the killed provider gone", func() bool {
		_, there := b.endpoint(host, two.Addr)
		return !there
	})
	t.Logf("kill -9 of a provider was seen after %v", time.Since(start))
	three.Stop()
	b.await(t, "the stopped provider gone", func() bool {
		_, there := b.endpoint(host, three.Addr)
		return !there
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, there := b.endpoint(host, triple.Addr); !there {
		t.Error("the provider that lives is gone, too")
	}
}

func TestRealSpringProvidersAreRead(t *testing.T) {
	server := peers.StartZooKeeper(t, "maxSessionTimeout=2000")
	b := follow(t, zookeeper.Config{Servers: []string{server.Addr}})
	one := peers.StartSpring(t, peers.SpringConfig{
		Name: "Greeting", ZooKeeper: server.Addr, Args: []string{"--spring.cloud.zookeeper.discovery.metadata.version=v1", "--spring.cloud.zookeeper.discovery.metadata.zone=z1"},
	})
	two := peers.StartSpring(t, peers.SpringConfig{Name: "Greeting", ZooKeeper: server.Addr})
	for _, want := range []struct{ address, version, zone string }{{one.Addr, "v1", "z1"}, {two.Addr, "", ""}} {
		b.await(t, want.address, func() bool {
			e, ok := b.endpoint("greeting", want.address)
			return ok && e.Port == 80 && e.Health == model.Healthy && label(e, "version") == want.version && e.Locality.Zone == want.zone && label(e, "app") == "Greeting"
		})
	}
	b.await(t, "nothing skipped", func() bool { return b.status.Phase == model.Live && len(b.status.Skipped) == 0 })
	start := time.Now()
	one.Kill()
	b.await(t, "the killed instance gone", func() bool {
		_, there := b.endpoint("greeting", one.Addr)
		return !there
	})
	t.Logf("kill -9 of an instance was seen after %v", time.Since(start))
	two.Stop()
	b.await(t, "the stopped instance gone", func() bool {
		_, there := b.endpoint("greeting", two.Addr)
		return !there
	})
}

func TestChrootAndCredentials(t *testing.T) {
	server := peers.StartZooKeeper(t)
	conn, _, err := zk.Connect([]string{server.Addr}, 5*time.Second, zk.WithLogger(silent{}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.AddAuth("digest", []byte("mesh:secret")); err != nil {
		t.Fatal(err)
	}
	cfg := zookeeper.Config{Servers: []string{server.Addr + "/prod"}, SessionTimeout: 2 * time.Second}
	without := follow(t, cfg)
	without.await(t, "the missing chroot named", func() bool { return strings.Contains(without.status.Err, "chroot /prod does not exist") })

	private := zk.DigestACL(zk.PermAll, "mesh", "secret")
	name, data := springLayout{}.entry(bridgetest.Instance{Service: "cart", Address: netip.MustParseAddrPort("127.0.0.2:80"), Version: "v1"}, time.Now())
	for _, node := range []struct {
		path string
		data []byte
		acl  []zk.ACL
	}{{"/prod", nil, open()}, {"/prod/services", nil, private}, {"/prod/services/cart", nil, private}, {"/prod/services/cart/" + name, data, private}} {
		if _, err := conn.Create(node.path, node.data, 0, node.acl); err != nil {
			t.Fatal(err)
		}
	}
	without.await(t, "the closed root named", func() bool { return strings.Contains(without.status.Err, "list /prod/services: zk: not authenticated") })
	cfg.Auth = []zookeeper.Auth{{Scheme: "digest", Credential: "mesh:secret"}}
	with := follow(t, cfg)
	with.await(t, "the service behind the ACL", func() bool {
		_, ok := with.endpoint("cart", "127.0.0.2:80")
		return ok && with.status.Phase == model.Live
	})
}

func TestTheNextServerIsTakenWhenOneIsDead(t *testing.T) {
	server := peers.StartZooKeeper(t)
	dead, alive := faultproxy.Start(t, server.Addr), faultproxy.Start(t, server.Addr)
	dead.Cut()
	b := follow(t, zookeeper.Config{Servers: []string{dead.Addr(), alive.Addr()}, SessionTimeout: 2 * time.Second})
	b.await(t, "live through the other", func() bool { return b.status.Phase == model.Live })
	dead.Resume()
	alive.Cut()
	b.await(t, "stale", func() bool { return b.status.Phase == model.Stale })
	b.await(t, "live through the first", func() bool { return b.status.Phase == model.Live })
}

// TestManyServicesResync reads what a large estate has: 5,000 interfaces with ten
// providers each.
func TestManyServicesResync(t *testing.T) {
	const services, each = 5000, 10
	h := harness{dubboLayout{}}
	r := h.Start(t).(*registry)
	var all []bridgetest.Instance
	for n := range services {
		for i := range each {
			ip := netip.AddrFrom4([4]byte{127, byte(1 + n/250), byte(n % 250), byte(1 + i)})
			all = append(all, bridgetest.Instance{Service: fmt.Sprintf("shop.service%d", n), Address: netip.AddrPortFrom(ip, 8080), Version: "v1"})
		}
	}
	r.PutAll(t, all)
	proxy := faultproxy.Start(t, server(r))
	start := time.Now()
	b := follow(t, zookeeper.Config{Servers: []string{proxy.Addr()}})
	live := func() bool { return b.status.Phase == model.Live && len(b.services) == services }
	b.await(t, "live", live)
	first := time.Since(start)
	proxy.Cut()
	b.await(t, "stale", func() bool { return b.status.Phase == model.Stale })
	start = time.Now()
	proxy.Resume()
	b.await(t, "live again", live)
	t.Logf("%d services, %d endpoints: first read %v, resync %v", services, services*each, first, time.Since(start))
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("resync took %v, want seconds", took)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.services {
		if len(s.Endpoints) != each {
			t.Fatalf("%s has %d endpoints, want %d", s.Host, len(s.Endpoints), each)
		}
	}
}

func server(r *registry) string { return r.ZooKeeper.Addr }

// BenchmarkLag measures from the change in ZooKeeper to the Apply at the mesh.
func BenchmarkLag(b *testing.B) {
	for name, l := range map[string]layout{"dubbo": dubboLayout{}, "spring": springLayout{}} {
		b.Run(name, func(b *testing.B) {
			r := harness{l}.Start(b)
			lags := bridgetest.Lag(b, r, r.Addr(), 50, max(b.N, 500))
			slices.Sort(lags)
			b.ReportMetric(float64(lags[len(lags)/2].Microseconds())/1000, "p50_ms")
			b.ReportMetric(float64(lags[len(lags)*99/100].Microseconds())/1000, "p99_ms")
			b.ReportMetric(float64(lags[len(lags)-1].Microseconds())/1000, "max_ms")
		})
	}
}
