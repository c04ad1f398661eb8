package snapshot

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/proxy/codec/http1"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newStore(t testing.TB, path string) *Store {
	t.Helper()
	s, err := New(Config{
		Counters: telemetry.NewRegistry(), HTTP: http1.New(), TCP: tcp.New(), Path: path,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// message reads a resource from YAML.
func message(t testing.TB, kind resource.Type, text string) proto.Message {
	t.Helper()
	m := map[resource.Type]proto.Message{
		resource.Cluster: &clusterv3.Cluster{}, resource.Endpoints: &endpointv3.ClusterLoadAssignment{},
		resource.Listener: &listenerv3.Listener{}, resource.Route: &routev3.RouteConfiguration{},
	}[kind]
	js, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(js, m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// res is a resource as it would come.
func res(t testing.TB, kind resource.Type, name, text string) Resource {
	t.Helper()
	r, err := resource.New(kind, name, message(t, kind, text))
	if err != nil {
		t.Fatal(err)
	}
	return Resource{Name: name, Version: r.Version, Body: r.Body}
}

func apply(t testing.TB, s *Store, kind resource.Type, name, text string) {
	t.Helper()
	for _, r := range s.Apply(Change{Type: kind, Updated: []Resource{res(t, kind, name, text)}}) {
		t.Fatal(r.Error())
	}
}

func refusals(t testing.TB, s *Store, kind resource.Type, name, text string) []string {
	t.Helper()
	var out []string
	for _, r := range s.Apply(Change{Type: kind, Updated: []Resource{res(t, kind, name, text)}}) {
		if r.Name != name || r.Type != kind {
			t.Errorf("refusal names %v %s, want %v %s", r.Type, r.Name, kind, name)
		}
		for i := range r.Reasons {
			out = append(out, r.Reasons[i].Error())
		}
	}
	return out
}

func eds(name string) string {
	return "{name: '" + name + "', type: EDS, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}}"
}

func cla(name string, ports ...int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster_name: '%s'\nendpoints:\n- lb_endpoints:\n", name)
	for _, p := range ports {
		fmt.Fprintf(&b, "  - {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}\n", p)
	}
	if len(ports) == 0 {
		return "{cluster_name: '" + name + "'}"
	}
	return b.String()
}

func hcm(name, rds string) string {
	return `
name: "` + name + `"
address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: x
      rds: {route_config_name: "` + rds + `", config_source: {ads: {}, resource_api_version: V3}}
      http_filters:
      - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}}
      upgrade_configs: [{upgrade_type: websocket}]
      server_header_transformation: PASS_THROUGH
      generate_request_id: false
`
}

func tcpProxy(name, clusters string) string {
	return `
name: "` + name + `"
address: {socket_address: {address: 0.0.0.0, port_value: 20880}}
bind_to_port: false
traffic_direction: OUTBOUND
filter_chains:
- filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: x
      ` + clusters + "\n"
}

func rds(name string, clusters ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name: '%s'\nvirtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n", name)
	for _, c := range clusters {
		fmt.Fprintf(&b, "  - {match: {prefix: /}, route: {cluster: '%s'}}\n", c)
	}
	return b.String()
}

func hosts(s *Store, cluster string) []string {
	c, ok := s.Cluster(cluster)
	if !ok {
		return []string{"unknown"}
	}
	out := []string{}
	for _, h := range c.Hosts() {
		out = append(out, h.Addr.String())
	}
	return out
}

func listeners(s *Store) []string {
	out := []string{}
	for name := range s.Listeners() {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func TestAListenerWaitsForItsRoutes(t *testing.T) {
	s := newStore(t, "")
	changed, stop := s.Watch()
	defer stop()
	apply(t, s, resource.Listener, "l", hcm("l", "r"))
	if got := listeners(s); len(got) != 0 {
		t.Errorf("before its routes: got %v, want none", got)
	}
	if got := s.Waiting(); got != 1 {
		t.Errorf("Waiting: got %d, want 1", got)
	}
	select {
	case <-changed:
		t.Error("watchers were told though nothing is served yet")
	default:
	}
	apply(t, s, resource.Route, "r", rds("r", "c"))
	<-changed
	l := s.Listeners()["l"]
	if l == nil || l.HTTP == nil || l.HTTP.Routes.Load() == nil || l.Addr != netip.MustParseAddrPort("127.0.0.1:8080") {
		t.Fatalf("after its routes: got %+v", l)
	}

	// New routes reach the listener without a new listener.
	was := l.HTTP.Routes.Load()
	apply(t, s, resource.Route, "r", rds("r", "c", "c"))
	if s.Listeners()["l"] != l || l.HTTP.Routes.Load() == was {
		t.Error("an update of routes: want the same listener with another table")
	}
	select {
	case <-changed:
		t.Error("an update of routes told watchers that listeners changed")
	default:
	}

	// Other routes: the old ones serve until the new ones come, and open
	// connections, which hold the old listener, follow.
	was = l.HTTP.Routes.Load()
	apply(t, s, resource.Listener, "l", hcm("l", "other"))
	if s.Listeners()["l"] != l || l.HTTP.Routes.Load() != was {
		t.Error("the listener changed before its new routes arrived")
	}
	apply(t, s, resource.Route, "other", rds("other", "c"))
	if next := s.Listeners()["l"]; next == l || next.HTTP.Routes != l.HTTP.Routes || l.HTTP.Routes.Load().Name != "other" {
		t.Error("after the new routes: want a new listener on the same pointer, which leads to them")
	}
	for _, r := range s.Held(resource.Route) {
		if r.Name == "r" {
			t.Error("routes that no listener uses are still held")
		}
	}
}

func TestWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, "")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		apply(t, s, resource.Listener, "l", hcm("l", "never"))
		apply(t, s, resource.Cluster, "c", eds("c"))
		time.Sleep(4900 * time.Millisecond)
		synctest.Wait()
		if len(s.Listeners()) != 0 || hosts(s, "c")[0] != "unknown" {
			t.Error("in force before the wait was over")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if l := s.Listeners()["l"]; l == nil || l.HTTP.Routes.Load() != nil {
			t.Error("after the wait: want the listener, without routes")
		}
		if d := cmp.Diff([]string{}, hosts(s, "c")); d != "" {
			t.Errorf("after the wait: want the cluster, without hosts:\n%s", d)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTheOldRoutesServeOnWhenTheNewOnesNeverCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, "")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		apply(t, s, resource.Cluster, "c", eds("c"))
		apply(t, s, resource.Endpoints, "c", cla("c", 1))
		apply(t, s, resource.Route, "r", rds("r", "c"))
		apply(t, s, resource.Listener, "l", hcm("l", "r"))
		old := s.Listeners()["l"]
		if old == nil || old.HTTP.Routes.Load() == nil {
			t.Fatal("no listener with routes")
		}
		apply(t, s, resource.Listener, "l", hcm("l", "late"))
		time.Sleep(5100 * time.Millisecond)
		synctest.Wait()
		l := s.Listeners()["l"]
		if l == old || l.HTTP.Routes.Load() == nil || l.HTTP.Routes.Load().Name != "r" {
			t.Error("after the wait: want the new listener with the last good routes")
		}
		apply(t, s, resource.Route, "late", rds("late", "c"))
		if got := l.HTTP.Routes.Load(); got == nil || got.Name != "late" {
			t.Error("the new routes came late and are not in force")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNoTimeForHeads(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 0, "0s": never, "3s": 3 * time.Second} {
		s := newStore(t, "")
		apply(t, s, resource.Route, "r", rds("r"))
		config := hcm("l", "r")
		if text != "" {
			config += "      request_headers_timeout: " + text + "\n"
		}
		apply(t, s, resource.Listener, "l", config)
		if got := s.Listeners()["l"].HTTP.HeaderTimeout; got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func TestRoutesWaitForNewClustersWhileOldOnesServe(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Cluster, "a", eds("a"))
	apply(t, s, resource.Endpoints, "a", cla("a", 1))
	apply(t, s, resource.Listener, "l", hcm("l", "r"))
	apply(t, s, resource.Route, "r", rds("r", "a"))
	table := s.Listeners()["l"].HTTP.Routes.Load
	first := table()
	apply(t, s, resource.Route, "r", rds("r", "b"))
	if table() != first {
		t.Error("routes to a cluster that is not there yet are in force")
	}
	apply(t, s, resource.Cluster, "b", eds("b"))
	if table() != first {
		t.Error("routes to a cluster without endpoints are in force")
	}
	apply(t, s, resource.Endpoints, "b", cla("b", 2))
	if table() == first {
		t.Error("routes are not in force though their cluster has endpoints")
	}
}

func TestClustersAreUpdatedInPlace(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Cluster, "c", eds("c"))
	if got := hosts(s, "c")[0]; got != "unknown" {
		t.Errorf("before its endpoints: got %v, want it unknown", got)
	}
	apply(t, s, resource.Endpoints, "c", cla("c", 1, 2))
	c, ok := s.Cluster("c")
	if !ok || len(c.Hosts()) != 2 {
		t.Fatalf("after its endpoints: got %v", hosts(s, "c"))
	}
	kept := c.Hosts()[1]
	apply(t, s, resource.Endpoints, "c", cla("c", 2, 3))
	apply(t, s, resource.Cluster, "c", "{name: c, type: EDS, connect_timeout: 3s, lb_policy: RANDOM}")
	again, _ := s.Cluster("c")
	if again != c || c.Hosts()[0] != kept || c.Settings().ConnectTimeout != 3*time.Second {
		t.Error("an update made a new cluster or host, or did not take")
	}
	// Endpoints under another name: the old ones serve until the new ones come.
	apply(t, s, resource.Cluster, "c", "{name: c, type: EDS, connect_timeout: 4s, eds_cluster_config: {service_name: other}}")
	if d := cmp.Diff([]string{"127.0.0.1:2", "127.0.0.1:3"}, hosts(s, "c")); d != "" || c.Settings().ConnectTimeout != 3*time.Second {
		t.Errorf("before the new endpoints (-want +got):\n%s", d)
	}
	apply(t, s, resource.Endpoints, "other", cla("other", 9))
	if d := cmp.Diff([]string{"127.0.0.1:9"}, hosts(s, "c")); d != "" {
		t.Errorf("after the new endpoints (-want +got):\n%s", d)
	}
}

func TestEndpointsOfAllLocalitiesAndPrioritiesCount(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Cluster, "c", eds("c"))
	apply(t, s, resource.Endpoints, "c", `
cluster_name: c
endpoints:
- locality: {region: r1, zone: a}
  lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 1}}}, load_balancing_weight: 3, metadata: {filter_metadata: {isthmus: {workload: cart-1}}}}]
- locality: {region: r1, zone: b}
  lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 1}}}, health_status: DRAINING}]
- priority: 1
  lb_endpoints: [{endpoint: {address: {socket_address: {address: '::1', port_value: 1}}}}]
`)
	c, _ := s.Cluster("c")
	var got []string
	for _, h := range c.Hosts() {
		e := h.Endpoint()
		got = append(got, fmt.Sprint(e.Addr, " ", e.Weight, " ", e.Health, " P", e.Priority, " ", e.Locality, " ", e.Workload))
	}
	want := []string{"10.0.0.1:1 3 healthy P0 r1/a cart-1", "10.0.0.2:1 1 unhealthy P0 r1/b ", "[::1]:1 1 healthy P1  "}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("hosts (-want +got):\n%s", d)
	}
}

func TestRemovals(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Cluster, "c", eds("c"))
	apply(t, s, resource.Endpoints, "c", cla("c", 1))
	apply(t, s, resource.Listener, "l", hcm("l", "r"))
	apply(t, s, resource.Route, "r", rds("r", "c"))

	s.Apply(Change{Type: resource.Endpoints, Removed: []string{"c"}})
	if got := hosts(s, "c"); len(got) != 1 {
		t.Errorf("endpoints removed while their cluster stays: got %v, want them kept", got)
	}
	s.Apply(Change{Type: resource.Route, Removed: []string{"r"}})
	if s.Listeners()["l"].HTTP.Routes.Load() == nil {
		t.Error("routes removed while their listener stays: want them kept")
	}
	cluster, _ := s.Cluster("c")
	s.Apply(Change{Type: resource.Cluster, Removed: []string{"c"}})
	if cluster.Known() || len(cluster.Hosts()) != 0 {
		t.Error("a removed cluster: want it unknown, without hosts")
	}
	apply(t, s, resource.Cluster, "c", eds("c"))
	apply(t, s, resource.Endpoints, "c", cla("c", 2))
	if again, _ := s.Cluster("c"); again != cluster {
		t.Error("a cluster that comes back while routes name it: want the same, or they would not reach it")
	}
	s.Apply(Change{Type: resource.Listener, Removed: []string{"l"}})
	if got := listeners(s); len(got) != 0 {
		t.Errorf("listeners: got %v, want none", got)
	}
	s.Apply(Change{Type: resource.Cluster, Removed: []string{"c"}})
	if len(s.clusters) != 0 || len(s.unknown) != 0 || len(s.routes) != 0 || len(s.endpoints) != 0 {
		t.Errorf("something is left: %d clusters, %d unknown, %d routes, %d endpoints", len(s.clusters), len(s.unknown), len(s.routes), len(s.endpoints))
	}

	// What the control plane does not have ends waits at once.
	apply(t, s, resource.Cluster, "c", eds("c"))
	s.Apply(Change{Type: resource.Endpoints, Removed: []string{"c"}})
	if d := cmp.Diff([]string{}, hosts(s, "c")); d != "" {
		t.Errorf("a cluster without endpoints (-want +got):\n%s", d)
	}
	apply(t, s, resource.Listener, "l", hcm("l", "r"))
	s.Apply(Change{Type: resource.Route, Removed: []string{"r"}})
	if got := listeners(s); len(got) != 1 {
		t.Errorf("a listener whose routes do not exist: got %v, want it", got)
	}
}

func TestTCPListeners(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Listener, "h:20880", tcpProxy("h:20880", "weighted_clusters: {clusters: [{name: a, weight: 9}, {name: b, weight: 1}]}"))
	if len(s.Listeners()) != 0 {
		t.Error("in force before its clusters")
	}
	for _, name := range []string{"a", "b"} {
		apply(t, s, resource.Cluster, name, eds(name))
		apply(t, s, resource.Endpoints, name, cla(name, 1))
	}
	l := s.Listeners()["h:20880"]
	if l == nil || !l.OnDemand || l.TCP == nil || len(l.TCP.Destinations) != 2 || l.TCP.Destinations[0].Weight != 9 || l.Addr.Port() != 20880 {
		t.Fatalf("got %+v", l)
	}
}

func TestTheLastGoodVersionServesOn(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Cluster, "c", eds("c"))
	apply(t, s, resource.Endpoints, "c", cla("c", 1))
	bad := res(t, resource.Endpoints, "c", "{cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /x}}}}]}]}")
	good := res(t, resource.Endpoints, "d", cla("d", 5))
	refused := s.Apply(Change{Type: resource.Endpoints, Updated: []Resource{bad, good, {Name: "e", Body: []byte{0xff}}}})
	if len(refused) != 2 {
		t.Fatalf("got %d refusals, want 2", len(refused))
	}
	if got, want := refused[0].Error(), "EDS c: endpoints[0].lb_endpoints[0].endpoint.address.pipe: not implemented"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := refused[1].Error(); !strings.HasPrefix(got, "EDS e: not a envoy.config.endpoint.v3.ClusterLoadAssignment: ") {
		t.Errorf("got %s", got)
	}
	if d := cmp.Diff([]string{"127.0.0.1:1"}, hosts(s, "c")); d != "" {
		t.Errorf("hosts (-want +got):\n%s", d)
	}
	if got := len(s.Rejections()); got != 2 {
		t.Errorf("Rejections: got %d, want 2", got)
	}
	apply(t, s, resource.Endpoints, "c", cla("c", 1))
	if got := len(s.Rejections()); got != 1 {
		t.Errorf("Rejections after the good version came again: got %d, want 1", got)
	}
}

func TestWhatIsNotImplementedIsRefusedByPath(t *testing.T) {
	chain := "filter_chains[0].filters[0].typed_config."
	for _, tt := range []struct {
		name string
		kind resource.Type
		res  string
		text string
		want []string
	}{
		{"cluster", resource.Cluster, "c",
			"{name: d, type: LOGICAL_DNS, lb_policy: MAGLEV, connect_timeout: 0s, outlier_detection: {}}",
			[]string{"outlier_detection: not implemented"}},
		{"cluster values", resource.Cluster, "c",
			"{name: d, type: LOGICAL_DNS, lb_policy: MAGLEV, connect_timeout: 0s, common_lb_config: {healthy_panic_threshold: {value: 101}}, circuit_breakers: {thresholds: [{max_connections: 0}]}}",
			[]string{`name: "d", but the resource is named "c"`, "circuit_breakers.thresholds[0].max_connections: 0 would refuse everything, want at least 1",
				"lb_policy: MAGLEV is not implemented", "connect_timeout: 0s, want more", "common_lb_config.healthy_panic_threshold: 101, want 0 to 100", "type: LOGICAL_DNS is not implemented"}},
		{"HTTP/2 upstream", resource.Cluster, "c",
			`{name: c, type: EDS, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}}`,
			[]string{`typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].explicit_http_config.http2_protocol_options: not implemented`}},
		{"static cluster", resource.Cluster, "c",
			"{name: c, type: STATIC, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: example.com, port_value: 1}}}}]}]}}",
			[]string{`load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: "example.com", want an IP address`}},
		{"ring", resource.Cluster, "c", "{name: c, type: EDS, lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 8388608, maximum_ring_size: 1, hash_function: MURMUR_HASH_2}}",
			[]string{"ring_hash_lb_config.hash_function: MURMUR_HASH_2 is not implemented", "ring_hash_lb_config.maximum_ring_size: 1, want at least minimum_ring_size and at most 8388608"}},
		{"endpoints", resource.Endpoints, "c", "{cluster_name: c, policy: {overprovisioning_factor: 100}, endpoints: [{priority: 129, lb_endpoints: [{load_balancing_weight: 0, endpoint: {address: {socket_address: {address: 1.2.3.4, port_value: 70000, protocol: UDP}}}}]}]}",
			[]string{"policy.overprovisioning_factor: 100, want 140", "endpoints[0].priority: 129, want at most 128",
				"endpoints[0].lb_endpoints[0].endpoint.address.socket_address.protocol: UDP is not implemented",
				"endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: 70000, want at most 65535",
				"endpoints[0].lb_endpoints[0].load_balancing_weight: 0, want at least 1"}},
		{"listener fields", resource.Listener, "l", "{name: l, listener_filters: [{name: x}], use_original_dst: true}",
			[]string{"use_original_dst: not implemented", "listener_filters: not implemented"}},
		{"listener without chains", resource.Listener, "l", "{name: l, address: {socket_address: {address: 1.2.3.4, port_value: 0}}}",
			[]string{"address.socket_address.port_value: 0, want a port", "filter_chains: 0 of them, want one"}},
		{"another filter", resource.Listener, "l",
			`{name: l, address: {socket_address: {address: 1.2.3.4, port_value: 1}}, filter_chains: [{filters: [{name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}]}`,
			[]string{"filter_chains[0].filters[0].typed_config: want envoy.filters.network.http_connection_manager or tcp_proxy"}},
		{"inline routes", resource.Listener, "l", strings.Replace(hcm("l", "x"), `rds: {route_config_name: "x", config_source: {ads: {}, resource_api_version: V3}}`, "route_config: {virtual_hosts: [{name: v, domains: []}]}", 1),
			[]string{chain + "route_config.virtual_hosts[0].domains: is empty"}},
		{"hcm values", resource.Listener, "l", hcm("l", "") + "      codec_type: HTTP2\n      max_request_headers_kb: 0\n      access_log: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /tmp/x}}]\n",
			[]string{chain + "rds.route_config_name: is empty", chain + "codec_type: HTTP2 is not implemented",
				chain + "max_request_headers_kb: 0, want 1 to 60", chain + "access_log[0].typed_config: path /tmp/x, want /dev/stdout"}},
		{"a head larger than the buffer", resource.Listener, "l", hcm("l", "r") + "      max_request_headers_kb: 61\n",
			[]string{chain + "max_request_headers_kb: 61, want 1 to 60"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := refusals(t, newStore(t, ""), tt.kind, tt.res, tt.text)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("reasons (-want +got):\n%s", d)
			}
		})
	}
}

func TestWhatWasAcceptedSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "data", "snapshot.bin")
		s := newStore(t, path)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		apply(t, s, resource.Cluster, "c", eds("c"))
		apply(t, s, resource.Endpoints, "c", cla("c", 1))
		apply(t, s, resource.Listener, "l", hcm("l", "r"))
		apply(t, s, resource.Route, "r", rds("r", "c"))
		time.Sleep(time.Second)
		synctest.Wait()
		written, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("a second after the change: %v", err)
		}
		s.Apply(Change{Type: resource.Endpoints, Updated: []Resource{res(t, resource.Endpoints, "c", "{cluster_name: x}")}}) // refused
		apply(t, s, resource.Endpoints, "c", cla("c", 2))
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		next := newStore(t, path)
		n, err := next.Load()
		if err != nil || n != 4 {
			t.Fatalf("Load: got %d, %v; want 4 resources", n, err)
		}
		if d := cmp.Diff([]string{"127.0.0.1:2"}, hosts(next, "c")); d != "" {
			t.Errorf("hosts (-want +got):\n%s", d)
		}
		if next.Listeners()["l"] == nil || next.Listeners()["l"].HTTP.Routes.Load() == nil {
			t.Error("the listener does not serve")
		}
		for _, kind := range loadOrder {
			if len(next.Held(kind)) != 1 {
				t.Errorf("%v: got %d held, want 1", kind, len(next.Held(kind)))
			}
		}

		// Damage is noticed and nothing of it used.
		for _, damage := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:len(b)-1] },
			func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			func(b []byte) []byte { return nil },
			func(b []byte) []byte { return []byte("something else") },
		} {
			if err := os.WriteFile(path, damage(slices.Clone(written)), 0o600); err != nil {
				t.Fatal(err)
			}
			broken := newStore(t, path)
			if n, err := broken.Load(); err == nil || n != 0 {
				t.Errorf("a damaged file: got %d resources, %v", n, err)
			}
		}
		if n, err := newStore(t, path+".none").Load(); n != 0 || err != nil {
			t.Errorf("no file: got %d, %v", n, err)
		}
	})
}

func TestAFullDiskIsShownAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where a folder should be
			t.Fatal(err)
		}
		s := newStore(t, filepath.Join(dir, "snapshot.bin"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		apply(t, s, resource.Cluster, "c", eds("c"))
		time.Sleep(time.Second)
		synctest.Wait()
		if s.SaveError() == nil {
			t.Error("SaveError: got none")
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retryDelay)
		synctest.Wait()
		if err := s.SaveError(); err != nil {
			t.Errorf("after the disk is back: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestConfigDumpHasEnvoysShape(t *testing.T) {
	s := newStore(t, "")
	apply(t, s, resource.Cluster, "c", eds("c"))
	apply(t, s, resource.Endpoints, "c", cla("c", 1))
	apply(t, s, resource.Cluster, "cold", eds("cold"))
	refusals(t, s, resource.Cluster, "c", "{name: c, type: EDS, outlier_detection: {}}")
	d := s.dump()
	active, warming := d.clusters.GetDynamicActiveClusters(), d.clusters.GetDynamicWarmingClusters()
	if len(active) != 1 || active[0].GetErrorState().GetDetails() != "outlier_detection: not implemented" || active[0].GetCluster() == nil {
		t.Errorf("active clusters: got %v", active)
	}
	if len(warming) != 1 {
		t.Errorf("warming clusters: got %v", warming)
	}
	data, err := s.Dump(nil)
	if err != nil || !strings.Contains(string(data), "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump") {
		t.Errorf("Dump: %v\n%s", err, data)
	}
	var b strings.Builder
	if err := s.WriteClusters(&b); err != nil || !strings.Contains(b.String(), "c::127.0.0.1:1::health_flags::healthy\n") || !strings.Contains(b.String(), "cold::unknown\n") {
		t.Errorf("WriteClusters: %v\n%s", err, b.String())
	}
}

func FuzzApply(f *testing.F) {
	for _, seed := range []struct {
		kind resource.Type
		text string
	}{
		{resource.Cluster, eds("it")},
		{resource.Cluster, "{name: it, type: STATIC, lb_policy: RING_HASH, load_assignment: {cluster_name: it}}"},
		{resource.Endpoints, cla("it", 1, 2)},
		{resource.Listener, hcm("it", "r")},
		{resource.Listener, tcpProxy("it", "cluster: c")},
		{resource.Route, rds("it", "c")},
	} {
		f.Add(byte(seed.kind), res(f, seed.kind, "it", seed.text).Body)
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		s := newStore(t, "")
		k := resource.Type(kind % resource.NumTypes)
		refused := s.Apply(Change{Type: k, Updated: []Resource{{Name: "it", Version: "1", Body: body}}})
		if held := len(s.Held(k)); held+len(refused) != 1 {
			t.Fatalf("%d held and %d refused, want one of them", held, len(refused))
		}
		if len(refused) > 0 && len(refused[0].Reasons) == 0 {
			t.Fatal("refused without a reason")
		}
		if _, err := s.Dump(nil); err != nil && len(refused) == 0 {
			t.Fatal(err)
		}
		s.Apply(Change{Type: k, Removed: []string{"it"}})
	})
}

func FuzzDecodeFile(f *testing.F) {
	var changes [resource.NumTypes][]Resource
	changes[resource.Cluster] = []Resource{{Name: "c", Version: "1", Body: []byte("body")}}
	f.Add(encodeFile(&changes))
	f.Add([]byte(fileMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeFile(data)
		if err != nil {
			return
		}
		again, err := decodeFile(encodeFile(&got))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if d := cmp.Diff(got, again); d != "" {
			t.Fatalf("round trip (-want +got):\n%s", d)
		}
	})
}

func BenchmarkApplyEndpoints(b *testing.B) {
	s := newStore(b, "")
	var ports []int
	for i := range 100 {
		ports = append(ports, i+1)
	}
	for i := range 200 {
		name := fmt.Sprintf("c%d", i)
		apply(b, s, resource.Cluster, name, eds(name))
		apply(b, s, resource.Endpoints, name, cla(name, ports...))
	}
	versions := [2]Resource{res(b, resource.Endpoints, "c7", cla("c7", ports...)), res(b, resource.Endpoints, "c7", cla("c7", ports[1:]...))}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		if refused := s.Apply(Change{Type: resource.Endpoints, Updated: versions[i%2 : i%2+1]}); refused != nil {
			b.Fatal(refused[0].Error())
		}
	}
}
