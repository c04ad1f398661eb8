package http1

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// A host that takes no bytes does not hold a request longer than its time.
func TestSendingIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	wheel := clock.NewWheel()
	var running sync.WaitGroup
	running.Go(func() { _ = wheel.Run(ctx) }) // ends with ctx
	defer running.Wait()
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, want := range []codec.Failure{codec.Timeout, codec.TryTimeout} {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := conn.New(nc, wheel, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.SetStall(10 * time.Second)
		at := c.Now().Add(50 * time.Millisecond)
		step := &codec.Step{By: at}
		if want == codec.TryTimeout {
			step = &codec.Step{By: at.Add(time.Minute), TryBy: at}
		}
		k := &call{d: &downstream{c: c}, up: &pool.Conn{Conn: c}, step: step, out: make([]byte, 32<<20)}
		if over := (*exchange)(k).Ready(c); !over || k.phase != phaseFailed || k.failure != want {
			t.Errorf("over %v, phase %v, failure %v, want failure %v", over, k.phase, k.failure, want)
		}
		c.Close()
	}
}
