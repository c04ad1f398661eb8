package manage_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/grpcreflect/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store/sqlite"
)

func TestNewReportsEveryMistake(t *testing.T) {
	open, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	_, err = manage.New(manage.Config{Listener: open})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"Store is missing", "Catalog is missing", "Proxies is missing", "Log is missing", "listen on 127.0.0.1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to say %q", err, want)
		}
	}
}

func post(t *testing.T, m *mesh, path, body string, header map[string]string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		if k == "Host" {
			req.Host = v
		} else {
			req.Header.Set(k, v)
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

const statusPath = "/isthmus.mesh.v1.StatusService/Get"

func TestJSONByPlainHTTP(t *testing.T) {
	m := start(t, nil)
	code, body := post(t, m, statusPath, "{}", nil)
	var got struct {
		Version, DataDir string
		Roles            []string
		Started          time.Time
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	if got.Version != "v1.2.3" || got.DataDir != "/data" || !slices.Equal(got.Roles, []string{"xds", "api"}) || time.Since(got.Started) > time.Hour {
		t.Errorf("got %+v", got)
	}
	code, body = post(t, m, "/isthmus.mesh.v1.RuleService/Get", `{"rule":"virtualservice/none"}`, nil)
	if code != http.StatusNotFound || !strings.Contains(body, `"code":"not_found"`) || !strings.Contains(body, "virtualservice/default/none") {
		t.Errorf("%d %s, want 404 that names the rule", code, body)
	}
	code, body = post(t, m, "/isthmus.mesh.v1.RuleService/Get", `{"ruel":"x"}`, nil)
	if code != http.StatusBadRequest && code != http.StatusNotFound {
		t.Errorf("unknown key: %d %s", code, body)
	}
}

func TestGRPCAndReflectionOverPlainHTTP2(t *testing.T) {
	m := start(t, nil)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: p}
	defer transport.CloseIdleConnections()
	for _, option := range []connecthttp.Option{connecthttp.WithGRPC(), connecthttp.WithGRPCWeb()} {
		cc := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, m.url, option))
		got, err := api.NewStatusServiceClient(cc).Get(t.Context(), &api.GetStatusRequest{})
		if err != nil || got.Version != "v1.2.3" {
			t.Errorf("got %v, %v", got, err)
		}
		_, err = api.NewRuleServiceClient(cc).Apply(t.Context(), &api.ApplyRequest{Yaml: "kind: Nonsense", Author: "ada"})
		wantCode(t, err, connect.CodeInvalidArgument, "Nonsense")
		if len(api.Problems(err)) == 0 {
			t.Error("no problems in the error's details")
		}
	}
	cc := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, m.url, connecthttp.WithGRPC()))
	stream := grpcreflect.NewClient(cc).NewStream(t.Context())
	names, err := stream.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{api.RuleServiceName, api.CatalogServiceName, api.ProxyServiceName, api.WorkloadServiceName, api.StatusServiceName} {
		if !slices.Contains(names, protoreflect.FullName(want)) {
			t.Errorf("reflection lists %v, want %s", names, want)
		}
	}
	if err := stream.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestWebPagesAreKeptOut(t *testing.T) {
	m := start(t, func(c *manage.Config) { c.Hosts = []string{"mesh.example"} })
	own := strings.TrimPrefix(m.url, "http://")
	for _, tt := range []struct {
		name   string
		header map[string]string
		want   int
	}{
		{"a program", nil, 200},
		{"localhost", map[string]string{"Host": "localhost:15080"}, 200},
		{"IPv6 loopback", map[string]string{"Host": "[::1]:15080"}, 200},
		{"a configured name", map[string]string{"Host": "MESH.example"}, 200},
		{"the console's own page", map[string]string{"Origin": m.url}, 200},
		{"a rebound name", map[string]string{"Host": "evil.example:15080"}, 403},
		{"a name that starts like loopback", map[string]string{"Host": "127.0.0.1.evil.example"}, 403},
		{"another origin", map[string]string{"Origin": "http://evil.example"}, 403},
		{"an origin on another port", map[string]string{"Origin": "http://127.0.0.1:1"}, 403},
		{"an opaque origin", map[string]string{"Origin": "null"}, 403},
		{"a cross-site fetch", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"no host", map[string]string{"Host": "."}, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if code, body := post(t, m, statusPath, "{}", tt.header); code != tt.want {
				t.Errorf("%d %s, want %d (server is %s)", code, body, tt.want, own)
			}
		})
	}
	if code, _ := post(t, m, statusPath, "{}", map[string]string{"Content-Type": "text/plain"}); code != http.StatusUnsupportedMediaType {
		t.Errorf("a form's content type: %d, want 415", code)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	m := start(t, nil)
	_, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: strings.Repeat("#", 3<<20), Author: "ada"})
	if c := connect.CodeOf(err); c != connect.CodeResourceExhausted && c != connect.CodeInvalidArgument {
		t.Errorf("3 MiB: %v, want it refused for its size", err)
	}
	code, body := post(t, m, statusPath, strings.Repeat(" ", 3<<20), nil)
	if code < 400 {
		t.Errorf("3 MiB of blanks: %d %s, want it refused", code, body[:min(len(body), 80)])
	}
	_, err = m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: string(bytes.Repeat([]byte("#\n"), 600<<10)), Author: "ada"})
	wantCode(t, err, connect.CodeInvalidArgument, "want at most 1048576")
}

