// Package conn drives one socket from one goroutine, on the runtime's own poller.
//
// Codecs read through Loop, which holds a single syscall.RawConn.Read open: its
// handler reads and writes without blocking and is called again when the socket
// has more. Between two calls the poller's edge is kept, so a handler that read
// everything parks without asking the kernel again. Connections that have nothing
// to do wait in a Lot, without a goroutine. Time-outs come from proxy/clock. Abort, Drain, Kick and the addresses may be used from any
// goroutine; everything else belongs to the goroutines that serve the connection,
// one reader and one writer at most.
//
// Why this model, what it promises to TLS, HTTP/2 and multiplexed RPC, and its
// traps: ../RATIONALE.md, "Connections".
package conn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
)

// Handler is called while its connection may be read.
type Handler interface {
	// Ready is called when Loop starts, when there is something new to read, and
	// when the connection was woken (Woken says so). It may find nothing to read.
	// It returns true to end Loop. Before it returns false it must have seen a
	// read that did not fill its buffer, or it may not be called again. After such
	// a short read an end of stream that came along with the bytes is seen by the
	// next read only.
	Ready(c *Conn) (done bool)
}

// Conn is one TCP or Unix socket.
type Conn struct {
	nc     net.Conn // immutable after New, as are all fields of this group
	raw    syscall.RawConn
	wheel  *clock.Wheel
	fd     int // valid until Close
	shard  uint32
	local  netip.AddrPort
	remote netip.AddrPort

	// Set by Lot.Admit, before c is served.
	lot    *Lot
	resume func()

	draining atomic.Bool
	kicked   atomic.Bool // since Loop last looked
	resting  atomic.Bool // written with lot.mu held

	// The reader's.
	handler   Handler
	onReady   func(uintptr) bool
	watched   bool // Watch waits for the second call
	readTimer clock.Timer
	woken     bool
	rested    bool
	enrolled  bool          // with lot
	idleSince clock.Instant // see SetIdle

	// The writer's.
	onWritable func(uintptr) bool
	writeTimer *clock.Timer // nil until a write had to wait
	pending    []byte
	writeErr   error
	stall      time.Duration
	sent       uint64
}

// defaultStall is how long a peer may take no byte while we write.
const defaultStall = 5 * time.Minute

// longAgo is a deadline that has passed: setting it wakes whoever is parked.
var longAgo = time.Unix(1, 0)

