package stream_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// refusing is an address where nobody listens.
func refusing(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return l.Addr().String()
}

func withRetries(on string, n uint32, perTry time.Duration) *routev3.Route {
	r := routeTo("origin")
	p := &routev3.RetryPolicy{RetryOn: on, NumRetries: wrapperspb.UInt32(n),
		RetryBackOff: &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(time.Millisecond)}}
	if perTry > 0 {
		p.PerTryTimeout = durationpb.New(perTry)
	}
	r.GetRoute().RetryPolicy = p
	return r
}

const getRoot = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestLocalAnswers(t *testing.T) {
	timeout := routeTo("origin")
	timeout.GetRoute().Timeout = durationpb.New(50 * time.Millisecond)
	silent := newScript(t, func(_ int64, _ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	dying := newScript(t, func(_ int64, _ net.Conn, r *bufio.Reader) { _, _ = head(r) })
	tests := []struct {
		name   string
		route  *routev3.Route
		hosts  []string
		status int
		body   string
	}{
		{"no host", routeTo("origin"), nil, 503, "no healthy upstream"},
		{"refused", routeTo("origin"), []string{refusing(t)}, 503, "reset reason: remote connection failure"},
		{"time-out", timeout, []string{silent.addr()}, 504, "upstream request timeout"},
		{"per-try time-out", withRetries("5xx", 1, 50*time.Millisecond), []string{silent.addr()}, 504, "upstream request timeout"},
		{"reset", routeTo("origin"), []string{dying.addr()}, 503, "reset reason: connection termination"},
		{"no route", &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/other"}}, Action: routeTo("origin").Action}, nil, 404, ""},
		{"direct", &routev3.Route{Match: routeTo("origin").Match, Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 418, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "teapot"}}}}}, nil, 418, "teapot"},
		{"redirect", &routev3.Route{Match: routeTo("origin").Match, Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{HostRedirect: "y"}}}, nil, 301, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, routes(tt.route), tt.hosts...).serve()
			c := b.dial()
			for range 2 { // the connection stays
				c.send(getRoot)
				resp, body := c.answer("GET")
				if resp.StatusCode != tt.status || !strings.HasSuffix(body, tt.body) || (tt.body == "" && body != "") {
					t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
				}
				if tt.status == 301 && resp.Header.Get("Location") != "http://y/" {
					t.Errorf("got Location %q", resp.Header.Get("Location"))
				}
			}
			eventually(t, "no request is active", func() bool { return b.http.Stats.RequestActive.Value() == 0 })
		})
	}
}

func TestRetriesAvoidTheDeadHost(t *testing.T) {
	live := origin(t, echo)
	b := newBed(t, routes(withRetries("connect-failure", 3, 0)), refusing(t), live).serve()
	c := b.dial()
	for range 20 {
		c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
		if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "2:hi" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	if b.clusters["origin"].Stats.Retries.Value() == 0 {
		t.Error("no retry was counted")
	}
}

func TestRetryCountIsExact(t *testing.T) {
	for want := range int64(4) {
		var got atomic.Int64
		b := newBed(t, routes(withRetries("5xx", uint32(want), 0)), origin(t, func(w http.ResponseWriter, _ *http.Request) {
			got.Add(1)
			w.WriteHeader(500)
		}))
		if want == 0 {
			b = newBed(t, routes(routeTo("origin")), origin(t, func(w http.ResponseWriter, _ *http.Request) {
				got.Add(1)
				w.WriteHeader(500)
			}))
		}
		b.serve()
		c := b.dial()
		c.send(getRoot)
		if resp, _ := c.answer("GET"); resp.StatusCode != 500 {
			t.Errorf("got %d, want 500", resp.StatusCode)
		}
		if got.Load() != want+1 {
			t.Errorf("%d retries: the origin saw %d requests, want %d", want, got.Load(), want+1)
		}
	}
}

func TestStreamedBodyIsReplayed(t *testing.T) {
	var n atomic.Int64
	b := newBed(t, routes(withRetries("5xx", 2, 0)), origin(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			body, _ := io.ReadAll(r.Body)
			_ = body
			w.WriteHeader(503)
			return
		}
		echo(w, r)
	})).serve()
	c := b.dial()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
	eventually(t, "the head arrived", func() bool { return b.clusters["origin"].Stats.RequestActive.Value() == 1 })
	c.send("world")
	if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != "10:helloworld" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// A connection that died in the moment of reuse is replaced without a word.
func TestDeadIdleConnectionIsReplaced(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		t.Run(method, func(t *testing.T) {
			closing := make(chan struct{})
			s := newScript(t, func(n int64, c net.Conn, r *bufio.Reader) {
				for {
					if _, err := head(r); err != nil {
						return
					}
					_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", n)
					if n == 1 {
						<-closing
						_ = c.Close()
						closing <- struct{}{}
						return
					}
				}
			})
			b := newBed(t, nil, s.addr()).serve()
			c := b.dial()
			request := method + " / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
			c.send(request)
			c.answer(method)
			closing <- struct{}{}
			<-closing
			c.send(request)
			if resp, body := c.answer(method); resp.StatusCode != 200 || body != "2" {
				t.Errorf("got %d %q, want the second connection's answer", resp.StatusCode, body)
			}
		})
	}
}

