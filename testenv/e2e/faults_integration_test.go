//go:build integration

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
	"github.com/isthmus-mesh/isthmus/testenv/openloop"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// underLoad keeps an open loop to host through proxy going while faults happens,
// and returns what callers saw.
func underLoad(t *testing.T, proxy, host string, faults func(l *openloop.Loop)) openloop.Tally {
	t.Helper()
	l, err := openloop.New(proxy, "http://"+host)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, host+" answers", func(ctx context.Context) error {
		_, err := l.Call(ctx, http.MethodGet, "")
		return err
	})
	ctx, stop := context.WithCancel(t.Context())
	var loop sync.WaitGroup
	loop.Go(func() { l.Run(ctx) })
	// A test that fails in faults must not leave the loop behind.
	defer func() {
		stop()
		loop.Wait()
	}()
	sum := openloop.Tally{Versions: map[string]int{}}
	flow(t, l, &sum, 500)
	faults(l)
	flow(t, l, &sum, 500)
	stop()
	loop.Wait()
	sum.Add(l.Take())
	if n := l.Lost(); n > 0 {
		t.Errorf("%d requests could not leave", n)
	}
	t.Logf("%d GET, %d failed; %d POST, %d failed; slowest %v; %v", sum.Gets, sum.FailedGets, sum.Posts, sum.FailedPosts, sum.Slowest, sum.Errors)
	return sum
}

// flow waits until n more requests were answered.
func flow(t *testing.T, l *openloop.Loop, sum *openloop.Tally, n int) {
	t.Helper()
	want := sum.Requests() + n
	eventually(t, "requests flow", func(context.Context) error {
		sum.Add(l.Take())
		if got := sum.Requests(); got < want {
			return fmt.Errorf("%d requests so far, want %d", got, want)
		}
		return nil
	})
}

func noneFailed(t *testing.T, got openloop.Tally) {
	t.Helper()
	if got.FailedGets+got.FailedPosts > 0 {
		t.Errorf("%d GETs and %d POSTs failed, want none", got.FailedGets, got.FailedPosts)
	}
}

// meshedEcho starts an echo with a sidecar that announces it as host.
func meshedEcho(t *testing.T, m *testenv.Mesh, host, id string) *testenv.Sidecar {
	t.Helper()
	addr := echotest.Start(t, echo.Config{ID: id, Version: "v1"})
	return m.Sidecar(testenv.Workload{Name: id, App: host, Version: "v1", Port: addr, Service: host})
}

// uses succeeds when the sidecar balances over exactly those addresses of host.
func uses(s *testenv.Sidecar, host string, addrs ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, body, err := get(ctx, http.DefaultClient, "http://"+s.Admin+"/clusters")
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for line := range strings.Lines(body) {
			if rest, ok := strings.CutPrefix(line, "outbound|80||"+host+"::"); ok && strings.Contains(rest, "::health_flags::healthy") {
				seen[strings.SplitN(rest, "::", 2)[0]] = true
			}
		}
		for _, a := range addrs {
			if !seen[a] {
				return fmt.Errorf("%s is not used: %v", a, seen)
			}
		}
		if len(seen) != len(addrs) {
			return fmt.Errorf("uses %v, want %v", seen, addrs)
		}
		return nil
	}
}

// TestMeshServerKill: with MeshServer killed under load nothing fails, a sidecar
// that restarts meanwhile serves from its last configuration, and after the
// return a new endpoint arrives at every sidecar.
func TestMeshServerKill(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	a, b := meshedEcho(t, mesh, "cart", "cart-a"), meshedEcho(t, mesh, "cart", "cart-b")
	clients := []*testenv.Sidecar{
		mesh.Sidecar(testenv.Workload{Name: "web-1", App: "web"}), mesh.Sidecar(testenv.Workload{Name: "web-2", App: "web"}),
	}
	for _, c := range clients {
		eventually(t, "both instances arrive", uses(c, "cart", a.Inbound, b.Inbound))
	}
	noneFailed(t, underLoad(t, clients[0].Proxy, "cart", func(*openloop.Loop) {
		mesh.Kill()
		clients[1].Kill()
		clients[1].Start() // returns when it is ready, with MeshServer down
		eventually(t, "the restarted sidecar serves", answers(caller(t, clients[1].Proxy), "http://cart/", `"path":"/"`))
		mesh.Start()
		added := meshedEcho(t, mesh, "cart", "cart-c")
		for _, s := range append(clients, a, b, added) {
			eventually(t, "the new endpoint arrives everywhere", uses(s, "cart", a.Inbound, b.Inbound, added.Inbound))
		}
	}))
}

