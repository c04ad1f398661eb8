package pool

import (
	"context"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type rig struct {
	t      *testing.T
	wheel  *clock.Wheel
	l      net.Listener
	closed atomic.Int64
}

func newRig(t *testing.T) *rig {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &rig{t: t, wheel: clock.NewWheel(), l: l}
}

// conn returns a pooled connection and its peer.
func (r *rig) conn() (*Conn, net.Conn) {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.l.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	peer, err := r.l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := conn.New(nc, r.wheel, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	pc := NewConn(c, func() { r.closed.Add(1) })
	r.t.Cleanup(func() {
		pc.Close()
		_ = peer.Close()
	})
	return pc, peer
}

func TestNewestIsUsedFirst(t *testing.T) {
	r := newRig(t)
	var p Idle
	a, _ := r.conn()
	b, _ := r.conn()
	p.Put(a, 1)
	p.Put(b, 2)
	if p.Len() != 2 || p.Get(3) != b || p.Get(3) != a || p.Get(3) != nil {
		t.Error("not last in, first out")
	}
}

func TestExpiredAreClosed(t *testing.T) {
	r := newRig(t)
	var p Idle
	a, _ := r.conn()
	a.Expiry = time.Second
	p.Put(a, 1)
	if p.Get(1+clock.Instant(time.Second)) != nil || r.closed.Load() != 1 {
		t.Error("an expired connection was used")
	}
}

func TestNoExpiryIsForEver(t *testing.T) {
	r := newRig(t)
	var p Idle
	a, _ := r.conn()
	a.Expiry = -1
	p.Put(a, 1)
	if p.Get(1+clock.Instant(1000*time.Hour)) != a {
		t.Error("a connection that may be idle for ever was not kept")
	}
}

func TestEvictClosesTheOldest(t *testing.T) {
	r := newRig(t)
	var p Idle
	a, _ := r.conn()
	b, _ := r.conn()
	p.Put(a, 1)
	p.Put(b, 2)
	if !p.Evict() || r.closed.Load() != 1 || p.Get(3) != b || p.Evict() {
		t.Error("want the older one closed and the newer one kept")
	}
}

func TestCloseClosesNowAndLater(t *testing.T) {
	r := newRig(t)
	var p Idle
	a, _ := r.conn()
	b, _ := r.conn()
	p.Put(a, 1)
	p.Close()
	p.Put(b, 2)
	if p.Len() != 0 || r.closed.Load() != 2 {
		t.Errorf("got %d idle and %d closed, want 0 and 2", p.Len(), r.closed.Load())
	}
	b.Close()
	if r.closed.Load() != 2 {
		t.Error("a connection was reported as closed twice")
	}
}

func TestSweepClosesTheDeadAndTheTalkative(t *testing.T) {
	r := newRig(t)
	var p Idle
	dead, deadPeer := r.conn()
	talkative, peer := r.conn()
	good, _ := r.conn()
	for _, c := range []*Conn{dead, talkative, good} {
		p.Put(c, r.wheel.Now().Add(-sweepEvery))
	}
	young, _ := r.conn()
	p.Put(young, r.wheel.Now())
	_ = deadPeer.Close()
	_, _ = peer.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n"))
	for dead.Fresh() || talkative.Fresh() {
		runtime.Gosched()
	}
	(*sweeper)(&p).Wake()
	if p.Len() != 2 || p.Get(r.wheel.Now()) != young || p.Get(r.wheel.Now()) != good {
		t.Error("the wrong connections were kept, or their order is lost")
	}
	p.Close()
}

func TestConcurrentUse(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running, users sync.WaitGroup
	running.Go(func() { _ = r.wheel.Run(ctx) })
	var p Idle
	for range 8 {
		c, _ := r.conn()
		p.Put(c, r.wheel.Now())
	}
	for range 8 {
		users.Go(func() {
			for range 1000 {
				if c := p.Get(r.wheel.Now()); c != nil {
					p.Put(c, r.wheel.Now().Add(-sweepEvery))
				}
			}
		})
	}
	users.Wait()
	if p.Len() != 8 {
		t.Errorf("got %d connections, want 8", p.Len())
	}
	p.Close()
	cancel()
	running.Wait()
}

func BenchmarkGetPut(b *testing.B) {
	var p Idle
	p.armed = true // no connection behind it to take the clock from
	p.Put(&Conn{}, 1)
	b.ReportAllocs()
	for b.Loop() {
		p.Put(p.Get(2), 1)
	}
}
