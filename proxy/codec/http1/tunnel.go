package http1

import (
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// tunnel is a connection that was upgraded: both sides' bytes pass as they are.
type tunnel struct {
	relay *conn.Relay
	up    *pool.Conn
	done  chan struct{}
}

// startTunnel joins both connections after a 101 response.
func (d *downstream) startTunnel(k *call) {
	idle := max(k.idle(), time.Duration(0))
	t := &tunnel{relay: conn.NewRelay(d.c, k.up.Conn, idle, false), up: k.up, done: make(chan struct{})}
	d.tunnel, d.mode = t, modeTunnel
	k.up.WakeAt(0)
	errDown := t.relay.Down.Begin(k.rbuf.Bytes())
	errUp := t.relay.Up.Begin(k.in.Bytes()[k.req.size:])
	k.rbuf.Release()
	if errDown != nil || errUp != nil {
		d.c.Abort()
		t.up.Abort()
	}
	go func() {
		defer close(t.done)
		// What ended it is in the half, and the other half ends with it.
		if err := t.up.Loop(&t.relay.Down); err != nil {
			d.c.Abort()
		}
	}()
}

// endTunnel closes what startTunnel began.
func (d *downstream) endTunnel() {
	t := d.tunnel
	if t == nil {
		return
	}
	t.up.Abort()
	<-t.done
	t.up.Close()
	d.tunnel = nil
	k := d.call
	k.requestBytes, k.responseBytes = t.relay.Up.Bytes, t.relay.Down.Bytes
	k.finishExchange(101, codec.None, d.c.Now())
}
