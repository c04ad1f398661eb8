package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/bridges/builtin"
	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store/sqlite"
)

// leakChecked runs the tests and then looks for goroutines that they left.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"meshctl": main})
}

// server is a real Mesh API over a real store, catalog and built-in registry.
type server struct {
	addr     string
	registry *builtin.Registry
	stop     func()
}

func serve(t testing.TB, dir string) *server {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	st, err := sqlite.Open(ctx, filepath.Join(dir, "rules.db"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cat := catalog.New(catalog.Config{Log: quiet})
	cat.Source("zk-main").Apply(model.Update{Full: true, Services: []*model.Service{{
		Host: "cart", Name: "cart", Namespace: "default", Ports: []model.Port{{Number: 80, Protocol: model.HTTP}},
		Endpoints: []model.Endpoint{
			{Address: netip.MustParseAddrPort("10.0.0.1:8080"), Port: 80, Weight: 100, Labels: model.NewLabels(map[string]string{"version": "v1"})},
			{Address: netip.MustParseAddrPort("10.0.0.2:8080"), Port: 80, Weight: 100, Health: model.Unhealthy, Labels: model.NewLabels(map[string]string{"version": "v2"})},
		},
	}}})
	cat.Source("zk-main").Report(model.SourceStatus{Kind: "zookeeper", Phase: model.Stale, Since: time.Now(), Read: time.Now().Add(-time.Hour), Err: "connection refused",
		Skipped: []model.Rejected{{Where: "/services/odd", Reason: "no port"}}})
	registry, err := builtin.New(builtin.Config{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	proxies := status.NewRegistry()
	proxies.Attach(fixedStreams())
	srv, err := manage.New(manage.Config{
		Listener: l, Store: st, Catalog: cat, Proxies: proxies, Log: quiet, Version: "v0.0.1", Roles: []string{"xds", "api"}, DataDir: "isthmus-data",
		Leases:      registry,
		LeaseErrors: manage.LeaseErrors{Unknown: builtin.ErrUnknownLease, Invalid: builtin.ErrInvalid, Full: builtin.ErrFull},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- srv.Run(ctx) }()
	go func() { done <- registry.Run(ctx, cat.Source("builtin")) }()
	return &server{addr: l.Addr().String(), registry: registry, stop: func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		}
		if err := st.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}}
}

// streams is a status.Source with fixed streams.
type streams []status.Client

func (s streams) Clients(match func(*corev3.Node) bool, _ bool) iter.Seq[status.Client] {
	return func(yield func(status.Client) bool) {
		for _, c := range s {
			if match(c.Node) && !yield(c) {
				return
			}
		}
	}
}

func (s streams) Rollout(only func(string) bool) map[string]map[string]status.Stage {
	const rule = "virtualservice/default/refused"
	if !only(rule) {
		return nil
	}
	return map[string]map[string]status.Stage{rule: {s[0].Node.Id: status.Applied, s[1].Node.Id: status.Refused}}
}

func fixedStreams() streams {
	cluster, err := resource.New(resource.Cluster, "outbound|80||cart", &clusterv3.Cluster{Name: "outbound|80||cart"}, "destinationrule/default/cart")
	if err != nil {
		panic(err) // a constant message always marshals
	}
	refusal := status.Refusal{
		At: time.Unix(0, 0), NodeID: "sidecar~10.0.0.2~web-2.default~default.mesh", Type: resource.Cluster, Name: cluster.Name,
		Version: cluster.Version, Origins: cluster.Origins, Detail: "unknown policy",
	}
	types := func(state status.State, f *status.Refusal) []status.TypeState {
		ts := status.TypeState{Type: resource.Cluster, Held: 1, Version: "abc", Acked: "abc", LastAck: time.Now(), Items: []status.Item{
			{Name: cluster.Name, State: state, Sent: cluster.Version, Current: cluster, Refusal: f},
		}}
		if f != nil {
			ts.Refusals = []status.Refusal{*f}
		}
		return []status.TypeState{ts}
	}
	stream := func(id string, ts []status.TypeState) status.Client {
		return status.Client{Node: &corev3.Node{Id: id, UserAgentName: "isthmus-sidecar"}, Address: "127.0.0.1:5000", Scope: "default", Connected: time.Now(), Types: ts}
	}
	return streams{
		stream("sidecar~10.0.0.1~web-1.default~default.mesh", types(status.Acked, nil)),
		stream(refusal.NodeID, types(status.Nacked, &refusal)),
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			s := serve(t, env.WorkDir)
			env.Defer(s.stop)
			env.Setenv("ISTHMUS_SERVER", s.addr)
			env.Setenv("USER", "ada")
			env.Setenv("TZ", "UTC")
			return nil
		},
	})
}

// run runs meshctl in this process.
func run(t *testing.T, env map[string]string, in string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Run(t.Context(), args, World{In: strings.NewReader(in), Out: &out, Err: &err, Getenv: func(k string) string { return env[k] }})
	return code, out.String(), err.String()
}

func TestExitCodesAndMends(t *testing.T) {
	html := &http.Server{Handler: http.NotFoundHandler()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- html.Serve(l) }()
	defer func() {
		if err := html.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no command shows help", nil, 0, ""},
		{"unknown command", []string{"frob"}, 2, `meshctl has no command "frob" (meshctl --help lists them)`},
		{"a command that is nearly right", []string{"rule", "aply"}, 2, `meshctl rule has no command "aply"; did you mean "apply"?`},
		{"unknown flag", []string{"rule", "list", "--frob"}, 2, "unknown flag: --frob (meshctl rule list --help lists the flags)"},
		{"too many arguments", []string{"rule", "get", "a/b", "c/d"}, 2, "meshctl rule get: accepts 1 arg(s), received 2 (usage: meshctl rule get RULE"},
		{"arguments where none belong", []string{"source", "list", "x"}, 2, "unknown command"},
		{"wrong output", []string{"rule", "list", "-o", "xml"}, 2, "-o xml, want table, json or yaml"},
		{"wrong rule name", []string{"rule", "get", "cart"}, 2, `rule "cart", want kind/namespace/name`},
		{"wrong server", []string{"rule", "list", "--server", "nowhere"}, 2, `server "nowhere" has no port`},
		{"no file", []string{"rule", "apply", "--author", "a"}, 2, "no file: name files or folders with -f"},
		{"no author", []string{"rule", "apply", "-f", "-"}, 2, "set --author"},
		{"no revision", []string{"rule", "rollback", "virtualservice/a", "--author", "a"}, 2, "--to is missing"},
		{"one and all", []string{"rule", "rollback", "virtualservice/a", "--all", "--to", "1"}, 2, "name one rule, or say --all"},
		{"missing file", []string{"rule", "check", "no-such.yaml"}, 1, "no-such.yaml: no such file"},
		{"nobody listens", []string{"rule", "list", "--server", closed}, 1, "no MeshServer answers at " + closed + " (connection refused): start a MeshServer"},
		{"something else listens", []string{"rule", "list", "--server", l.Addr().String()}, 1, "is no Mesh API"},
		{"nobody answers", []string{"rule", "list", "--server", silent.Addr().String(), "--timeout", "50ms"}, 1, "does not answer in time"},
		{"wrong port description", []string{"workload", "register", "--inbound", "app=x,frob=1", "--app", "a"}, 2, `no key "frob"`},
		{"no kind of bootstrap", []string{"bootstrap", "--app", "a"}, 2, `--for "", want sidecar, envoy or grpc`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, stderr := run(t, nil, "", tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.says) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d and %q", code, out, stderr, tt.code, tt.says)
			}
			if tt.code != 0 && (out != "" || !strings.HasPrefix(stderr, "meshctl: ")) {
				t.Errorf("stdout %q, stderr %q: errors belong on stderr, after the program's name", out, stderr)
			}
		})
	}
}

