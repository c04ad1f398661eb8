package router

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// request is a Request made of strings.
type request struct {
	method, path, authority string
	headers                 map[string]string
}

func (r *request) Method() []byte    { return []byte(r.method) }
func (r *request) Path() []byte      { return []byte(r.path) }
func (r *request) Authority() []byte { return []byte(r.authority) }
func (r *request) Header(name string) ([]byte, bool) {
	v, ok := r.headers[name]
	return []byte(v), ok
}

// req makes a request of "GET host/path k=v k=v".
func req(s string) *request {
	parts := strings.Fields(s)
	host, path, _ := strings.Cut(parts[1], "/")
	r := &request{method: parts[0], authority: host, path: "/" + path, headers: map[string]string{}}
	for _, h := range parts[2:] {
		k, v, _ := strings.Cut(h, "=")
		r.headers[k] = v
	}
	return r
}

func parse(t testing.TB, text string) *routev3.RouteConfiguration {
	t.Helper()
	js, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var rc routev3.RouteConfiguration
	if err := protojson.Unmarshal(js, &rc); err != nil {
		t.Fatal(err)
	}
	return &rc
}

func clusters() func(string) *upstream.Cluster {
	made := map[string]*upstream.Cluster{}
	return func(name string) *upstream.Cluster {
		if made[name] == nil {
			made[name] = upstream.NewCluster(name, telemetry.NewUpstream(name, name))
		}
		return made[name]
	}
}

func compile(t testing.TB, text string) *Table {
	t.Helper()
	table, err := Compile(parse(t, text), clusters())
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// oneHost wraps routes, given as the items of a YAML list.
func oneHost(routes string) string {
	return "virtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n" + indent(routes, "  ")
}

func indent(s, by string) string {
	return by + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n"+by) + "\n"
}

func name(r *Route) string {
	if r == nil {
		return "none"
	}
	return r.Name
}

func TestVirtualHostsAreFoundAsInEnvoy(t *testing.T) {
	var b strings.Builder
	b.WriteString("virtual_hosts:\n")
	for _, domain := range []string{
		"cart", "cart:80", "Cart.Default.svc", "*.shop.example", "*.a.shop.example", "*-eu.example",
		"api.*", "api.v1.*", "[::1]:80", "lab.GreetingService:20880",
	} {
		fmt.Fprintf(&b, "- name: x\n  domains: ['%s']\n  routes: [{name: '%s', match: {prefix: /}, direct_response: {status: 200}}]\n", domain, domain)
	}
	strict := compile(t, b.String())
	b.WriteString("- name: any\n  domains: ['*']\n  routes: [{name: '*', match: {prefix: /}, direct_response: {status: 200}}]\n")
	open := compile(t, b.String())
	ignoring := compile(t, "ignore_port_in_host_matching: true\n"+b.String())
	for _, tt := range []struct {
		table           *Table
		authority, want string
	}{
		{open, "cart", "cart"},
		{open, "CART", "cart"},
		{open, "cart:80", "cart:80"},
		{open, "cart:81", "*"},
		{strict, "cart:81", "none"},
		{ignoring, "cart:81", "cart"},
		{ignoring, "cart:80", "cart"},
		{ignoring, "[::1]:80", "*"},
		{open, "[::1]:80", "[::1]:80"},
		{open, "cart.default.SVC", "Cart.Default.svc"},
		{open, "x.shop.example", "*.shop.example"},
		{open, "x.a.shop.example", "*.a.shop.example"},
		{open, "shop.example", "*"},
		{open, ".shop.example", "*"}, // a wildcard stands for at least one byte
		{open, "x-eu.example", "*-eu.example"},
		{open, "api.v1.example", "api.v1.*"},
		{open, "api.v2.example", "api.*"},
		{open, "api.", "*"},
		{open, "api.x.shop.example", "*.shop.example"}, // suffixes come before prefixes
		{open, "LAB.greetingservice:20880", "lab.GreetingService:20880"},
		{strict, "", "none"},
		{open, strings.Repeat("A", 600) + ".shop.example", "*.shop.example"},
		{&Table{}, "cart", "none"},
	} {
		r := &request{method: "GET", path: "/", authority: tt.authority}
		if got := name(tt.table.Match(r, 0)); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.authority, got, tt.want)
		}
	}
}