// A server that reads a request on a reused connection and dies may have carried
// it out: GET is sent again, POST is not.
func TestOnlyRepeatableRequestsAreSentAgain(t *testing.T) {
	for method, want := range map[string]int{"GET": 200, "PUT": 200, "DELETE": 200, "POST": 503, "PATCH": 503} {
		t.Run(method, func(t *testing.T) {
			s := newScript(t, func(n int64, c net.Conn, r *bufio.Reader) {
				for i := 0; ; i++ {
					if _, err := head(r); err != nil {
						return
					}
					if n == 1 && i == 1 {
						return // read, and died
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			b := newBed(t, nil, s.addr()).serve()
			c := b.dial()
			request := method + " / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
			c.send(request)
			c.answer(method)
			c.send(request)
			if resp, _ := c.answer(method); resp.StatusCode != want {
				t.Errorf("got %d, want %d", resp.StatusCode, want)
			}
		})
	}
}

func TestRequestLimit(t *testing.T) {
	begun, answer := make(chan struct{}, 1), make(chan struct{})
	b := newBed(t, nil, origin(t, func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-answer
	}))
	s := settings()
	s.Limits.Requests = 1
	b.clusters["origin"].Configure(s)
	b.serve()
	first, second := b.dial(), b.dial()
	first.send(getRoot)
	<-begun
	second.send(getRoot)
	resp, body := second.answer("GET")
	if resp.StatusCode != 503 || !strings.HasSuffix(body, "overflow") || resp.Header.Get("X-Envoy-Overloaded") != "true" {
		t.Errorf("got %d %q %v", resp.StatusCode, body, resp.Header)
	}
	close(answer)
	first.answer("GET")
	eventually(t, "the first request has ended", func() bool { return b.http.Stats.RequestActive.Value() == 0 })
	second.send(getRoot)
	if resp, _ := second.answer("GET"); resp.StatusCode != 200 {
		t.Errorf("after the limit: got %d", resp.StatusCode)
	}
}

func TestMaxRequestsPerConnection(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := head(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	b := newBed(t, nil, s.addr())
	b.clusters["origin"].Configure(upstream.Settings{ConnectTimeout: time.Second, MaxRequestsPerConnection: 2, Limits: settings().Limits})
	b.serve()
	c := b.dial()
	for range 6 {
		c.send(getRoot)
		c.answer("GET")
	}
	if got := s.conns.Load(); got != 3 {
		t.Errorf("got %d connections for 6 requests, want 3", got)
	}
}

func TestClientThatGoesAwayCancelsItsRequest(t *testing.T) {
	gone := make(chan struct{})
	b := newBed(t, nil, origin(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(gone)
	})).serve()
	c := b.dial()
	c.send(getRoot)
	eventually(t, "the request is under way", func() bool { return b.clusters["origin"].Stats.RequestActive.Value() == 1 })
	_ = c.Close()
	select {
	case <-gone:
	case <-time.After(15 * time.Second):
		t.Fatal("the origin still works for a client that is gone")
	}
	eventually(t, "the request has ended", func() bool { return b.http.Stats.RequestActive.Value() == 0 })
}

func TestSlowReaderHoldsBackTheOrigin(t *testing.T) {
	var written atomic.Int64
	b := newBed(t, nil, origin(t, func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			n, err := w.Write(buf)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})).serve()
	c := b.dial()
	c.send(getRoot)
	var last int64
	same := 0
	eventually(t, "the origin is held back", func() bool {
		if now := written.Load(); now != last {
			last, same = now, 0
		} else if now > 0 {
			same++
		}
		return same > 50
	})
	if last > 64<<20 {
		t.Errorf("the origin wrote %d bytes that nobody read", last)
	}
}

// A client that takes nothing holds up a host that still answers, and may do so
// no longer than the route allows.
func TestRouteTimeoutEndsAResponseThatASlowClientHoldsUp(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
		for block := make([]byte, 64<<10); ; {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	route := routeTo("origin")
	route.GetRoute().Timeout = durationpb.New(100 * time.Millisecond)
	b := newBed(t, routes(route), s.addr()).serve()
	c := b.dial()
	c.send(getRoot)
	eventually(t, "the exchange ends", func() bool {
		return b.http.Stats.RequestTotal.Value() == 1 && b.http.Stats.RequestActive.Value() == 0
	})
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %v, %v, want the head that was sent in time", resp, err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("got %d bytes and an orderly end, want a broken body", n)
	}
	if got := b.clusters["origin"].Stats.ConnectionActive.Value(); got != 0 {
		t.Errorf("got %d connections to the host, want none", got)
	}
}
