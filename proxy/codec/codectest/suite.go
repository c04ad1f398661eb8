// Package codectest is the suite that every codec must pass: what it recognises,
// and that it begins and ends exchanges as the contract of proxy/codec says, over
// real sockets. Run is called from the codec's own tests.
//
// What it holds codecs to is the comment of codec.Exchange; why exchanges are
// shaped so: ../../RATIONALE.md, "Codecs".
package codectest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// Samples are bytes of the codec's protocol.
type Samples struct {
	// Request is one whole request and Response what a host answers to it.
	Request, Response []byte
	// Answer is what the client gets; nil means Response.
	Answer []byte
	// Foreign are beginnings of other protocols that Sniff must refuse.
	Foreign [][]byte
	// Malformed are requests of which nothing may reach a host.
	Malformed [][]byte
	// OneExchange says that a connection is one exchange, as with TCP.
	OneExchange bool
}

// limit is how long anything may take here.
const limit = 20 * time.Second

// Run checks c.
func Run(t *testing.T, c codec.Codec, s Samples) {
	if s.Answer == nil {
		s.Answer = s.Response
	}
	t.Run("name", func(t *testing.T) {
		if n := c.Name(); n == "" || n != strings.ToLower(n) {
			t.Errorf("name %q, want lower case", n)
		}
	})
	t.Run("sniff", func(t *testing.T) { sniff(t, c, s) })
	t.Run("requests are exchanges", func(t *testing.T) { requests(t, c, s) })
	t.Run("a host that refuses is a failure", func(t *testing.T) { refused(t, c, s) })
	t.Run("malformed requests reach no host", func(t *testing.T) { malformed(t, c, s) })
	t.Run("drain ends an idle connection", func(t *testing.T) { drained(t, c, s) })
	t.Run("the end of the context ends a busy connection", func(t *testing.T) { cancelled(t, c, s) })
	t.Run("a client that goes away ends its exchange", func(t *testing.T) { gone(t, c, s) })
}

func sniff(t *testing.T, c codec.Codec, s Samples) {
	var matched bool
	for n := range len(s.Request) + 1 {
		switch v := c.Sniff(s.Request[:n]); {
		case v == codec.NoMatch:
			t.Fatalf("Sniff(%q) refuses its own protocol", s.Request[:n])
		case v == codec.Match:
			matched = true
		case matched:
			t.Fatalf("Sniff(%q) is unsure after it was sure", s.Request[:n])
		}
	}
	if !matched {
		t.Error("Sniff does not recognise a whole request")
	}
	for _, f := range s.Foreign {
		if v := c.Sniff(f); v != codec.NoMatch {
			t.Errorf("Sniff(%q): got %d, want NoMatch", f, v)
		}
	}
}

// rig is a codec that serves one connection.
type rig struct {
	t       *testing.T
	client  net.Conn
	conn    *conn.Conn
	session *session
	cancel  context.CancelFunc
	served  chan error
}

// newRig serves a connection whose requests go to the given address.
func newRig(t *testing.T, c codec.Codec, host netip.AddrPort) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	wheel := clock.NewWheel()
	stopped := make(chan struct{})
	wheelCtx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		defer close(stopped)
		_ = wheel.Run(wheelCtx)
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	down, err := conn.New(nc, wheel, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = client.SetDeadline(time.Now().Add(limit))
	cluster := upstream.NewCluster("host", telemetry.NewUpstream("host", "host"))
	cluster.Configure(upstream.Settings{ConnectTimeout: time.Second})
	cluster.SetEndpoints([]upstream.Endpoint{{Addr: host, Weight: 1}})
	r := &rig{t: t, client: client, conn: down, session: &session{t: t, cluster: cluster, ended: make(chan codec.End, 16)}, cancel: cancel, served: make(chan error, 1)}
	go func() { r.served <- c.Serve(ctx, down, codec.Config{}, r.session) }()
	t.Cleanup(func() {
		_ = client.Close()
		cancel()
		if r.served != nil {
			r.over()
		}
		cluster.Retire()
		stop()
		<-stopped
	})
	return r
}

