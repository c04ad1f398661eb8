package listener

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot"
	"github.com/isthmus-mesh/isthmus/proxy/stream"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a Source that a test sets.
type source struct {
	mu      sync.Mutex // guards now
	now     snapshot.Listeners
	changed chan struct{}
}

func (s *source) Listeners() snapshot.Listeners {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *source) Watch() (<-chan struct{}, func()) { return s.changed, func() {} }

func (s *source) set(all ...*snapshot.Listener) {
	s.mu.Lock()
	s.now = snapshot.Listeners{}
	for _, l := range all {
		s.now[l.Name] = l
	}
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func at(name string, addr netip.AddrPort) *snapshot.Listener {
	return &snapshot.Listener{Name: name, Addr: addr, HTTP: &stream.HTTP{Stats: telemetry.NewDownstream("outbound", addr.Port())}}
}

func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// server runs a Server whose connections first send the name of their listener,
// and end when the client does, or when they are told to drain.
type server struct {
	*Server
	src  *source
	stop func()
}

func start(t *testing.T, edit func(*Config)) *server {
	t.Helper()
	src := &source{now: snapshot.Listeners{}, changed: make(chan struct{}, 1)}
	wheel := clock.NewWheel()
	cfg := Config{
		Source: src, Wheel: wheel, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		DrainTime: time.Minute,
		Serve: func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error {
			defer c.Close()
			if err := c.Write([]byte(l.Name + "\n")); err != nil {
				return err
			}
			return c.Loop(untilEnd{})
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wheeling, stopWheel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- wheel.Run(wheeling) }()
	stop := sync.OnceFunc(func() {
		cancel()
		group.Wait()
		stopWheel()
		if err := <-done; err != nil {
			t.Errorf("wheel: %v", err)
		}
	})
	t.Cleanup(stop)
	return &server{s, src, stop}
}

// untilEnd reads until the peer's end, or until the connection drains.
type untilEnd struct{}

func (untilEnd) Ready(c *conn.Conn) bool {
	var b [64]byte
	for {
		n, err := c.TryRead(b[:])
		switch {
		case errors.Is(err, conn.ErrWouldBlock):
			return c.Draining()
		case err != nil || n == 0:
			return true
		}
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
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

func (s *server) status(name string) Status {
	for _, st := range s.Status() {
		if st.Name == name {
			return st
		}
	}
	return Status{}
}

func (s *server) bound(name string) func() bool { return func() bool { return s.status(name).Bound } }

// dial connects and returns the name it was greeted with.
func dial(t *testing.T, addr netip.AddrPort) (net.Conn, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, line(t, c)
}

func line(t *testing.T, c net.Conn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var out []byte
	var b [1]byte
	for {
		if _, err := c.Read(b[:]); err != nil {
			return "error: " + err.Error()
		}
		if b[0] == '\n' {
			return string(out)
		}
		out = append(out, b[0])
	}
}

func ended(t *testing.T, c net.Conn) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func TestSocketsSurviveNewConfiguration(t *testing.T) {
	s := start(t, nil)
	addr := free(t)
	s.src.set(at("one", addr))
	await(t, "one is bound", s.bound("one"))
	old, name := dial(t, addr)
	if name != "one" {
		t.Fatalf("greeted by %q, want one", name)
	}
	s.src.set(at("two", addr)) // the same address under another name
	await(t, "two took over", s.bound("two"))
	if _, name := dial(t, addr); name != "two" {
		t.Errorf("a new connection was greeted by %q, want two", name)
	}
	await(t, "both connections are counted", func() bool { return s.status("two").Connections == 2 })
	if _, err := old.Write([]byte("x")); err != nil {
		t.Errorf("the old connection is gone: %v", err)
	}
	s.src.set()
	if !ended(t, old) {
		t.Error("after its listener went, an idle connection stays open")
	}
	await(t, "the socket is closed", func() bool {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

func TestATakenAddressIsReportedAndRetried(t *testing.T) {
	s := start(t, nil)
	addr, other := free(t), free(t)
	taken, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	s.src.set(at("bad", addr), at("good", other), at("late", other))
	await(t, "good is bound", s.bound("good"))
	await(t, "bad is reported", func() bool { return s.status("bad").Err != "" })
	if st := s.status("bad"); st.Bound || !st.BindFailed || !strings.Contains(st.Err, "in use by another process") {
		t.Errorf("bad: got %+v", st)
	}
	if st := s.status("late"); st.Bound || st.Err != "the address is taken by listener good" {
		t.Errorf("late: got %+v", st)
	}
	taken.Close()
	await(t, "bad is bound in the end", s.bound("bad"))
}

func TestOnDemandListenersGetTheirAddress(t *testing.T) {
	addr := free(t)
	s := start(t, func(c *Config) { c.OnDemand = map[string]netip.AddrPort{"cart:80": addr} })
	if st := s.status("cart:80"); st.Bound || st.BindFailed || st.Err == "" {
		t.Errorf("before it came: got %+v", st)
	}
	l, unasked := at("cart:80", netip.MustParseAddrPort("0.0.0.0:80")), at("other:80", netip.MustParseAddrPort("0.0.0.0:80"))
	l.OnDemand, unasked.OnDemand = true, true
	s.src.set(l, unasked)
	await(t, "it is bound", s.bound("cart:80"))
	if _, name := dial(t, addr); name != "cart:80" {
		t.Errorf("greeted by %q", name)
	}
	if len(s.Status()) != 1 {
		t.Errorf("got %v, want cart:80 alone", s.Status())
	}
}

type outOfOrder struct{}

func (outOfOrder) Ready(c *conn.Conn) bool {
	if !c.Fresh() {
		panic("out of order")
	}
	return false
}

func TestAPanicEndsItsConnectionAlone(t *testing.T) {
	var log bytes.Buffer
	registry := prometheus.NewRegistry()
	s := start(t, func(c *Config) {
		serve := c.Serve
		c.Metrics = registry
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		c.Serve = func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error {
			if l.Name == "bad" {
				return c.Loop(outOfOrder{})
			}
			return serve(ctx, l, c)
		}
	})
	good, bad := at("good", free(t)), at("bad", free(t))
	s.src.set(good, bad)
	await(t, "both are bound", func() bool { return s.bound("good")() && s.bound("bad")() })
	stays, _ := dial(t, good.Addr)
	for range 2 {
		c, err := net.Dial("tcp", bad.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Error(err)
		}
		if got := line(t, c); !strings.HasPrefix(got, "error: ") || strings.Contains(got, "timeout") {
			t.Errorf("got %q, want the connection ended", got)
		}
	}
	await(t, "one connection is left", func() bool { return s.open.Load() == 1 })
	if _, got := dial(t, good.Addr); got != "good" {
		t.Errorf("after the panics: got %q", got)
	}
	stays.Close()
	s.stop()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0.0
	for _, f := range families {
		if f.GetName() == "mesh_proxy_listener_connection_panics_total" {
			counted = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	if counted != 2 {
		t.Errorf("panics counted: got %v, want 2", counted)
	}
	for _, want := range []string{"level=ERROR", "out of order", "listener_test.go", "listener=bad"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q: %s", want, log.String())
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	s := start(t, func(c *Config) { c.MaxConnections = 2 })
	l := at("l", free(t))
	s.src.set(l)
	await(t, "l is bound", s.bound("l"))
	first, _ := dial(t, l.Addr)
	dial(t, l.Addr)
	if c, name := dial(t, l.Addr); name != "error: EOF" {
		t.Errorf("the third connection was greeted by %q from %v, want it closed", name, c.RemoteAddr())
	}
	if got := l.HTTP.Stats.ConnectionRefused.Value(); got != 1 {
		t.Errorf("refused: got %d, want 1", got)
	}
	first.Close()
	await(t, "there is room again", func() bool { return s.open.Load() == 1 })
	if _, name := dial(t, l.Addr); name != "l" {
		t.Errorf("after one left: got %q", name)
	}
}

func TestDrain(t *testing.T) {
	block := make(chan struct{})
	s := start(t, func(c *Config) {
		c.Serve = func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error {
			defer c.Close()
			if err := c.Write([]byte("hello\n")); err != nil {
				return err
			}
			<-block // busy, whatever it is told
			return nil
		}
	})
	l := at("l", free(t))
	s.src.set(l)
	await(t, "l is bound", s.bound("l"))
	busy, _ := dial(t, l.Addr)
	s.Drain()
	await(t, "it drains", s.Draining)
	await(t, "nothing is accepted", func() bool {
		c, err := net.Dial("tcp", l.Addr.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	s.src.set(at("m", free(t)))
	if _, err := busy.Write([]byte("x")); err != nil {
		t.Errorf("a busy connection was cut off: %v", err)
	}
	close(block)
	s.stop()
	if got := s.Status(); len(got) != 0 {
		t.Errorf("a listener was bound while draining: %v", got)
	}
}

// A connection at rest has no goroutine, is counted all the same, is served again
// when bytes come, and ends when its listener drains.
func TestConnectionsAtRest(t *testing.T) {
	rests := make(chan struct{}, 8)
	s := start(t, func(c *Config) {
		c.MaxConnections = 1
		c.Serve = func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error {
			var b [8]byte
			n, err := c.TryRead(b[:])
			switch {
			case errors.Is(err, conn.ErrWouldBlock) && !c.Draining():
				rests <- struct{}{}
				return conn.ErrAtRest
			case err == nil:
				if err := c.Write(b[:n]); err == nil {
					rests <- struct{}{}
					return conn.ErrAtRest
				}
			}
			c.Close()
			return nil
		}
	})
	l := at("l", free(t))
	s.src.set(l)
	await(t, "l is bound", s.bound("l"))
	c, err := net.Dial("tcp", l.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-rests
	for _, sent := range []string{"one\n", "two\n"} {
		if _, err := c.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		if got := line(t, c); got+"\n" != sent {
			t.Errorf("got %q back, want %q", got, sent)
		}
		<-rests
	}
	if got := s.status("l").Connections; got != 1 {
		t.Errorf("got %d connections, want 1", got)
	}
	s.Drain()
	if !ended(t, c) {
		t.Error("the connection at rest did not end")
	}
}

func TestConnectionsThatDoNotEndAreAborted(t *testing.T) {
	s := start(t, func(c *Config) {
		c.DrainTime = 30 * time.Millisecond
		c.Serve = func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error {
			defer c.Close()
			return c.Loop(stubborn{})
		}
	})
	l := at("l", free(t))
	s.src.set(l)
	await(t, "l is bound", s.bound("l"))
	c, err := net.Dial("tcp", l.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	await(t, "it is served", func() bool { return s.status("l").Connections == 1 })
	s.stop() // returns though the connection did not heed it
	if !ended(t, c) {
		t.Error("the connection is still open")
	}
}

// stubborn ends at the end of the stream only.
type stubborn struct{}

func (stubborn) Ready(c *conn.Conn) bool {
	_, err := c.TryRead(make([]byte, 64))
	return err != nil && !errors.Is(err, conn.ErrWouldBlock)
}

func TestAddressesStayWithTheirServices(t *testing.T) {
	prefix := netip.MustParsePrefix("127.64.0.0/29") // six addresses
	path := filepath.Join(t.TempDir(), "data", "loopback.json")
	a, err := NewAllocator(prefix, path)
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Allocate([]string{"a", "b", "c"})
	if err != nil || len(first) != 3 {
		t.Fatalf("got %v, %v", first, err)
	}
	seen := map[netip.Addr]bool{}
	for service, addr := range first {
		if !prefix.Contains(addr) || addr == prefix.Addr() || addr.As4()[3] == 7 || seen[addr] {
			t.Errorf("%s: got %v", service, addr)
		}
		seen[addr] = true
	}
	again, err := NewAllocator(prefix, path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Allocate([]string{"d", "c", "b", "a", "a"})
	if err != nil {
		t.Fatal(err)
	}
	for service, addr := range first {
		if second[service] != addr {
			t.Errorf("%s: got %v after a restart, want %v", service, second[service], addr)
		}
	}
	if _, err := again.Allocate([]string{"e", "f", "g"}); err == nil {
		t.Error("seven services on six addresses: want an error")
	}

	// Without the file the name decides, where it is free.
	fresh, err := NewAllocator(netip.MustParsePrefix("127.64.0.0/16"), "")
	if err != nil {
		t.Fatal(err)
	}
	one, _ := fresh.Allocate([]string{"cart"})
	other, err := NewAllocator(netip.MustParsePrefix("127.64.0.0/16"), "")
	if err != nil {
		t.Fatal(err)
	}
	two, _ := other.Allocate([]string{"a", "cart", "z"})
	if d := cmp.Diff(one["cart"].String(), two["cart"].String()); d != "" {
		t.Errorf("without a file (-first +second):\n%s", d)
	}
	if moved, _ := other.Allocate([]string{"cart"}, two["cart"]); moved["cart"] == two["cart"] {
		t.Error("a reserved address was given out")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewAllocator(prefix, path); err == nil {
		t.Error("a damaged file: want an error")
	}
}

func TestMistakesOfConfigAreReportedTogether(t *testing.T) {
	_, err := New(Config{MaxConnections: -1})
	want := "listener: Source is missing\nlistener: Serve is missing\nlistener: Wheel is missing\nlistener: Log is missing\nlistener: Metrics is missing\nlistener: MaxConnections and DrainTime must not be negative"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}