// TestSidecarKill: a provider's sidecar dies. GETs are retried on the other
// instance; the dead one leaves the registry when its lease ends.
func TestSidecarKill(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	a, b := meshedEcho(t, mesh, "cart", "cart-a"), meshedEcho(t, mesh, "cart", "cart-b")
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	eventually(t, "both instances arrive", uses(client, "cart", a.Inbound, b.Inbound))
	got := underLoad(t, client.Proxy, "cart", func(*openloop.Loop) {
		b.Kill()
		eventually(t, "the dead sidecar leaves", uses(client, "cart", a.Inbound))
	})
	if got.FailedGets > 0 {
		t.Errorf("%d of %d GETs failed, want none", got.FailedGets, got.Gets)
	}
	if got.FailedPosts > got.Posts/10 {
		t.Errorf("%d of %d POSTs failed, want only those that were under way", got.FailedPosts, got.Posts)
	}
}

// springInstance registers an instance in ZooKeeper as Spring Cloud does, in a
// session of its own that ends with the returned func or the test.
func springInstance(t *testing.T, z *peers.ZooKeeper, service, id, addr string) (die func()) {
	t.Helper()
	conn, events, err := zk.Connect([]string{z.Addr}, 2*time.Second, zk.WithLogInfo(false))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	die = func() { once.Do(conn.Close) }
	t.Cleanup(die)
	for e := range events {
		if e.State == zk.StateHasSession {
			break
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]any{
		"name": service, "id": id, "address": host, "port": n, "sslPort": nil, "serviceType": "DYNAMIC", "registrationTimeUTC": time.Now().UnixMilli(),
		"payload": map[string]any{"@class": "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance", "id": "application-1", "name": service, "metadata": map[string]string{"instance_status": "UP"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/services", "/services/" + service} {
		if _, err := conn.Create(path, nil, 0, zk.WorldACL(zk.PermAll)); err != nil && !errors.Is(err, zk.ErrNodeExists) {
			t.Fatal(err)
		}
	}
	if _, err := conn.Create("/services/"+service+"/"+id, data, zk.FlagEphemeral, zk.WorldACL(zk.PermAll)); err != nil {
		t.Fatal(err)
	}
	return die
}

// TestZooKeeperKill: ZooKeeper dies under load and nothing fails nor disappears;
// a provider that died meanwhile is gone after the return.
func TestZooKeeperKill(t *testing.T) {
	z := peers.StartZooKeeper(t)
	mesh := testenv.Start(t, testenv.Config{ZooKeeper: z})
	a, b := echotest.Start(t, echo.Config{ID: "a", Version: "v1"}), echotest.Start(t, echo.Config{ID: "b", Version: "v1"})
	springInstance(t, z, "cart", "a", a)
	dieB := springInstance(t, z, "cart", "b", b)
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	eventually(t, "both instances arrive", uses(client, "cart", a, b))
	noneFailed(t, underLoad(t, client.Proxy, "cart", func(l *openloop.Loop) {
		z.Kill()
		eventually(t, "the loss is shown", shows(mesh, []string{"zk-main", "stale"}, "source", "list"))
		sum := openloop.Tally{Versions: map[string]int{}}
		flow(t, l, &sum, 1000)
		noneFailed(t, sum)
		if err := uses(client, "cart", a, b)(t.Context()); err != nil {
			t.Errorf("while ZooKeeper is down: %v", err)
		}
		dieB() // its session cannot be closed at the server, which is down
		z.Start()
		eventually(t, "the registry is live again", shows(mesh, []string{"zk-main", "live"}, "source", "list"))
		eventually(t, "who died meanwhile disappears", uses(client, "cart", a))
	}))
}

// TestConsulKill: the same with Consul, whose check finds the dead provider.
func TestConsulKill(t *testing.T) {
	c := peers.StartConsul(t, peers.ConsulConfig{})
	mesh := testenv.Start(t, testenv.Config{Consul: c})
	a, b := echotest.Start(t, echo.Config{ID: "a", Version: "v1"}), echotest.Start(t, echo.Config{ID: "b", Version: "v1"})
	registerInConsul(t, c, "cart", "a", a)
	registerInConsul(t, c, "cart", "b", b)
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	eventually(t, "both instances arrive", uses(client, "cart", a, b))
	noneFailed(t, underLoad(t, client.Proxy, "cart", func(l *openloop.Loop) {
		c.Kill()
		eventually(t, "the loss is shown", shows(mesh, []string{"consul-main", "stale"}, "source", "list"))
		sum := openloop.Tally{Versions: map[string]int{}}
		flow(t, l, &sum, 1000)
		noneFailed(t, sum)
		if err := uses(client, "cart", a, b)(t.Context()); err != nil {
			t.Errorf("while Consul is down: %v", err)
		}
		c.Start()
		eventually(t, "the registry is live again", shows(mesh, []string{"consul-main", "live"}, "source", "list"))
		deregisterInConsul(t, c, "b")
		eventually(t, "who leaves after the return disappears", uses(client, "cart", a))
	}))
}

func deregisterInConsul(t *testing.T, c *peers.Consul, id string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+c.Addr+"/v1/agent/service/deregister/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("deregister %s in Consul: %s", id, resp.Status)
	}
}