func TestKeepRenewsRegistersAgainAndLeaves(t *testing.T) {
	s := serve(t, t.TempDir())
	defer s.stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- Run(ctx, []string{"--server", s.addr, "workload", "register", "--keep", "--ttl", "1s", "--app", "web",
			"--inbound", "app=127.0.0.1:8080,service=web"}, World{In: strings.NewReader(""), Out: w, Err: w, Getenv: func(string) string { return "" }})
		_ = w.Close()
	}()
	lease := ""
	buf := make([]byte, 4096)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(buf[:n])) {
		if rest, ok := strings.CutPrefix(line, "lease:\t"); ok {
			lease = strings.TrimSpace(rest)
		}
	}
	rest := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(r) // the pipe has no errors of its own
		rest <- string(text)
	}()
	registered := func() bool { return len(s.registry.List()) == 1 }
	if !registered() {
		t.Fatal("not registered")
	}
	// Someone ends the lease, so that the registry is empty: keep registers again.
	if code, _, stderr := run(t, nil, "", "--server", s.addr, "workload", "leave", lease); code != 0 {
		t.Fatalf("leave %q: %s", lease, stderr)
	}
	eventually(t, "it is registered again", registered)
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit %d after the interrupt, want 0: %s", code, <-rest)
	}
	if registered() {
		t.Error("it did not leave")
	}
}

// eventually polls until ok, for at most ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		<-tick.C
	}
}
