package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/listener"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shown is all that the server shows, set by the test.
type shown struct {
	mu         sync.Mutex // guards the fields below
	conditions []Condition
	draining   bool
}

func (s *shown) Status() []listener.Status {
	addr := netip.MustParseAddrPort("127.0.0.1:15002")
	return []listener.Status{
		{Name: "a", Addr: addr, Bound: true},
		{Name: "b", Addr: addr, Err: "in use"},
	}
}

func (s *shown) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
}

func (s *shown) Draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func (s *shown) WriteClusters(w io.Writer) error { _, err := fmt.Fprint(w, "c::known\n"); return err }
func (s *shown) WriteDump(w io.Writer) error     { _, err := fmt.Fprint(w, "{}"); return err }

func (s *shown) get() []Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conditions
}

type fixture struct {
	*shown
	admin, metrics, readiness string
	level                     *slog.LevelVar
	reopened                  int
}

func start(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{shown: &shown{}, level: new(slog.LevelVar)}
	reg := prometheus.NewRegistry()
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "requests_total", Help: "x"}, []string{"a"})
	total.WithLabelValues("b").Add(3)
	took := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "took_seconds", Help: "x"})
	took.Observe(2)
	reg.MustRegister(total, took)
	cfg := Config{
		Configuration: f.shown, Listeners: f.shown, Gatherer: reg, Conditions: f.get, Level: f.level,
		ReopenLogs: func() { f.reopened++ }, Node: &corev3.Node{Id: "sidecar~x"}, Version: "v1", Log: slog.New(slog.DiscardHandler),
		Extra: map[string]http.Handler{"GET /more": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "more") })},
	}
	for _, p := range []struct {
		to   *net.Listener
		host *string
	}{{&cfg.Admin, &f.admin}, {&cfg.Metrics, &f.metrics}, {&cfg.Readiness, &f.readiness}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		*p.to, *p.host = l, l.Addr().String()
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

// ask sends a request and returns status and body. Extra are headers, "K: v".
func ask(t *testing.T, method, host, path string, extra ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range extra {
		k, v, _ := strings.Cut(h, ": ")
		if r.Header.Set(k, v); k == "Host" {
			r.Host = v
		}
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPages(t *testing.T) {
	f := start(t)
	for _, tt := range []struct{ method, host, path, want string }{
		{"GET", f.admin, "/clusters", "c::known\n"},
		{"GET", f.admin, "/config_dump", "{}"},
		{"GET", f.admin, "/listeners", "a::127.0.0.1:15002\nb::127.0.0.1:15002::unbound::in use\n"},
		{"GET", f.admin, "/stats", "requests_total{a=b}: 3\ntook_seconds: count 1, sum 2\n"},
		{"GET", f.admin, "/stats/prometheus", `requests_total{a="b"} 3`},
		{"GET", f.metrics, "/metrics", `requests_total{a="b"} 3`},
		{"GET", f.metrics, "/stats/prometheus", `requests_total{a="b"} 3`},
		{"GET", f.admin, "/more", "more"},
		{"GET", f.admin, "/", "/config_dump\n"},
		{"POST", f.admin, "/reopen_logs", "OK\n"},
		{"GET", f.admin, "/debug/pprof/goroutine?debug=1", "goroutine profile"},
	} {
		if code, body := ask(t, tt.method, tt.host, tt.path); code != 200 || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s: got %d %q, want 200 with %q", tt.method, tt.path, code, body, tt.want)
		}
	}
	if f.reopened != 1 {
		t.Errorf("logs were reopened %d times, want once", f.reopened)
	}
	for _, tt := range []struct {
		method, host, path string
		want               int
	}{
		{"GET", f.admin, "/quitquitquit", 404}, {"GET", f.admin, "/drain", 405}, {"GET", f.metrics, "/config_dump", 404},
		{"GET", f.readiness, "/debug/pprof/", 404}, {"POST", f.admin, "/config_dump", 405}, {"GET", f.admin, "/none", 404},
	} {
		if code, _ := ask(t, tt.method, tt.host, tt.path); code != tt.want {
			t.Errorf("%s %s: got %d, want %d", tt.method, tt.path, code, tt.want)
		}
	}
	_, body := ask(t, "GET", f.admin, "/server_info")
	var info struct {
		Version, State string
		Node           struct{ ID string }
	}
	if err := json.Unmarshal([]byte(body), &info); err != nil || info.Version != "v1" || info.Node.ID != "sidecar~x" {
		t.Errorf("/server_info: %v, %s", err, body)
	}
}

func TestReadiness(t *testing.T) {
	f := start(t)
	for _, tt := range []struct {
		conditions []Condition
		code       int
		want       string
	}{
		{nil, 200, "LIVE\n"},
		{[]Condition{{Name: "control plane", Detail: "not connected"}}, 200, "DEGRADED\ncontrol plane: not connected\n"},
		{[]Condition{{Name: "control plane"}, {Name: "listener x", NotReady: true, Detail: "in use"}}, 503, "NOT READY\ncontrol plane: -\nlistener x: in use\n"},
	} {
		f.mu.Lock()
		f.conditions = tt.conditions
		f.mu.Unlock()
		for _, at := range []struct{ host, path string }{{f.admin, "/ready"}, {f.readiness, "/ready"}, {f.readiness, "/healthz/ready"}} {
			if code, body := ask(t, "GET", at.host, at.path); code != tt.code || body != tt.want {
				t.Errorf("%s: got %d %q, want %d %q", at.path, code, body, tt.code, tt.want)
			}
		}
	}
	if code, _ := ask(t, "POST", f.admin, "/drain"); code != 200 || !f.Draining() {
		t.Errorf("/drain: got %d", code)
	}
	if code, body := ask(t, "GET", f.readiness, "/ready"); code != 503 || !strings.HasPrefix(body, "DRAINING\n") {
		t.Errorf("while draining: got %d %q", code, body)
	}
}

func TestLogLevel(t *testing.T) {
	f := start(t)
	if code, body := ask(t, "POST", f.admin, "/logging?level=debug"); code != 200 || body != "level: debug\n" || f.level.Level() != slog.LevelDebug {
		t.Errorf("got %d %q, level %v", code, body, f.level.Level())
	}
	if code, body := ask(t, "POST", f.admin, "/logging?level=warning"); code != 200 || body != "level: warn\n" {
		t.Errorf("got %d %q", code, body)
	}
	if code, _ := ask(t, "POST", f.admin, "/logging?level=loud"); code != 400 || f.level.Level() != slog.LevelWarn {
		t.Errorf("an unknown level: got %d, level %v", code, f.level.Level())
	}
	if code, _ := ask(t, "GET", f.admin, "/logging?level=info"); code != 405 || f.level.Level() != slog.LevelWarn {
		t.Errorf("by GET: got %d, level %v", code, f.level.Level())
	}
}

func TestOtherSitesPagesAreRefused(t *testing.T) {
	f := start(t)
	for _, tt := range []struct {
		name, method, path string
		headers            []string
		want               int
	}{
		{"a name made to point here", "GET", "/config_dump", []string{"Host: evil.example"}, 403},
		{"the same with a port", "GET", "/ready", []string{"Host: evil.example:15000"}, 403},
		{"localhost", "GET", "/ready", []string{"Host: localhost:15000"}, 200},
		{"an IPv6 address", "GET", "/ready", []string{"Host: [::1]:15000"}, 200},
		{"a form of another page", "POST", "/drain", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"an older browser", "POST", "/drain", []string{"Origin: https://evil.example"}, 403},
	} {
		if code, _ := ask(t, tt.method, f.admin, tt.path, tt.headers...); code != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, code, tt.want)
		}
	}
	if f.Draining() {
		t.Error("a refused request drained")
	}
}

func TestTheAdminAddressIsLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = New(Config{Admin: l})
	for _, want := range []string{"want a loopback address", "Configuration is missing", "Log is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
	}
}