// over waits for Serve.
func (r *rig) over() {
	r.t.Helper()
	select {
	case err := <-r.served:
		r.t.Logf("Serve returned %v", err)
		r.served = nil
	case <-time.After(limit):
		r.t.Fatal("Serve does not return")
	}
	if begun, ended := r.session.begun.Load(), r.session.over.Load(); begun != ended {
		r.t.Errorf("%d exchanges were begun and %d ended", begun, ended)
	}
}

// call sends a request and reads its answer.
func (r *rig) call(s Samples) {
	r.t.Helper()
	if _, err := r.client.Write(s.Request); err != nil {
		r.t.Fatal(err)
	}
	got := make([]byte, len(s.Answer))
	if n, err := io.ReadFull(r.client, got); err != nil || string(got) != string(s.Answer) {
		r.t.Fatalf("got %q, %v, want %q", got[:n], err, s.Answer)
	}
}

func (r *rig) end() codec.End {
	r.t.Helper()
	select {
	case e := <-r.session.ended:
		return e
	case <-time.After(limit):
		r.t.Fatal("the exchange does not end")
		panic("unreachable")
	}
}

func requests(t *testing.T, c codec.Codec, s Samples) {
	h := newHost(t, s, true)
	r := newRig(t, c, h.addr)
	for range 3 {
		r.call(s)
		if !s.OneExchange {
			if e := r.end(); e.Sent == 0 || e.First < e.Sent || e.At < e.First || e.Failure != codec.None {
				t.Errorf("End: got %+v", e)
			}
		}
	}
	_ = r.client.Close()
	r.over()
	want := int64(3)
	if s.OneExchange {
		want = 1
	}
	if got := r.session.begun.Load(); got != want {
		t.Errorf("%d exchanges were begun, want %d", got, want)
	}
}

func refused(t *testing.T, c codec.Codec, s Samples) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	r := newRig(t, c, addr)
	_, _ = r.client.Write(s.Request)
	r.end()
	if f := codec.Failure(r.session.failure.Load()); f != codec.ConnectRefused {
		t.Errorf("got failure %d, want ConnectRefused", f)
	}
	_ = r.client.Close()
	r.over()
}

func malformed(t *testing.T, c codec.Codec, s Samples) {
	for _, m := range s.Malformed {
		h := newHost(t, s, true)
		r := newRig(t, c, h.addr)
		_, _ = r.client.Write(m)
		// It answers or not, but it hangs up.
		if _, err := io.Copy(io.Discard, r.client); err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Errorf("%q: the connection stays open", m)
			}
		}
		_ = r.client.Close()
		r.over()
		if n := h.bytes.Load(); n != 0 {
			t.Errorf("%q: %d bytes reached the host", m, n)
		}
		if r.session.malformed.Load() != 1 {
			t.Errorf("%q: reported as malformed %d times, want once", m, r.session.malformed.Load())
		}
	}
}

func drained(t *testing.T, c codec.Codec, s Samples) {
	if s.OneExchange {
		t.Skip("such a connection is never idle")
	}
	h := newHost(t, s, true)
	r := newRig(t, c, h.addr)
	r.call(s)
	r.end()
	r.conn.Drain()
	r.over()
}

func cancelled(t *testing.T, c codec.Codec, s Samples) {
	h := newHost(t, s, false)
	r := newRig(t, c, h.addr)
	_, _ = r.client.Write(s.Request)
	<-h.got
	r.cancel()
	r.over()
}

func gone(t *testing.T, c codec.Codec, s Samples) {
	h := newHost(t, s, false)
	r := newRig(t, c, h.addr)
	_, _ = r.client.Write(s.Request)
	<-h.got
	_ = r.client.(*net.TCPConn).SetLinger(0)
	_ = r.client.Close()
	r.end()
	r.over()
}
