package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/proxy"
	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
	"github.com/isthmus-mesh/isthmus/proxy/codec/http1"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 10 * time.Second

// await polls until done.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			t.Fatalf("gave up waiting until %s", what)
		case <-tick.C:
		}
	}
}

// freeAddr is an address that was free a moment ago.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sidecar is a running proxy.
type sidecar struct {
	*proxy.Proxy
	admin, ready string // host:port
	stop         func() // and wait
}

// startSidecar runs a proxy whose control plane does not answer, unless edit says
// otherwise.
func startSidecar(t *testing.T, edit func(*bootstrap.Config)) *sidecar {
	t.Helper()
	b := bootstrap.Defaults()
	b.MeshServer = []netip.AddrPort{freeAddr(t)}
	b.DataDir = t.TempDir()
	b.DrainTime = 2 * time.Second
	if edit != nil {
		edit(&b)
	}
	admin, ready := listen(t), listen(t)
	cfg := proxy.Config{
		Bootstrap: b, Admin: admin, Readiness: ready,
		HTTP: http1.New(), TCP: tcp.New(),
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Version:     "test",
		Log:         slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Level:       new(slog.LevelVar),
	}
	if b.AccessLog.Path != "" {
		cfg.AccessLog = proxy.OpenLog(b.AccessLog.Path, io.Discard)
	}
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop := func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return &sidecar{p, admin.Addr().String(), ready.Addr().String(), stop}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func (s *sidecar) apply(t *testing.T, kind resource.Type, messages ...proto.Message) {
	t.Helper()
	ch := snapshot.Change{Type: kind}
	for _, m := range messages {
		name := ""
		for _, field := range []string{"name", "cluster_name"} {
			if fd := m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)); fd != nil {
				name = m.ProtoReflect().Get(fd).String()
				break
			}
		}
		r, err := resource.New(kind, name, m)
		if err != nil {
			t.Fatal(err)
		}
		ch.Updated = append(ch.Updated, snapshot.Resource{Name: r.Name, Version: r.Version, Body: r.Body})
	}
	for _, refused := range s.Store().Apply(ch) {
		t.Fatalf("refused: %v", refused.Error())
	}
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

var ads = &corev3.ConfigSource{
	ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	ResourceApiVersion:    corev3.ApiVersion_V3,
}

func httpListener(t *testing.T, name string, at netip.AddrPort, onDemand bool) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, Address: address(at), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, &hcmv3.HttpConnectionManager{
				StatPrefix:        "x",
				RouteSpecifier:    &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads, RouteConfigName: name}},
				GenerateRequestId: wrapperspb.Bool(false),
				HttpFilters: []*hcmv3.HttpFilter{{
					Name:       "envoy.filters.http.router",
					ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(t, &routerv3.Router{SuppressEnvoyHeaders: true})},
				}},
			})},
		}}}},
	}
	if onDemand {
		l.BindToPort = wrapperspb.Bool(false)
	}
	return l
}

func tcpListener(t *testing.T, name string, at netip.AddrPort, cluster string) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name, Address: address(at), BindToPort: wrapperspb.Bool(false),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.tcp_proxy",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, &tcpv3.TcpProxy{
				StatPrefix: "x", ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster},
			})},
		}}}},
	}
}

func edsCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, ConnectTimeout: durationpb.New(2 * time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
	}
}

func assignment(name string, hosts ...netip.AddrPort) *endpointv3.ClusterLoadAssignment {
	m := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	for _, h := range hosts {
		m.Endpoints[0].LbEndpoints = append(m.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(h)}},
		})
	}
	return m
}

func routes(name, cluster string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}, PrefixRewrite: "/rewritten/",
			}},
		}},
	}}}
}

func backend(t *testing.T, id string) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("backend: %v", err)
		}
		fmt.Fprintf(w, "%s %s %s %s", id, r.Method, r.URL.Path, body)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).AddrPort()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func bound(s *sidecar, name string) func() bool {
	return func() bool {
		for _, l := range s.Status() {
			if l.Name == name && l.Bound {
				return true
			}
		}
		return false
	}
}