func TestStoreFaultsReachTheCaller(t *testing.T) {
	m := start(t, nil)
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := m.Rules.List(t.Context(), &api.ListRulesRequest{})
	wantCode(t, err, connect.CodeUnavailable, "store is closed")
	_, err = m.Status.Get(t.Context(), &api.GetStatusRequest{})
	wantCode(t, err, connect.CodeUnavailable)
}

func TestCatalogIsShownWithItsSources(t *testing.T) {
	m := start(t, nil)
	m.addService("zk", "com.acme.Cart", "10.0.0.1:80", "10.0.0.2:80")
	m.addService("consul", "com.acme.Cart", "10.0.0.3:80")
	m.addService("consul", "payments", "10.0.1.1:80")
	m.catalog.Source("eureka").Report(model.SourceStatus{Source: "eureka", Kind: "fake", Phase: model.Stale, Err: "connection refused", Read: time.Unix(1000, 0),
		Skipped: []model.Rejected{{Where: "/apps/X", Reason: "no port"}}})
	list, err := m.Catalog.ListServices(t.Context(), &api.ListServicesRequest{Contains: "CART"})
	if err != nil || list.Total != 1 || len(list.Services) != 1 {
		t.Fatalf("list %v, %v, want one", list, err)
	}
	if s := list.Services[0]; s.EndpointCount != 3 || s.HealthyCount != 3 || !slices.Equal(s.Sources, []string{"consul", "zk"}) || len(s.Endpoints) != 0 {
		t.Errorf("got %v", s)
	}
	svc, err := m.Catalog.GetService(t.Context(), &api.GetServiceRequest{Host: "COM.acme.cart"})
	if err != nil || len(svc.Endpoints) != 3 {
		t.Fatalf("get %v, %v, want 3 endpoints", svc, err)
	}
	if e := svc.Endpoints[2]; e.Address != "10.0.0.3:80" || !slices.Equal(e.Sources, []string{"consul"}) || e.Labels["version"] != "v1" || e.Weight != 100 || e.Health != "healthy" {
		t.Errorf("endpoint %v", e)
	}
	part, err := m.Catalog.GetService(t.Context(), &api.GetServiceRequest{Host: "com.acme.cart@zk"})
	if err != nil || len(part.Endpoints) != 2 {
		t.Errorf("part %v, %v, want 2 endpoints", part, err)
	}
	_, err = m.Catalog.GetService(t.Context(), &api.GetServiceRequest{Host: "nobody"})
	wantCode(t, err, connect.CodeNotFound, "no registry reports it")
	_, err = m.Catalog.GetService(t.Context(), &api.GetServiceRequest{Host: "a b"})
	wantCode(t, err, connect.CodeInvalidArgument)
	sources, err := m.Catalog.ListSources(t.Context(), &api.ListSourcesRequest{})
	if err != nil || len(sources.Sources) != 3 {
		t.Fatalf("sources %v, %v, want 3", sources, err)
	}
	if s := sources.Sources[1]; s.Name != "eureka" || s.Phase != "stale" || s.Error != "connection refused" || s.SkippedCount != 1 || s.Read.AsTime().Unix() != 1000 {
		t.Errorf("eureka %v", s)
	}
}

