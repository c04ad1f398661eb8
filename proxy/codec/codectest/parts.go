package codectest

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// session makes exchanges that send everything to one cluster and never retry,
// and notes how they are used.
type session struct {
	t       *testing.T
	cluster *upstream.Cluster
	ended   chan codec.End

	begun, over, malformed, failure atomic.Int64
}

func (s *session) Open() codec.Exchange { return &exchange{s: s} }

func (s *session) Malformed(int, clock.Instant) { s.malformed.Add(1) }

// exchange fails the test when the contract is broken.
type exchange struct {
	s    *session
	step codec.Step
	busy atomic.Bool // a method runs
	at   stage
}

type stage uint8

const (
	opened stage = iota
	sending
	answering
	ended
)

func (x *exchange) enter(name string, want ...stage) func() {
	if !x.busy.CompareAndSwap(false, true) {
		x.s.t.Errorf("%s is called while another method runs", name)
	}
	if slices.Contains(want, x.at) {
		return func() { x.busy.Store(false) }
	}
	x.s.t.Errorf("%s is called at stage %d", name, x.at)
	return func() { x.busy.Store(false) }
}

func (x *exchange) Begin(r router.Request, at clock.Instant) *codec.Step {
	defer x.enter("Begin", opened)()
	if at == 0 {
		x.s.t.Error("Begin has no time")
	}
	if r != nil && len(r.Method()) == 0 {
		x.s.t.Error("the request has no method")
	}
	x.s.begun.Add(1)
	x.at = sending
	host := x.s.cluster.Pick(&upstream.Choice{})
	x.step = codec.Step{Action: codec.Send, Cluster: x.s.cluster, Settings: x.s.cluster.Settings(), Host: host, Attempt: 1}
	return &x.step
}

func (x *exchange) Answered(r codec.Response, _ bool, at clock.Instant) *codec.Step {
	defer x.enter("Answered", sending)()
	if at == 0 || r.Status() == 0 {
		x.s.t.Errorf("Answered: status %d at %d", r.Status(), at)
	}
	x.at = answering
	x.step.Action = codec.Relay
	return &x.step
}

func (x *exchange) Failed(f codec.Failure, _ bool, at clock.Instant) *codec.Step {
	defer x.enter("Failed", sending)()
	if at == 0 || f == codec.None {
		x.s.t.Errorf("Failed: failure %d at %d", f, at)
	}
	x.s.failure.Store(int64(f))
	x.at = answering
	x.step.Action = codec.Answer
	x.step.Reply = codec.Reply{Status: 503}
	return &x.step
}

func (x *exchange) End(e *codec.End) {
	defer x.enter("End", sending, answering)()
	if e.At == 0 || e.DownstreamProtocol == "" {
		x.s.t.Errorf("End: got %+v", *e)
	}
	x.at = ended
	x.s.over.Add(1)
	x.s.ended <- *e
}

// host is a server that answers each request, or takes it in silence.
type host struct {
	addr  netip.AddrPort
	bytes atomic.Int64
	got   chan struct{} // the first request has come
}

func newHost(t *testing.T, s Samples, answers bool) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{addr: l.Addr().(*net.TCPAddr).AddrPort(), got: make(chan struct{})}
	var running sync.WaitGroup
	var first sync.Once
	var mu sync.Mutex
	var open []net.Conn
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					h.bytes.Add(int64(n))
					if n > 0 {
						first.Do(func() { close(h.got) })
					}
					if err != nil {
						return
					}
					if answers {
						if _, err := c.Write([]byte(s.Response)); err != nil {
							return
						}
					}
				}
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
		running.Wait()
	})
	return h
}