// New takes over nc, a *net.TCPConn or *net.UnixConn. shard is the connection's
// share of the sharded counters. When New fails nc is still the caller's.
func New(nc net.Conn, wheel *clock.Wheel, shard uint32) (*Conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("serve %T: not a socket", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("serve %v: %w", nc.RemoteAddr(), err)
	}
	c := &Conn{nc: nc, raw: raw, wheel: wheel, shard: shard, stall: defaultStall,
		local: addrPort(nc.LocalAddr()), remote: addrPort(nc.RemoteAddr())}
	if err := raw.Control(func(fd uintptr) { c.fd = int(fd) }); err != nil {
		return nil, fmt.Errorf("serve %v: %w", nc.RemoteAddr(), err)
	}
	c.onReady = c.ready
	c.readTimer.Init(wheel, (*reader)(c))
	return c, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// LocalAddr is our end; the zero value for Unix sockets.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr is the peer's end; the zero value for Unix sockets.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// Shard is the connection's share of the sharded counters.
func (c *Conn) Shard() uint32 { return c.shard }

// Wheel is the wheel that wakes the connection.
func (c *Conn) Wheel() *clock.Wheel { return c.wheel }

// Now is the wheel's time.
func (c *Conn) Now() clock.Instant { return c.wheel.Now() }

// Loop calls h.Ready until it returns true, and then returns nil. It returns
// early with net.ErrClosed after Close. Bytes that h left unread stay for a later
// Loop.
func (c *Conn) Loop(h Handler) error {
	c.handler = h
	for {
		err := c.raw.Read(c.onReady)
		if err == nil {
			c.handler = nil
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.handler = nil
			if errors.Is(err, net.ErrClosed) {
				return net.ErrClosed
			}
			return fmt.Errorf("wait for %v: %w", c.remote, err)
		}
		// The deadline is lifted first: a wake-up that comes after this line ends
		// the next wait, one that came before is covered by this round.
		c.woken = true
		c.kicked.Store(false)
		if err := c.nc.SetReadDeadline(time.Time{}); err != nil {
			c.handler = nil
			return net.ErrClosed
		}
	}
}

func (c *Conn) ready(uintptr) bool {
	if c.handler == nil {
		// The first call comes after the poller was armed: what arrived before is
		// seen by looking, what arrives later brings a second call.
		seen := c.watched || !c.Fresh()
		c.watched = true
		return seen
	}
	done := c.handler.Ready(c)
	c.woken = false
	return done
}

// Watch waits until there is something to read or the connection is woken, and
// reads nothing. It is for connections that may not rest.
func (c *Conn) Watch() error {
	err := c.watch()
	if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if c.nc.SetReadDeadline(time.Time{}) != nil {
		return net.ErrClosed
	}
	return nil
}

func (c *Conn) watch() error {
	c.handler = nil
	c.watched = false
	return c.raw.Read(c.onReady)
}

// Woken reports whether Ready was called because of a timer, Kick or Drain.
func (c *Conn) Woken() bool { return c.woken }

// WakeAt has Ready called at the given moment even if nothing came, in place of
// any earlier setting. Never clears it. Wake-ups may be late by 34 ms and may
// come without cause.
func (c *Conn) WakeAt(at clock.Instant) { c.readTimer.Set(at) }

// Kick has Ready called soon.
func (c *Conn) Kick() { (*reader)(c).Wake() }

// Drain asks whoever serves the connection to end it in an orderly way, and
// wakes it.
func (c *Conn) Drain() {
	c.draining.Store(true)
	c.Kick()
}

// SetIdle notes since when c is idle, for whoever serves it after it has rested.
func (c *Conn) SetIdle(since clock.Instant) { c.idleSince = since }

// IdleSince is what SetIdle noted; 0 before the first time.
func (c *Conn) IdleSince() clock.Instant { return c.idleSince }

// Draining reports whether Drain was called.
func (c *Conn) Draining() bool { return c.draining.Load() }

// Abort ends the stream in both directions at once: whoever reads or writes finds
// it ended. The socket stays until Close, so that no other can get its number
// while somebody still works on it.
func (c *Conn) Abort() {
	// A closed socket refuses both, and that is as good.
	_ = c.raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
}

// Close frees the socket. It must be called when nobody works on the connection
// any more, so never within Loop, and may be called more than once.
func (c *Conn) Close() {
	// A second close reports that it is one; nothing else can be done about a failed one.
	if err := c.nc.Close(); err == nil && c.lot != nil {
		c.lot.warm.Add(-1)
	}
	c.readTimer.Stop()
	if c.writeTimer != nil {
		c.writeTimer.Stop()
	}
}

// ResetOnClose makes Close send a reset rather than an orderly end: what was sent
// is not the whole.
func (c *Conn) ResetOnClose() {
	if t, ok := c.nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // only a closed socket refuses, and that is what is wanted
	}
}

type reader Conn

// Wake ends the reader's wait, be it in Loop or in a Lot.
func (r *reader) Wake() {
	r.kicked.Store(true)
	if r.resting.Load() {
		r.lot.wake((*Conn)(r))
	}
	_ = r.nc.SetReadDeadline(longAgo) // fails when closed: nobody waits
}

type writer Conn

// Wake ends the writer's wait.
func (w *writer) Wake() { _ = w.nc.SetWriteDeadline(longAgo) } // fails when closed: nobody waits
