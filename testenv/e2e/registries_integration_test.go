//go:build integration

package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

const canary = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec:
  host: %[1]s
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s}
spec:
  hosts: [%[1]s]
  http:
  - route:
    - {destination: {host: %[1]s, subset: v1}, weight: 90}
    - {destination: {host: %[1]s, subset: v2}, weight: 10}
`

// registerInConsul registers a service as an operator would; meta is key=value.
func registerInConsul(t *testing.T, c *peers.Consul, service, id, addr string, meta ...string) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	pairs := map[string]string{}
	for _, m := range meta {
		key, value, _ := strings.Cut(m, "=")
		pairs[key] = value
	}
	body, err := json.Marshal(map[string]any{"ID": id, "Name": service, "Address": host, "Port": n, "Meta": pairs})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+c.Addr+"/v1/agent/service/register", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("register %s in Consul: %s", id, resp.Status)
	}
}

// envoyInPlace starts an Envoy with the bootstrap that meshctl writes for it, and
// returns the address of its explicit proxy.
func envoyInPlace(t *testing.T, m *testenv.Mesh, more ...string) (proxy string) {
	t.Helper()
	_, proxy = startEnvoy(t, m, "web", asWritten, more...)
	return proxy
}

// TestRegistriesThroughTwoSidecars: a Spring Cloud provider that registered
// itself in ZooKeeper and an HTTP service in Consul are reached through their
// sidecars by a client that only has an HTTP proxy set, through the sidecar and
// through an Envoy in its place, with a canary rule on them.
func TestRegistriesThroughTwoSidecars(t *testing.T) {
	zk := peers.StartZooKeeper(t)
	consul := peers.StartConsul(t, peers.ConsulConfig{})
	mesh := testenv.Start(t, testenv.Config{ZooKeeper: zk, Consul: consul})

	const spring, orders = "greeting-provider", "orders"
	var inbounds []string
	for _, v := range []string{"v1", "v2"} {
		app := peers.StartSpring(t, peers.SpringConfig{Name: spring, ID: "spring-" + v, ZooKeeper: zk.Addr})
		s := mesh.Sidecar(testenv.Workload{Name: "spring-" + v, App: spring, Version: v, Port: app.Addr})
		order := echotest.Start(t, echo.Config{ID: "order-" + v, Version: v})
		registerInConsul(t, consul, orders, "order-"+v, order)
		o := mesh.Sidecar(testenv.Workload{Name: "order-" + v, App: orders, Version: v, Port: order})
		inbounds = append(inbounds, s.Inbound, o.Inbound)
	}
	eventually(t, "endpoints are joined with their sidecars", shows(mesh, []string{inbounds[0], inbounds[2], "zk-main"}, "service", "show", spring))
	eventually(t, "endpoints are joined with their sidecars", shows(mesh, []string{inbounds[1], inbounds[3], "consul-main"}, "service", "show", orders))

	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	for name, proxy := range map[string]string{"sidecar": client.Proxy, "Envoy": envoyInPlace(t, mesh)} {
		t.Run("through the "+name, func(t *testing.T) {
			c := caller(t, proxy)
			eventually(t, "the Spring provider answers", answers(c, "http://"+spring+"/sayHello?name=mesh", "hello mesh from spring-"))
			eventually(t, "the Consul service answers", answers(c, "http://"+orders+"/list", `"path":"/list"`))
			if status, _, err := get(t.Context(), c, "http://nobody/"); err != nil || status != http.StatusNotFound {
				t.Errorf("an unknown host gives %d, %v, want 404", status, err)
			}
		})
	}

	mesh.Apply(fmt.Sprintf(canary, spring) + "---" + fmt.Sprintf(canary, orders))
	eventually(t, "the rule is in force", shows(mesh, []string{"6 of 6"}, "rule", "get", "virtualservice/default/"+spring))
	c := caller(t, client.Proxy)
	for url, names := range map[string][]string{
		"http://" + spring + "/sayHello?name=mesh": {"from spring-v1", "from spring-v2"},
		"http://" + orders + "/":                   {"order-v1", "order-v2"},
	} {
		got := split(t, c, url, 400, names...)
		if v1 := got[names[0]]; v1 < 330 || v1 > 390 || v1+got[names[1]] != 400 {
			t.Errorf("%s: split %v of 400, want about 360 to 40", url, got)
		}
	}
}

// TestDubboThroughTwoSidecars: a Dubbo 3 consumer, pointed at its sidecar's
// loopback address, calls a Dubbo 3 provider that registered itself in ZooKeeper,
// through two sidecars as TCP, and the same with an Envoy at the consumer's side.
func TestDubboThroughTwoSidecars(t *testing.T) {
	zk := peers.StartZooKeeper(t)
	mesh := testenv.Start(t, testenv.Config{ZooKeeper: zk})
	provider := peers.StartDubboProvider(t, peers.DubboConfig{Release: peers.Dubbo3, ZooKeeper: zk.Addr, ID: "p1"})
	beside := mesh.Sidecar(testenv.Workload{Name: "greeting", App: "greeting", Port: provider.Addr, Protocol: "dubbo"})
	eventually(t, "the provider is joined with its sidecar", shows(mesh, []string{beside.Inbound, provider.Addr}, "service", "show", peers.DubboInterface))

	const address, envoyAddress = "127.64.7.1", "127.64.7.2"
	mesh.Sidecar(testenv.Workload{Name: "web", App: "web", Egress: []string{peers.DubboInterface + ":20880@" + address}})
	envoyInPlace(t, mesh, "--egress", fmt.Sprintf("host=%s,port=20880,address=%s", peers.DubboInterface, envoyAddress))
	for name, at := range map[string]string{"sidecar": address, "Envoy": envoyAddress} {
		t.Run("through the "+name, func(t *testing.T) {
			// Dubbo takes every host that begins with "127." for the machine's
			// own address and dials that instead: the address needs a name.
			hosts := filepath.Join(t.TempDir(), "hosts")
			if err := os.WriteFile(hosts, []byte(at+" greeting.mesh\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			consumer := peers.StartDubboConsumer(t, peers.DubboConfig{
				Release: peers.Dubbo3, URL: "dubbo://greeting.mesh:20880", Properties: []string{"jdk.net.hosts.file=" + hosts},
			})
			eventually(t, "the call is answered", answers(http.DefaultClient, "http://"+consumer.Addr+"/?name=mesh", "hello mesh from p1"))
		})
	}
	eventually(t, "the calls went through the provider's sidecar", answers(http.DefaultClient, "http://"+beside.Admin+"/stats/prometheus", "downstream_connection_active{direction=\"inbound\""))
}