func TestConditionsOfRoutes(t *testing.T) {
	const ignored = ", direct_response: {status: 200}}"
	for _, tt := range []struct {
		match    string
		yes, not []string
	}{
		{"prefix: /api", []string{"GET h/api", "GET h/apis", "GET h/api/x?y", "POST h/api"}, []string{"GET h/ap", "GET h/API"}},
		{"prefix: /", []string{"GET h/", "GET h/x"}, nil},
		{"prefix: /API, case_sensitive: false", []string{"GET h/api/x", "GET h/aPi"}, []string{"GET h/ap"}},
		{"path: /a/b", []string{"GET h/a/b", "GET h/a/b?q=1", "GET h/a/b#f"}, []string{"GET h/a/b/", "GET h/a"}},
		{"path: /A, case_sensitive: false", []string{"GET h/a"}, []string{"GET h/ab"}},
		{"path_separated_prefix: /a", []string{"GET h/a", "GET h/a/", "GET h/a/b?x"}, []string{"GET h/ab", "GET h/"}},
		{"safe_regex: {regex: '/a|/b.'}", []string{"GET h/a", "GET h/bc?q"}, []string{"GET h/ab", "GET h/b", "GET h/x/a"}},
		{"prefix: /, headers: [{name: ':method', string_match: {exact: GET}}]", []string{"GET h/"}, []string{"POST h/", "get h/"}},
		{"prefix: /, headers: [{name: ':authority', string_match: {prefix: a}}]", []string{"GET abc/"}, []string{"GET b/"}},
		{"prefix: /, headers: [{name: ':path', string_match: {suffix: '?q'}}]", []string{"GET h/x?q"}, []string{"GET h/x"}},
		{"prefix: /, headers: [{name: X-A, string_match: {exact: one}}]", []string{"GET h/ x-a=one"}, []string{"GET h/", "GET h/ x-a=One", "GET h/ x-a=ones"}},
		{"prefix: /, headers: [{name: x-a, string_match: {exact: ONE, ignore_case: true}}]", []string{"GET h/ x-a=oNe"}, []string{"GET h/ x-a=ones"}},
		{"prefix: /, headers: [{name: x-a, string_match: {contains: Mid, ignore_case: true}}]", []string{"GET h/ x-a=amidst"}, []string{"GET h/ x-a=mi"}},
		{"prefix: /, headers: [{name: x-a, string_match: {safe_regex: {regex: 'a+'}}}]", []string{"GET h/ x-a=aa"}, []string{"GET h/ x-a=ab"}},
		{"prefix: /, headers: [{name: ':method', string_match: {safe_regex: {regex: 'GET|HEAD'}}}]", []string{"GET h/", "HEAD h/"}, []string{"POST h/", "GETX h/", "GE h/"}},
		{"prefix: /, headers: [{name: ':method', string_match: {safe_regex: {regex: 'GET|(HEAD)'}}}]", []string{"GET h/", "HEAD h/"}, []string{"POST h/", "GET|HEAD h/"}},
		{"prefix: /, headers: [{name: x-a, string_match: {safe_regex: {regex: 'a|^b|c.'}}}]", []string{"GET h/ x-a=a", "GET h/ x-a=b", "GET h/ x-a=cd"}, []string{"GET h/ x-a=^b", "GET h/ x-a=c"}},
		{"prefix: /, headers: [{name: x-a, string_match: {exact: one}, invert_match: true}]", []string{"GET h/ x-a=two"}, []string{"GET h/ x-a=one", "GET h/"}},
		{"prefix: /, headers: [{name: x-a, string_match: {exact: one}, invert_match: true, treat_missing_header_as_empty: true}]", []string{"GET h/ x-a=two", "GET h/"}, []string{"GET h/ x-a=one"}},
		{"prefix: /, headers: [{name: x-a, present_match: true}]", []string{"GET h/ x-a="}, []string{"GET h/"}},
		{"prefix: /, headers: [{name: x-a, present_match: false}]", []string{"GET h/"}, []string{"GET h/ x-a=1"}},
		{"prefix: /, headers: [{name: x-a, present_match: true, invert_match: true}]", []string{"GET h/"}, []string{"GET h/ x-a=1"}},
		{"prefix: /, headers: [{name: x-a}]", []string{"GET h/ x-a=1"}, []string{"GET h/"}},
		{"prefix: /, headers: [{name: x-a, exact_match: b}]", []string{"GET h/ x-a=b"}, []string{"GET h/ x-a=c"}},
		{"prefix: /, headers: [{name: x-a, range_match: {start: -5, end: 10}}]", []string{"GET h/ x-a=-5", "GET h/ x-a=9"}, []string{"GET h/ x-a=10", "GET h/ x-a=x", "GET h/", "GET h/ x-a="}},
		{"prefix: /, headers: [{name: x-a, prefix_match: b},{name: x-c, suffix_match: d}]", []string{"GET h/ x-a=bb x-c=dd"}, []string{"GET h/ x-a=bb", "GET h/ x-c=dd"}},
		{"prefix: /, query_parameters: [{name: q, string_match: {exact: '1'}}]", []string{"GET h/?q=1", "GET h/?a&q=1&q=2"}, []string{"GET h/?q=2&q=1", "GET h/?qq=1", "GET h/", "GET h/?q"}},
		{"prefix: /, query_parameters: [{name: q, present_match: true}]", []string{"GET h/?q", "GET h/?a=b&q="}, []string{"GET h/?r", "GET h/#?q"}},
		{"prefix: /, query_parameters: [{name: q}]", []string{"GET h/?q"}, []string{"GET h/"}},
	} {
		table := compile(t, oneHost("- {name: it, match: {"+tt.match+"}"+ignored))
		for _, r := range tt.yes {
			if table.Match(req(r), 0) == nil {
				t.Errorf("%s: does not match %q", tt.match, r)
			}
		}
		for _, r := range tt.not {
			if table.Match(req(r), 0) != nil {
				t.Errorf("%s: matches %q", tt.match, r)
			}
		}
	}
}

