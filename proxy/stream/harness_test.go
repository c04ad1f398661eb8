package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec/http1"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/stream"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is one listener with its clusters.
type bed struct {
	t        testing.TB
	wheel    *clock.Wheel
	clusters map[string]*upstream.Cluster
	http     *stream.HTTP
	addr     string
	crowded  bool // connections rest as soon as they have nothing to do

	mu    sync.Mutex
	conns []*conn.Conn
}

func settings() upstream.Settings {
	return upstream.Settings{ConnectTimeout: time.Second,
		Limits: upstream.Limits{Connections: 1024, Requests: 1024, Retries: 16}}
}

// newBed serves HTTP with the given routes; nil means everything to cluster
// "origin", whose hosts are given.
func newBed(t testing.TB, rc *routev3.RouteConfiguration, hosts ...string) *bed {
	t.Helper()
	b := &bed{t: t, wheel: clock.NewWheel(), clusters: map[string]*upstream.Cluster{}}
	b.cluster("origin", hosts...)
	if rc == nil {
		rc = routes(routeTo("origin"))
	}
	table, err := router.Compile(rc, func(name string) *upstream.Cluster { return b.clusters[name] })
	if err != nil {
		t.Fatal(err)
	}
	b.http = &stream.HTTP{Routes: new(atomic.Pointer[router.Table]), Stats: telemetry.NewDownstream("outbound", 1), Codec: http1.New()}
	b.http.Routes.Store(table)
	return b
}

func (b *bed) cluster(name string, hosts ...string) *upstream.Cluster {
	c := upstream.NewCluster(name, telemetry.NewUpstream(name, name))
	c.Configure(settings())
	var eps []upstream.Endpoint
	for _, h := range hosts {
		eps = append(eps, upstream.Endpoint{Addr: netip.MustParseAddrPort(h), Weight: 1})
	}
	c.SetEndpoints(eps)
	b.clusters[name] = c
	b.t.Cleanup(c.Retire)
	return c
}

// serve starts accepting; the bed ends with the test.
func (b *bed) serve() *bed {
	b.t.Helper()
	return b.serveBy(b.http.Serve)
}

func (b *bed) serveTCP(idle time.Duration) *bed {
	s := &stream.TCP{Destinations: []stream.TCPDestination{{Cluster: b.clusters["origin"], Weight: 1}},
		Stats: b.http.Stats, Codec: tcp.New(), IdleTimeout: idle}
	return b.serveBy(s.Serve)
}

func (b *bed) serveBy(serve func(context.Context, *conn.Conn) error) *bed {
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.addr = l.Addr().String()
	lot, err := conn.NewLot()
	if err != nil {
		b.t.Fatal(err)
	}
	for range 5000 {
		if b.crowded {
			lot.Admit(new(conn.Conn), func() {})
		}
	}
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var running, resting sync.WaitGroup
	resting.Go(func() {
		if err := lot.Run(watching); err != nil {
			b.t.Error(err)
		}
	})
	running.Go(func() { _ = b.wheel.Run(ctx) })
	running.Go(func() {
		for shard := uint32(0); ; shard++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c, err := conn.New(nc, b.wheel, shard)
			if err != nil {
				b.t.Error(err)
				continue
			}
			b.mu.Lock()
			b.conns = append(b.conns, c)
			b.mu.Unlock()
			running.Add(1)
			again := func() {
				err := serve(ctx, c)
				if errors.Is(err, conn.ErrAtRest) {
					c.Rest()
					return
				}
				if err != nil {
					b.t.Log(err)
				}
				running.Done()
			}
			lot.Admit(c, again)
			go again()
		}
	})
	b.t.Cleanup(func() {
		_ = l.Close()
		cancel()
		b.mu.Lock()
		for _, c := range b.conns {
			c.Abort() // those at rest have nobody who looks at ctx
		}
		b.mu.Unlock()
		running.Wait()
		unwatch()
		resting.Wait()
		for _, c := range b.clusters {
			c.Retire()
		}
	})
	return b
}

// drain asks all connections to end.
func (b *bed) drain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.Drain()
	}
}

func routes(rs ...*routev3.Route) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: rs}}}
}

func routeTo(cluster string) *routev3.Route {
	return &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}},
	}
}

// client is a raw connection to the bed.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (b *bed) dial() *client { return dial(b.t, b.addr) }

func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &client{c, t, bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// answer reads one response and its body.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read answer: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read body of %s: %v", resp.Status, err)
	}
	return resp, string(body)
}

// ended checks that the proxy closed the connection.
func (c *client) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err == nil {
		c.t.Fatalf("got byte %q, want the end of the connection", b)
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		c.t.Fatal("the connection is still open")
	}
}

// script is a raw server: every connection is handled by f, which gets what was
// read up to the empty line.
type script struct {
	net.Listener
	conns atomic.Int64
}

func newScript(t testing.TB, f func(n int64, c net.Conn, r *bufio.Reader)) *script {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{Listener: l}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			n := s.conns.Add(1)
			wg.Go(func() {
				defer c.Close()
				f(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *script) addr() string { return s.Addr().String() }

// head reads a request head as it came.
func head(r *bufio.Reader) (string, error) {
	var b bytes.Buffer
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

// origin is a net/http server.
func origin(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().String()
}

// eventually polls a condition that others bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}