func TestServesWhatTheSnapshotSays(t *testing.T) {
	data := t.TempDir()
	edit := func(b *bootstrap.Config) {
		b.DataDir = data
		b.Egress = []bootstrap.Egress{{Host: "cart", Port: 18080}, {Host: "raw", Port: 18081}}
	}
	s := startSidecar(t, edit)
	one, two := backend(t, "one"), backend(t, "two")
	front := freeAddr(t)

	if code, body := get(t, "http://"+s.ready+"/ready"); code != 503 || !strings.HasPrefix(body, "NOT READY") {
		t.Errorf("/ready before any configuration: got %d %q, want 503 NOT READY", code, body)
	}
	s.apply(t, resource.Cluster, edsCluster("outbound|18080||cart"))
	s.apply(t, resource.Endpoints, assignment("outbound|18080||cart", one))
	s.apply(t, resource.Listener,
		httpListener(t, "front", front, false),
		httpListener(t, "cart:18080", netip.MustParseAddrPort("0.0.0.0:18080"), true),
		tcpListener(t, "raw:18081", netip.MustParseAddrPort("0.0.0.0:18081"), "outbound|18080||cart"))
	s.apply(t, resource.Route, routes("front", "outbound|18080||cart"), routes("cart:18080", "outbound|18080||cart"))

	await(t, "front is bound", bound(s, "front"))
	await(t, "cart is bound", bound(s, "cart:18080"))
	await(t, "raw is bound", bound(s, "raw:18081"))
	if code, body := get(t, "http://"+front.String()+"/x"); code != 200 || body != "one GET /rewritten/x " {
		t.Errorf("through front: got %d %q", code, body)
	}
	var cart, raw netip.AddrPort
	for _, l := range s.Status() {
		switch l.Name {
		case "cart:18080":
			cart = l.Addr
		case "raw:18081":
			raw = l.Addr
		}
	}
	if code, body := get(t, "http://"+cart.String()+"/y"); code != 200 || body != "one GET /rewritten/y " {
		t.Errorf("through cart's address %v: got %d %q", cart, code, body)
	}
	if code, body := get(t, "http://"+raw.String()+"/z"); code != 200 || body != "one GET /z " {
		t.Errorf("through raw's address %v: got %d %q", raw, code, body)
	}

	s.apply(t, resource.Endpoints, assignment("outbound|18080||cart", two))
	if code, body := get(t, "http://"+front.String()+"/x"); code != 200 || body != "two GET /rewritten/x " {
		t.Errorf("after the endpoint moved: got %d %q", code, body)
	}

	// A second sidecar on the same folder serves while the control plane is away,
	// at the same addresses.
	s.stop()
	s = startSidecar(t, edit)
	await(t, "front is bound again", bound(s, "front"))
	await(t, "cart is bound again", bound(s, "cart:18080"))
	if code, body := get(t, "http://"+front.String()+"/x"); code != 200 || body != "two GET /rewritten/x " {
		t.Errorf("after a restart: got %d %q", code, body)
	}
	if code, body := get(t, "http://"+cart.String()+"/y"); code != 200 || body != "two GET /rewritten/y " {
		t.Errorf("cart's address after a restart: got %d %q", code, body)
	}
	await(t, "raw is bound again", bound(s, "raw:18081"))
	if code, body := get(t, "http://"+s.ready+"/ready"); code != 200 || !strings.HasPrefix(body, "DEGRADED\ncontrol plane: ") {
		t.Errorf("/ready without a control plane: got %d %q, want 200 DEGRADED", code, body)
	}

	_, dump := get(t, "http://"+s.admin+"/config_dump")
	var parsed struct {
		Configs []struct {
			Type string `json:"@type"`
		} `json:"configs"`
	}
	if err := json.Unmarshal([]byte(dump), &parsed); err != nil {
		t.Fatalf("/config_dump: %v\n%s", err, dump)
	}
	var types []string
	for _, c := range parsed.Configs {
		types = append(types, strings.TrimPrefix(c.Type, "type.googleapis.com/envoy.admin.v3."))
	}
	if got, want := strings.Join(types, " "), "BootstrapConfigDump ClustersConfigDump ListenersConfigDump RoutesConfigDump EndpointsConfigDump"; got != want {
		t.Errorf("/config_dump: got %s, want %s", got, want)
	}
	_, metrics := get(t, "http://"+s.admin+"/stats/prometheus")
	for _, want := range []string{
		`downstream_request_total{direction="outbound",port="18080"} 1`,
		`upstream_request_total{cluster="outbound|18080||cart",service="cart"} 2`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/stats/prometheus lacks %s", want)
		}
	}
}
