package generate

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var silent = slog.New(slog.DiscardHandler)

// mesh drives a generator step by step, without Run.
type mesh struct {
	*Generator
	t       testing.TB
	catalog *catalog.Catalog
	source  *catalog.Handle
	sub     *catalog.Subscription
}

func newMesh(t testing.TB, set rules.Set) *mesh {
	t.Helper()
	c := catalog.New(catalog.Config{Log: silent})
	m := &mesh{t: t, catalog: c, source: c.Source("test"), Generator: newGenerator(t, c, set)}
	m.sub = c.Subscribe()
	return m
}

func newGenerator(t testing.TB, c *catalog.Catalog, set rules.Set) *Generator {
	t.Helper()
	g, err := New(Config{Catalog: c, Rules: set, Log: silent, Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (m *mesh) apply(u model.Update) {
	m.source.Apply(u)
	m.takeServices(m.sub)
}

func (m *mesh) setRules(set rules.Set) {
	m.SetRules(set)
	m.takeRules()
}

func node(t testing.TB, text string) *corev3.Node {
	t.Helper()
	n := &corev3.Node{}
	if err := protojson.Unmarshal([]byte(text), n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *mesh) join(text string) *resource.Feed {
	m.t.Helper()
	f, err := m.Join(node(m.t, text))
	if err != nil {
		m.t.Fatal(err)
	}
	return f
}

func parse(t testing.TB, text string) rules.Set {
	t.Helper()
	all, err := rules.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return rules.NewSet(all...)
}

func service(host string, port model.Port, addrs ...string) *model.Service {
	s := &model.Service{Host: model.Host(host), Namespace: "default", Ports: []model.Port{port}}
	for _, a := range addrs {
		text, version, _ := strings.Cut(a, " ")
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: netip.MustParseAddrPort(text), Port: port.Number, Labels: model.NewLabels(map[string]string{"version": version}),
		})
	}
	return s
}

var http80 = model.Port{Number: 80, Protocol: model.HTTP}

// recorder notes what a feed reports.
type recorder struct {
	mu   sync.Mutex
	keys map[resource.Key]int
}

func (r *recorder) Changed(keys []resource.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		r.keys = map[resource.Key]int{}
	}
	for _, k := range keys {
		r.keys[k]++
	}
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for k := range r.keys {
		all = append(all, k.Type.String()+" "+k.Name)
	}
	r.keys = nil
	slices.Sort(all)
	return all
}

func names(keys []resource.Key) []string {
	var all []string
	for _, k := range keys {
		all = append(all, k.Type.String()+" "+k.Name)
	}
	slices.Sort(all)
	return all
}

const canary = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec:
  hosts: [cart]
  http: [{route: [{destination: {host: cart, subset: v1}, weight: 90}, {destination: {host: cart, subset: v2}, weight: 10}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart}
spec: {host: cart, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
`

func TestEndpointChangeTouchesOnlyItsHost(t *testing.T) {
	m := newMesh(t, parse(t, canary))
	m.apply(model.Update{Full: true, Services: []*model.Service{
		service("cart", http80, "10.0.0.1:80 v1", "10.0.0.2:80 v2"), service("other", http80, "10.0.1.1:80 v1"),
	}})
	a := m.join(`{"id": "sidecar~10.0.0.1~a.default~x", "metadata": {"APP_NAME": "a"}}`)
	b := m.join(`{"id": "envoy-1", "metadata": {"APP_NAME": "b", "HTTP_PROXY": "127.0.0.1:15002"}}`)
	var ra, rb recorder
	a.Watch(&ra)
	b.Watch(&rb)
	before := a.Snapshot()

	m.apply(model.Update{Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1", "10.0.0.3:80 v2")}})
	want := []string{"EDS outbound|80|v2|cart", "EDS outbound|80||cart"}
	if d := cmp.Diff(want, ra.take()); d != "" {
		t.Errorf("sidecar's changes (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, rb.take()); d != "" {
		t.Errorf("Envoy's changes (-want +got):\n%s", d)
	}
	after := a.Snapshot()
	for _, name := range []string{"outbound|80|v1|cart", "outbound|80||other"} {
		if before.Get(resource.Endpoints, name) != after.Get(resource.Endpoints, name) {
			t.Errorf("%s: a resource that did not change was replaced", name)
		}
	}
	for _, name := range []string{"outbound|80||cart", "outbound|80|v1|cart"} {
		if r := after.Get(resource.Endpoints, name); r == nil || r != b.Snapshot().Get(resource.Endpoints, name) {
			t.Errorf("%s is not shared between scopes", name)
		}
	}
	if after.Get(resource.Cluster, "outbound|80||cart") != b.Snapshot().Get(resource.Cluster, "outbound|80||cart") {
		t.Error("clusters are not shared between scopes")
	}
	m.apply(model.Update{Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1", "10.0.0.3:80 v2")}})
	if got := ra.take(); len(got) > 0 {
		t.Errorf("the same again changed %v", got)
	}
}

func TestOnDemandAndWildcard(t *testing.T) {
	m := newMesh(t, rules.Set{})
	m.apply(model.Update{Full: true, Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1")}})
	f := m.join(`{"id": "sidecar~10.0.0.1~a.default~x", "metadata": {"HTTP_PROXY": "127.0.0.1:15002",
		"INBOUND": [{"app": "127.0.0.1:8080", "listen": "0.0.0.0:20881", "protocol": "http"}]}}`)
	s := f.Snapshot()
	var got []string
	for _, typ := range []resource.Type{resource.Cluster, resource.Listener, resource.Route} {
		for _, r := range s.Wildcard(typ) {
			got = append(got, typ.String()+" "+r.Name)
		}
	}
	want := []string{"CDS inbound|8080||", "CDS outbound|80||cart", "LDS 0.0.0.0_20881", "LDS 127.0.0.1_15002", "RDS 15002"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("wildcard (-want +got):\n%s", d)
	}
	if s.Get(resource.Listener, "cart:80") == nil || s.Get(resource.Route, "cart:80") == nil {
		t.Error("listener or routes by name are missing")
	}
}

func TestScopesAreSharedCountedAndBounded(t *testing.T) {
	m := newMesh(t, rules.Set{})
	m.limits = limits{scopes: 2, clients: 1}
	a := m.join(`{"id": "sidecar~10.0.0.1~a.default~x", "metadata": {"LABELS": {"app": "a"}}}`)
	if b := m.join(`{"id": "sidecar~10.0.0.2~a2.default~x", "metadata": {"LABELS": {"app": "a"}}}`); b != a {
		t.Error("equal nodes have different feeds")
	}
	if _, err := m.Join(node(t, `{"id": "envoy"}`)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second kind of client: got %v", err)
	}
	c := m.join(`{"id": "sidecar~10.0.0.3~c.default~x", "metadata": {"LABELS": {"app": "c"}}}`)
	if _, err := m.Join(node(t, `{"id": "sidecar~10.0.0.4~d.default~x", "metadata": {"LABELS": {"app": "d"}}}`)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a third scope: got %v", err)
	}
	if _, err := m.Join(node(t, `{"metadata": {"NAMESPACE": 7}}`)); err == nil || !strings.Contains(err.Error(), "node.metadata.NAMESPACE") {
		t.Errorf("a wrong node: got %v", err)
	}
	m.Leave(a)
	if len(m.lives) != 2 {
		t.Error("a scope ended with its first stream")
	}
	m.Leave(a)
	m.Leave(a) // once too often is harmless
	m.Leave(c)
	if len(m.lives) != 0 || len(m.byFeed) != 0 {
		t.Error("scopes remain after all left")
	}
	m.apply(model.Update{Services: []*model.Service{service("cart", http80)}})
	if len(m.outs) != 0 {
		t.Error("resources of nobody are kept over a change")
	}
}

// Scopes move when rules begin to match callers by labels.
func TestRulesThatReadLabelsSplitClients(t *testing.T) {
	m := newMesh(t, rules.Set{})
	m.apply(model.Update{Full: true, Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1")}})
	web := m.join(`{"id": "sidecar~1~a.default~x", "metadata": {"LABELS": {"app": "web", "hash": "1"}}}`)
	job := m.join(`{"id": "sidecar~1~b.default~x", "metadata": {"LABELS": {"app": "job"}}}`)
	if len(m.outs) != 1 {
		t.Errorf("%d sets of outbound resources, want 1", len(m.outs))
	}
	m.setRules(parse(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec:
  hosts: [cart]
  http: [{match: [{sourceLabels: {app: web}}], directResponse: {status: 418}}]
`))
	a, b := web.Snapshot().Get(resource.Route, "cart:80"), job.Snapshot().Get(resource.Route, "cart:80")
	if a.Version == b.Version || len(m.outs) != 2 {
		t.Errorf("web and job get the same routes; %d sets of outbound resources", len(m.outs))
	}
	if !slices.Equal(a.Origins, []string{"virtualservice/default/cart"}) || len(b.Origins) != 0 {
		t.Errorf("origins: got %v and %v", a.Origins, b.Origins)
	}
	m.setRules(rules.Set{})
	if len(m.outs) != 1 || web.Snapshot().Get(resource.Route, "cart:80") != job.Snapshot().Get(resource.Route, "cart:80") {
		t.Error("clients did not come together again")
	}
}

// A store that reads its rules anew hands on equal rules at other addresses.
func TestRulesReadAnewChangeNothing(t *testing.T) {
	m := newMesh(t, parse(t, canary))
	m.apply(model.Update{Full: true, Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1")}})
	f := m.join(nodes[0])
	before := f.Snapshot()
	m.setRules(parse(t, canary))
	if d, err := m.Preview(parse(t, canary)); err != nil || len(d.Scopes) != 0 {
		t.Errorf("preview: got %+v, %v", d, err)
	}
	for _, name := range []string{"cart:80", "15002"} {
		if f.Snapshot().Get(resource.Route, name) != before.Get(resource.Route, name) {
			t.Errorf("%s was made anew", name)
		}
	}
}

func TestPreview(t *testing.T) {
	m := newMesh(t, rules.Set{})
	m.apply(model.Update{Full: true, Services: []*model.Service{
		service("cart", http80, "10.0.0.1:80 v1", "10.0.0.2:80 v2"), service("other", http80, "10.0.1.1:80 v1"),
	}})
	m.join(`{"id": "sidecar~1~a.default~x", "metadata": {"APP_NAME": "a"}}`)
	f := m.join(`{"id": "envoy", "metadata": {"APP_NAME": "b", "HTTP_PROXY": "127.0.0.1:15002", "LABELS": {"app": "b"}}}`)
	var r recorder
	f.Watch(&r)
	before := f.Snapshot()
	candidate := parse(t, canary)
	d, err := m.Preview(candidate)
	if err != nil {
		t.Fatal(err)
	}
	if f.Snapshot() != before || len(r.take()) != 0 || m.Rules().Len() != 0 {
		t.Error("a preview published or applied")
	}
	if d.Live != 2 || len(d.Scopes) != 2 || d.Scopes[1].Scope != "default/b" || d.Scopes[1].Streams != 1 {
		t.Fatalf("got %+v", d)
	}
	m.setRules(candidate)
	after := f.Snapshot()
	var got []resource.Key
	for _, c := range d.Scopes[1].Changes {
		got = append(got, c.Key)
		if c.Before != before.Get(c.Key.Type, c.Key.Name) {
			t.Errorf("%v: before is not what was served", c.Key)
		}
		if a := after.Get(c.Key.Type, c.Key.Name); a == nil || a.Version != c.After.Version {
			t.Errorf("%v: after is not what is served now", c.Key)
		}
	}
	if d := cmp.Diff(r.take(), names(got)); d != "" {
		t.Errorf("preview (-published +previewed):\n%s", d)
	}
	if d, err = m.Preview(candidate); err != nil || len(d.Scopes) != 0 {
		t.Errorf("a preview of what is in force: got %+v, %v", d, err)
	}
	if d, err = m.Preview(rules.Set{}); err != nil || len(d.Scopes) != 2 {
		t.Errorf("a preview of removing: got %+v, %v", d, err)
	}
}

var nodes = []string{
	`{"id": "sidecar~1~a.default~x", "metadata": {"LABELS": {"app": "web"}, "HTTP_PROXY": "127.0.0.1:15002"}}`,
	`{"id": "sidecar~1~b.shop~x", "metadata": {"NAMESPACE": "shop", "LABELS": {"app": "job"}, "INBOUND": [{"app": "127.0.0.1:80", "listen": "0.0.0.0:20881", "protocol": "http"}]}}`,
	`{"id": "envoy", "metadata": {"LABELS": {"app": "web"}, "EGRESS": [{"host": "h1", "port": 80, "address": "127.64.0.1"}, {"host": "h2", "port": 3306, "address": "127.64.0.2"}], "HTTP_PROXY": "127.0.0.1:15003"}}`,
	`{"id": "grpc", "userAgentName": "gRPC Go", "metadata": {"LABELS": {"app": "job"}}}`,
}

// randomRules covers wildcards, short names, parts, routed hosts, source matches
// and hash policies over hosts h0 to h5.
func randomRules(t *testing.T, r *rand.Rand) rules.Set {
	var docs []string
	for i := range 6 {
		host := []string{fmt.Sprintf("h%d", i), "*.acme", "front", "k8s", "*"}[r.IntN(5)]
		to := fmt.Sprintf("h%d", r.IntN(6))
		switch r.IntN(6) {
		case 0:
			docs = append(docs, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r%d, namespace: %s}\nspec: {hosts: ['%s'], http: [{match: [{sourceLabels: {app: web}}], route: [{destination: {host: %s, subset: v1}}]}, {route: [{destination: {host: '%s@test'}}]}]}\n",
				i, []string{"default", "shop"}[r.IntN(2)], host, to, to))
		case 1:
			docs = append(docs, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r%d}\nspec: {hosts: ['%s'], http: [{match: [{sourceNamespace: shop}], timeout: %ds, route: [{destination: {host: %s}}]}], tcp: [{route: [{destination: {host: %s, subset: v2}}]}]}\n", i, host, 1+r.IntN(3), to, to))
		case 2:
			docs = append(docs, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d%d, namespace: %s}\nspec: {host: '%s', trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-%d}}}, subsets: [{name: v1, labels: {version: v1}}]}\n",
				i, []string{"default", "shop", "istio-system"}[r.IntN(3)], []string{to, "*"}[r.IntN(2)], r.IntN(2)))
		case 3:
			docs = append(docs, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d%d}\nspec: {host: '%s', subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}\n", i, to))
		}
	}
	return parse(t, strings.Join(docs, "---\n"))
}

