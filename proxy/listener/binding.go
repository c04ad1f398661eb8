package listener

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

// binding is an address: its socket and the connections that came through it.
type binding struct {
	server  *Server
	addr    netip.AddrPort
	current atomic.Pointer[snapshot.Listener] // what new connections are served by

	// Guarded by server.mu.
	socket net.Listener // nil: not bound
	err    error        // why not

	mu      sync.Mutex // guards the fields below
	conns   map[*conn.Conn]struct{}
	retired bool
	empty   chan struct{} // closed when retired and the last connection ended
}

func newBinding(s *Server, addr netip.AddrPort) *binding {
	return &binding{server: s, addr: addr, conns: map[*conn.Conn]struct{}{}, empty: make(chan struct{})}
}

func (b *binding) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// bind opens the socket and starts to accept. It reports false when the address
// could not be bound.
func (b *binding) bind(ctx, serving context.Context) bool {
	s := b.server
	socket, err := s.cfg.Listen(ctx, b.addr)
	s.mu.Lock()
	first := b.err == nil
	b.socket, b.err = socket, err
	live := s.bindings[b.addr] == b // it may have been drained meanwhile
	s.mu.Unlock()
	name := b.current.Load().Name
	if err != nil {
		s.metrics.failures.Inc()
		if first {
			s.cfg.Log.Error("listener not bound", "listener", name, "addr", b.addr, "error", err)
		}
		return false
	}
	if !live {
		_ = socket.Close() // nothing was accepted yet
		return true
	}
	s.cfg.Log.Info("listener bound", "listener", name, "addr", b.addr)
	s.group.Go(func() { b.accept(serving, socket) })
	return true
}

// Pauses after an accept that failed, mostly for want of files.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

func (b *binding) accept(ctx context.Context, socket net.Listener) {
	pause := firstPause
	for {
		nc, err := socket.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			b.server.metrics.acceptErrors.Inc()
			b.server.cfg.Log.Warn("connection not accepted", "listener", b.current.Load().Name, "error", err)
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		b.take(ctx, nc)
	}
}

// take starts to serve a connection, or closes it when there are too many.
func (b *binding) take(ctx context.Context, nc net.Conn) {
	s := b.server
	l := b.current.Load()
	shard := s.shard.Add(1)
	if s.open.Add(1) > int64(s.cfg.MaxConnections) {
		s.open.Add(-1)
		stats(l).ConnectionRefused.Add(shard, 1)
		_ = nc.Close() // nothing was sent or read
		return
	}
	c, err := conn.New(nc, s.cfg.Wheel, shard)
	if err != nil {
		s.open.Add(-1)
		stats(l).ConnectionRefused.Add(shard, 1)
		_ = nc.Close() // as above
		s.cfg.Log.Warn("connection not served", "listener", l.Name, "error", err)
		return
	}
	if !b.add(c) {
		s.open.Add(-1)
		c.Close()
		return
	}
	s.group.Add(1)
	serve := func() {
		err := b.attend(ctx, l, c)
		if errors.Is(err, conn.ErrAtRest) {
			c.Rest() // and serve again when it wakes
			return
		}
		if err != nil {
			s.cfg.Log.Debug("connection ended", "listener", l.Name, "peer", c.RemoteAddr(), "error", err)
		}
		b.remove(c)
		s.open.Add(-1)
		s.group.Done()
	}
	s.lot.Admit(c, serve)
	go serve()
}

// errPanic is how a connection ends whose handling panicked.
var errPanic = errors.New("handling the connection panicked")

// attend serves a connection. A panic, which is a mistake of ours that a peer may
// bring about, costs this connection alone.
func (b *binding) attend(ctx context.Context, l *snapshot.Listener, c *conn.Conn) (err error) {
	s := b.server
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		s.metrics.panics.Inc()
		s.cfg.Log.Error("connection handling panicked", "listener", l.Name, "peer", c.RemoteAddr(), "panic", p, "stack", string(debug.Stack()))
		c.ResetOnClose() // what was sent may be half of something
		c.Close()
		err = errPanic
	}()
	return s.cfg.Serve(ctx, l, c)
}

func stats(l *snapshot.Listener) *telemetry.Downstream {
	if l.HTTP != nil {
		return l.HTTP.Stats
	}
	return l.TCP.Stats
}

func (b *binding) add(c *conn.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired {
		return false
	}
	b.conns[c] = struct{}{}
	return true
}

func (b *binding) remove(c *conn.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	if b.retired && len(b.conns) == 0 {
		close(b.empty)
	}
}

// retire closes the socket, asks connections to end, and in the background ends
// those by force that take too long.
func (b *binding) retire(bound time.Duration) {
	s := b.server
	s.mu.Lock()
	socket := b.socket
	b.socket = nil
	s.mu.Unlock()
	if socket != nil {
		if err := socket.Close(); err != nil {
			s.cfg.Log.Warn("listener not closed", "addr", b.addr, "error", err)
		}
		s.cfg.Log.Info("listener closed", "listener", b.current.Load().Name, "addr", b.addr, "connections", b.connections())
	}
	open := b.end()
	for _, c := range open {
		c.Drain()
	}
	if len(open) == 0 {
		return
	}
	s.group.Go(func() {
		timer := time.NewTimer(bound)
		defer timer.Stop()
		select {
		case <-b.empty:
			return
		case <-timer.C:
		}
		late := b.end()
		s.metrics.aborted.Add(float64(len(late)))
		for _, c := range late {
			c.Abort()
		}
		<-b.empty
	})
}

// end marks the binding as retired and returns its connections.
func (b *binding) end() []*conn.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retired = true
	out := make([]*conn.Conn, 0, len(b.conns))
	for c := range b.conns {
		out = append(out, c)
	}
	return out
}