func TestProxiesAreShownWithWhatTheyRefused(t *testing.T) {
	good, err := resource.New(resource.Cluster, "good", &clusterv3.Cluster{Name: "good"})
	if err != nil {
		t.Fatal(err)
	}
	bad := &resource.Resource{Type: resource.Cluster, Name: "bad", Version: "2", Body: []byte{0xff}, Origins: []string{cartSubsets}}
	refusal := status.Refusal{NodeID: "sidecar~10.0.0.2~b.default~x", Type: resource.Cluster, Name: "bad", Version: "2", Detail: "no such policy", Origins: []string{cartSubsets}, Quarantined: true}
	node := func(id string, since int64) status.Client {
		return status.Client{
			Node:      &corev3.Node{Id: id, UserAgentName: "envoy", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: "1.40.0"}},
			Address:   "127.0.0.1:1",
			Scope:     "default",
			Connected: time.Unix(since, 0),
			Types: []status.TypeState{{Type: resource.Cluster, Held: 1, Acked: "1", Version: "1", Items: []status.Item{
				{Name: "good", State: status.Acked, Sent: good.Version, Current: good},
			}}},
		}
	}
	a, b, b2 := node("sidecar~10.0.0.1~a.default~x", 1), node("sidecar~10.0.0.2~b.default~x", 2), node("sidecar~10.0.0.2~b.default~x", 3)
	b2.Types[0].Refusals = []status.Refusal{refusal}
	b2.Types[0].Items = append(b2.Types[0].Items, status.Item{Name: "bad", State: status.Nacked, Current: bad, Refusal: &refusal})
	m := start(t, nil)
	m.status.Attach(&streams{clients: []status.Client{b2, a, b}})
	m.status.Record(refusal)

	list, err := m.Proxies.ListProxies(t.Context(), &api.ListProxiesRequest{PageSize: 2})
	if err != nil || list.Total != 3 || len(list.Proxies) != 2 || list.NextPageToken == "" || list.Proxies[0].Node != a.Node.Id || !list.Proxies[0].Synced || list.Proxies[0].UserAgent != "envoy 1.40.0" {
		t.Fatalf("list %v, %v", list, err)
	}
	rest, err := m.Proxies.ListProxies(t.Context(), &api.ListProxiesRequest{PageSize: 2, PageToken: list.NextPageToken})
	if err != nil || len(rest.Proxies) != 1 || rest.Proxies[0].Synced || rest.Proxies[0].Types[0].Refused != 1 {
		t.Errorf("rest %v, %v", rest, err)
	}
	unsynced, err := m.Proxies.ListProxies(t.Context(), &api.ListProxiesRequest{Unsynced: true})
	if err != nil || unsynced.Total != 1 {
		t.Errorf("unsynced %v, %v, want 1", unsynced, err)
	}
	got, err := m.Proxies.GetProxy(t.Context(), &api.GetProxyRequest{Node: "~b."})
	if err != nil || got.Connected.AsTime().Unix() != 3 {
		t.Errorf("got %v, %v, want the newest stream of b", got, err)
	}
	_, err = m.Proxies.GetProxy(t.Context(), &api.GetProxyRequest{Node: "sidecar"})
	wantCode(t, err, connect.CodeInvalidArgument, "part of 2 node ids")
	_, err = m.Proxies.GetProxy(t.Context(), &api.GetProxyRequest{Node: "zzz"})
	wantCode(t, err, connect.CodeNotFound)

	cfg, err := m.Proxies.GetConfig(t.Context(), &api.GetConfigRequest{Node: "~b.", Type: "cds"})
	if err != nil || len(cfg.Resources) != 2 {
		t.Fatalf("config %v, %v, want 2 resources", cfg, err)
	}
	if r := cfg.Resources[0]; r.State != api.ConfigResource_ACKED || r.Body.Fields["name"].GetStringValue() != "good" {
		t.Errorf("good %v", r)
	}
	if r := cfg.Resources[1]; r.State != api.ConfigResource_REFUSED || r.Refusal.Error != "no such policy" || r.Body.Fields["base64"].GetStringValue() != "/w==" || !slices.Equal(r.Rules, []string{cartSubsets}) {
		t.Errorf("bad %v", r)
	}
	_, err = m.Proxies.GetConfig(t.Context(), &api.GetConfigRequest{Node: "~b.", Type: "XDS"})
	wantCode(t, err, connect.CodeInvalidArgument, "SDS, CDS, EDS, LDS, RDS")
	_, err = m.Proxies.GetConfig(t.Context(), &api.GetConfigRequest{Node: "~b.", Name: "other"})
	wantCode(t, err, connect.CodeNotFound, "does not subscribe")
	refusals, err := m.Proxies.ListRefusals(t.Context(), &api.ListRefusalsRequest{})
	if err != nil || len(refusals.Refusals) != 1 || !refusals.Refusals[0].Quarantined {
		t.Errorf("refusals %v, %v", refusals, err)
	}
	st, err := m.Status.Get(t.Context(), &api.GetStatusRequest{})
	if err != nil || st.Proxies != 3 {
		t.Errorf("status %v, %v, want 3 proxies", st, err)
	}
}

func TestUnconfiguredRegistrySaysSo(t *testing.T) {
	m := start(t, nil)
	_, err := m.Workloads.Register(t.Context(), &api.RegisterRequest{Workload: &api.Workload{}, Ttl: durationpb.New(time.Second)})
	wantCode(t, err, connect.CodeFailedPrecondition, "switched off")
}

func TestRunFailsWithItsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st, err := sqlite.Open(t.Context(), t.TempDir()+"/rules.db")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	srv, err := manage.New(manage.Config{Listener: l, Store: st, Catalog: start(t, nil).catalog, Proxies: status.NewRegistry(), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "serve mesh api") {
		t.Errorf("run: %v, want an error", err)
	}
}