func randomService(r *rand.Rand, host string) *model.Service {
	port := []model.Port{http80, {Number: 3306, Protocol: model.TCP}, {Number: 50051, Protocol: model.GRPC}}[r.IntN(3)]
	s := service(host, port)
	for i := range r.IntN(4) {
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Port: port.Number,
			Labels: model.NewLabels(map[string]string{"version": fmt.Sprintf("v%d", r.IntN(3))}),
		})
	}
	return s
}

// Whatever changed in whatever order, what is served is what a new generator would
// serve, and what was reported is what differs.
func TestStepsAgreeWithStartingAnew(t *testing.T) {
	hosts := []string{"h0", "h1", "h2", "h3", "h4", "h5", "a.acme", "front", "k8s", "k8s.default.svc.cluster.local", "h2.shop.svc.cluster.local"}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			m := newMesh(t, rules.Set{})
			feeds, records := make([]*resource.Feed, len(nodes)), make([]recorder, len(nodes))
			for i, n := range nodes {
				feeds[i] = m.join(n)
				feeds[i].Watch(&records[i])
			}
			for step := range 25 {
				before := make([]*resource.Snapshot, len(nodes))
				for i := range feeds {
					before[i] = feeds[i].Snapshot()
				}
				var u model.Update
				for range 1 + r.IntN(3) {
					host := hosts[r.IntN(len(hosts))]
					if r.IntN(4) == 0 {
						u.Removed = append(u.Removed, model.Host(host))
					} else if !slices.ContainsFunc(u.Services, func(s *model.Service) bool { return string(s.Host) == host }) {
						u.Services = append(u.Services, randomService(r, host))
					}
				}
				if r.IntN(3) == 0 {
					m.setRules(randomRules(t, r))
				} else {
					m.apply(u)
				}
				anew := newGenerator(t, m.catalog, m.Rules())
				for i, n := range nodes {
					want, err := anew.Join(node(t, n))
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(flat(want.Snapshot()), flat(feeds[i].Snapshot())); d != "" {
						t.Fatalf("step %d, node %d (-anew +stepped):\n%s", step, i, d)
					}
					if d := cmp.Diff(names(difference(before[i], feeds[i].Snapshot())), records[i].take()); d != "" {
						t.Fatalf("step %d, node %d: changes (-differ +reported):\n%s", step, i, d)
					}
				}
			}
		})
	}
}

