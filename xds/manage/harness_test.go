package manage_test

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store"
	"github.com/isthmus-mesh/isthmus/xds/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a Mesh API over a real store, a real catalog and a real status registry.
type mesh struct {
	*api.Client
	url     string
	store   store.Store
	catalog *catalog.Catalog
	status  *status.Registry
	server  *manage.Server
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func start(t *testing.T, change func(*manage.Config)) *mesh {
	t.Helper()
	st, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "rules.db"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{
		url: "http://" + l.Addr().String(), store: st,
		catalog: catalog.New(catalog.Config{Log: quiet()}), status: status.NewRegistry(),
	}
	cfg := manage.Config{
		Listener: l, Store: st, Catalog: m.catalog, Proxies: m.status, Log: quiet(),
		Version: "v1.2.3", Roles: []string{"xds", "api"}, DataDir: "/data",
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := manage.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.server = srv
	if m.Client, err = api.NewClient(api.ClientConfig{Server: m.url, Timeout: 2 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		m.Close()
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return m
}

// route is a VirtualService that splits a host between v1 and v2.
func route(name string, v1 int) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: %s
spec:
  hosts: [%s]
  http:
  - route:
    - destination: {host: %s, subset: v1}
      weight: %d
    - destination: {host: %s, subset: v2}
      weight: %d
`, name, name, name, v1, name, 100-v1)
}

// subsets is a DestinationRule that defines v1 and v2 of a host.
func subsets(name string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: %s
spec:
  host: %s
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`, name, name)
}

func docs(parts ...string) string { return strings.Join(parts, "---\n") }

func (m *mesh) apply(t *testing.T, yaml string) *api.ApplyResponse {
	t.Helper()
	resp, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: yaml, Author: "ada", Reason: "test"})
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return resp
}

func outcomes(resp *api.ApplyResponse) string {
	var b strings.Builder
	for _, r := range resp.Results {
		fmt.Fprintf(&b, "%s %s\n", r.Rule, r.Outcome)
	}
	return b.String()
}

func wantCode(t *testing.T, err error, code connect.Code, parts ...string) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil {
		t.Errorf("got %v, want code %v", err, code)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got %q, want it to say %q", err, part)
		}
	}
}

// addService puts a service with endpoints into the catalog, as a source does.
func (m *mesh) addService(source, host string, endpoints ...string) {
	s := &model.Service{Host: model.Host(strings.ToLower(host)), Name: host, Namespace: "default", Ports: []model.Port{{Number: 80, Protocol: model.HTTP}}}
	for i, e := range endpoints {
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: netip.MustParseAddrPort(e), Port: 80, Weight: 100,
			Labels: model.NewLabels(map[string]string{"version": fmt.Sprintf("v%d", i+1)}),
		})
	}
	m.catalog.Source(source).Apply(model.Update{Services: []*model.Service{s}})
	m.catalog.Source(source).Report(model.SourceStatus{Source: source, Kind: "fake", Phase: model.Live})
}

// streams is a status.Source with fixed streams.
type streams struct {
	clients []status.Client
	rollout map[string]map[string]status.Stage
}

func (s *streams) Clients(match func(*corev3.Node) bool, _ bool) iter.Seq[status.Client] {
	return func(yield func(status.Client) bool) {
		for _, c := range s.clients {
			if match(c.Node) && !yield(c) {
				return
			}
		}
	}
}

func (s *streams) Rollout(only func(string) bool) map[string]map[string]status.Stage {
	out := map[string]map[string]status.Stage{}
	for origin, nodes := range s.rollout {
		if only(origin) {
			out[origin] = nodes
		}
	}
	return out
}