// many makes n routes of all kinds over few paths, so that they overlap.
func many(random *rand.Rand, n int) string {
	var b strings.Builder
	segments := []string{"/a", "/ab", "/b", "/a/b", "/a/b/c", "/abc", "/", "/b/a"}
	for i := range n {
		path := segments[random.IntN(len(segments))]
		match := []string{"prefix: " + path, "path: " + path, "path_separated_prefix: " + path + "x", "safe_regex: {regex: '" + path + ".?'}", "prefix: " + path + ", case_sensitive: false"}[random.IntN(5)]
		if random.IntN(2) == 0 {
			match += ", headers: [{name: x-a, string_match: {exact: '" + fmt.Sprint(random.IntN(3)) + "'}}]"
		}
		fmt.Fprintf(&b, "- {name: r%d, match: {%s}, direct_response: {status: 200}}\n", i, match)
	}
	return b.String()
}

func TestTheIndexFindsWhatAScanFinds(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	matched := 0
	for range 60 {
		table := compile(t, oneHost(many(random, 8+random.IntN(40))))
		if table.any.index == nil {
			t.Fatal("no index was made")
		}
		for range 200 {
			path := []string{"/a", "/ab", "/b", "/a/b", "/a/b/c", "/abc", "/", "/b/a", "/ax", "/A/B", "/zzz", "/abx/y", "/a/b?x=1"}[random.IntN(13)]
			r := req("GET h" + path + " x-a=" + fmt.Sprint(random.IntN(4)))
			indexed := table.Match(r, 0)
			index := table.any.index
			table.any.index = nil
			scanned := table.Match(r, 0)
			table.any.index = index
			if indexed != scanned {
				t.Fatalf("%s: the index found %s, a scan %s", path, name(indexed), name(scanned))
			}
			if scanned != nil {
				matched++
			}
		}
	}
	if matched < 1000 {
		t.Errorf("only %d of 12000 requests matched anything: the comparison says little", matched)
	}
}