// flat is a snapshot as text: version, origins and whether it is on demand.
func flat(s *resource.Snapshot) map[string]string {
	out := map[string]string{}
	for typ := range resource.Type(resource.NumTypes) {
		for name, r := range s.Tables[typ].All() {
			_, demand := s.OnDemand[typ].Get(name)
			out[typ.String()+" "+name] = fmt.Sprintf("%s %v %t", r.Version, r.Origins, demand)
		}
		for name := range s.OnDemand[typ].All() {
			if s.Get(typ, name) == nil {
				out[typ.String()+" "+name] = "on demand, but not there"
			}
		}
	}
	return out
}

// Run applies what comes from several sides, while nodes come and go.
func TestRun(t *testing.T) {
	c := catalog.New(catalog.Config{Log: silent})
	source := c.Source("test")
	g := newGenerator(t, c, rules.Set{})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	feed, err := g.Join(node(t, nodes[0]))
	if err != nil {
		t.Fatal(err)
	}
	seen := waiter{wake: make(chan struct{}, 1)}
	feed.Watch(&seen)
	set := parse(t, canary)
	var busy sync.WaitGroup
	for worker := range 3 {
		busy.Go(func() {
			for i := range 50 {
				switch worker {
				case 0:
					source.Apply(model.Update{Services: []*model.Service{service("cart", http80, fmt.Sprintf("10.0.0.%d:80 v1", i))}})
				case 1:
					g.SetRules([]rules.Set{{}, set}[i%2])
				case 2:
					if f, err := g.Join(node(t, nodes[i%len(nodes)])); err == nil {
						g.Leave(f)
					}
					if _, err := g.Preview(set); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	busy.Wait()
	want := newGenerator(t, c, set)
	other, err := want.Join(node(t, nodes[0]))
	if err != nil {
		t.Fatal(err)
	}
	for !maps.Equal(flat(other.Snapshot()), flat(feed.Snapshot())) {
		select {
		case <-seen.wake:
		case <-t.Context().Done():
			t.Fatal("the newest state was never published")
		}
	}
	cancel()
	running.Wait()
}

type waiter struct{ wake chan struct{} }

func (w *waiter) Changed([]resource.Key) {
	select {
	case w.wake <- struct{}{}:
	default: // a wake-up is pending
	}
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{MaxScopes: -1})
	for _, want := range []string{"Catalog", "Log", "Registerer", "MaxScopes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s named", err, want)
		}
	}
}
