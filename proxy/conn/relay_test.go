package conn_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// A transfer that never finds its source empty is busy, not idle: the other
// direction, which is silent, must not end it.
func TestABusyRelayIsNotIdle(t *testing.T) {
	client, caller := pair(t)
	server, sink := pair(t)
	const idle = 400 * time.Millisecond
	r := conn.NewRelay(client, server, idle, true)
	up, down := loop(client, r.Up.Ready), loop(server, r.Down.Ready)
	wrote := make(chan error, 1)
	go func() {
		// More is sent than the sockets hold, until the sink has enough.
		buf := make([]byte, 1<<20)
		for {
			if _, err := caller.Write(buf); err != nil {
				wrote <- err
				return
			}
		}
	}()
	buf := make([]byte, 256<<10)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(4 * idle); time.Now().Before(until); <-tick.C {
		if _, err := io.ReadFull(sink, buf); err != nil {
			t.Fatalf("the relay ended while it was busy: %v; up %v, down %v", err, r.Up.Err, r.Down.Err)
		}
	}
	// Now nobody takes anything any more: that is idle.
	_ = await(t, "the end of the idle half", down)
	if !errors.Is(r.Down.Err, conn.ErrIdle) {
		t.Errorf("got %v, want ErrIdle", r.Down.Err)
	}
	_ = await(t, "the end of the busy half", up)
	_ = caller.Close()
	_ = await(t, "the caller's end", wrote)
}