func TestWeightsShareTheRequests(t *testing.T) {
	table := compile(t, oneHost(`
- name: r
  match: {prefix: /}
  route: {weighted_clusters: {clusters: [{name: a, weight: 90}, {name: none, weight: 0}, {name: b, weight: 10}]}}`))
	route := table.Match(req("GET h/"), 0)
	got := map[string]int{}
	for i := range uint64(1000) {
		got[route.Pick(i).Cluster.Name]++
	}
	if d := cmp.Diff(map[string]int{"a": 900, "b": 100}, got); d != "" {
		t.Errorf("picks (-want +got):\n%s", d)
	}
	if (&Route{}).Pick(1) != nil {
		t.Error("a route without destinations: want none")
	}
}

func TestPathsAreRewritten(t *testing.T) {
	for _, tt := range []struct{ match, rewrite, path, want string }{
		{"prefix: /a", "prefix_rewrite: /b", "/a/x?q=/a", "/b/x?q=/a"},
		{"prefix: /a/", "prefix_rewrite: /", "/a/x", "/x"},
		{"prefix: /a", "prefix_rewrite: /", "/a/x", "//x"}, // as Envoy, literally
		{"path: /a", "prefix_rewrite: /b", "/a?q", "/b?q"},
		{"path_separated_prefix: /a", "prefix_rewrite: /b", "/a/x", "/b/x"},
		{"safe_regex: {regex: '/a.*'}", "prefix_rewrite: /b", "/abc?q", "/b?q"},
		{"prefix: /", `regex_rewrite: {pattern: {regex: '^/x/(\d+)/(\w+)'}, substitution: '/\2/$\1'}`, "/x/12/ab/c?q=/x/1/a", "/ab/$12/c?q=/x/1/a"},
		{"prefix: /", `regex_rewrite: {pattern: {regex: 'a'}, substitution: '\0\0\\'}`, "/banana", `/baa\naa\naa\`},
		{"prefix: /", "", "/as/is?q", "/as/is?q"},
	} {
		action := "cluster: c"
		if tt.rewrite != "" {
			action += ", " + tt.rewrite
		}
		route := compile(t, oneHost("- {match: {"+tt.match+"}, route: {"+action+"}}")).Match(&request{path: tt.path}, 0)
		if route == nil {
			t.Errorf("%s does not match %s", tt.match, tt.path)
			continue
		}
		if got := string(route.RewritePath([]byte("x"), []byte(tt.path))); got != "x"+tt.want {
			t.Errorf("%s %s on %s: got %s, want %s", tt.match, tt.rewrite, tt.path, got[1:], tt.want)
		}
		if route.Rewrites() != (tt.rewrite != "") {
			t.Errorf("%s: Rewrites is %v", tt.rewrite, route.Rewrites())
		}
	}
}

func TestLocations(t *testing.T) {
	for _, tt := range []struct{ redirect, host, path, want string }{
		{"host_redirect: b", "a:8080", "/x?q=1", "http://b/x?q=1"},
		{"https_redirect: true", "a:80", "/x", "https://a/x"},
		{"https_redirect: true", "a:8080", "/x", "https://a:8080/x"},
		{"https_redirect: true, port_redirect: 8443", "a:80", "/", "https://a:8443/"},
		{"scheme_redirect: https, host_redirect: b, port_redirect: 1", "a", "/", "https://b:1/"},
		{"path_redirect: /y", "a", "/x?q=1", "http://a/y?q=1"},
		{"path_redirect: '/y?z=2'", "a", "/x?q=1", "http://a/y?z=2"},
		{"path_redirect: /y, strip_query: true", "a", "/x?q=1", "http://a/y"},
		{"prefix_rewrite: /new", "a", "/p/x?q=1", "http://a/new/x?q=1"},
		{"strip_query: true", "a", "/p?q", "http://a/p"},
		{"host_redirect: b", "a", "/p#frag", "http://b/p"},
	} {
		r := &request{path: tt.path, authority: tt.host}
		match := "prefix: /"
		if strings.HasPrefix(tt.path, "/p") {
			match = "prefix: /p"
		}
		route := compile(t, oneHost("- {match: {"+match+"}, redirect: {"+tt.redirect+"}}")).Match(r, 0)
		if got := string(route.AppendLocation(nil, r, "http")); got != tt.want {
			t.Errorf("%s for %s%s: got %s, want %s", tt.redirect, tt.host, tt.path, got, tt.want)
		}
		if route.Redirect.Status != 301 {
			t.Errorf("%s: status %d, want 301", tt.redirect, route.Redirect.Status)
		}
	}
}

func TestHashesFollowThePolicies(t *testing.T) {
	table := compile(t, oneHost(`
- match: {prefix: /}
  route:
    cluster: c
    hash_policy:
    - {header: {header_name: X-User}, terminal: true}
    - {query_parameter: {name: id}}`))
	hash := func(s string) uint64 {
		t.Helper()
		r := req(s)
		h, ok := table.Match(r, 0).Hash(r)
		if !ok {
			t.Fatalf("%s: no hash", s)
		}
		return h
	}
	if hash("GET h/ x-user=a") != hash("GET h/?id=7 x-user=a") {
		t.Error("a terminal policy that yields something: want the rest not looked at")
	}
	if hash("GET h/?id=7") == hash("GET h/?id=8") || hash("GET h/ x-user=a") == hash("GET h/ x-user=b") {
		t.Error("different values hash alike")
	}
	r := req("GET h/")
	if _, ok := table.Match(r, 0).Hash(r); ok {
		t.Error("nothing to hash: want no hash")
	}
}

func TestMatchAndPickDoNotAllocate(t *testing.T) {
	table, r := benchTable(t)
	var buf []byte
	if got := testing.AllocsPerRun(100, func() {
		route := table.Match(r, 1)
		route.Pick(7)
		buf = route.RewritePath(buf[:0], r.path)
		route.Hash(r)
	}); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

// fixed is a Request over bytes, as codecs have it.
type fixed struct{ method, path, authority, value []byte }

func (f *fixed) Method() []byte    { return f.method }
func (f *fixed) Path() []byte      { return f.path }
func (f *fixed) Authority() []byte { return f.authority }
func (f *fixed) Header(name string) ([]byte, bool) {
	return f.value, name == "x-user"
}

// benchTable has 200 virtual hosts; the one asked for has 40 routes.
func benchTable(t testing.TB) (*Table, *fixed) {
	var b strings.Builder
	b.WriteString("virtual_hosts:\n")
	for i := range 200 {
		fmt.Fprintf(&b, "- name: s%d\n  domains: [s%d.default.svc.cluster.local, 's%d.default.svc.cluster.local:80', s%d]\n  routes:\n", i, i, i, i)
		for j := range 40 {
			if j > 0 && i != 17 {
				break
			}
			fmt.Fprintf(&b, "  - {match: {prefix: /svc/%d, headers: [{name: x-user, string_match: {prefix: u}}]}, route: {weighted_clusters: {clusters: [{name: a, weight: 90}, {name: b, weight: 10}]}, prefix_rewrite: /, hash_policy: [{header: {header_name: x-user}}]}}\n", j)
		}
	}
	return compile(t, b.String()), &fixed{[]byte("GET"), []byte("/svc/39/x?q=1"), []byte("S17.default.svc.cluster.local:80"), []byte("u1")}
}

func BenchmarkMatch(b *testing.B) {
	table, r := benchTable(b)
	b.ReportAllocs()
	for b.Loop() {
		table.Match(r, 1).Pick(12345)
	}
}

func BenchmarkCompile(b *testing.B) {
	var text strings.Builder
	text.WriteString("virtual_hosts:\n")
	for i := range 200 {
		fmt.Fprintf(&text, "- name: s%d\n  domains: [s%d]\n  routes: [{match: {prefix: /}, route: {cluster: c%d}}]\n", i, i, i)
	}
	rc, byName := parse(b, text.String()), clusters()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(rc, byName); err != nil {
			b.Fatal(err)
		}
	}
}
