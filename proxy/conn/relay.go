package conn

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
)

// ErrIdle says that nothing came for as long as allowed.
var ErrIdle = errors.New("idle for too long")

// Relay copies bytes both ways between two connections: each direction waits for
// the slower side. One goroutine drives a Half with the Loop of its From, another
// the other Half.
type Relay struct {
	Up, Down Half // towards the server; towards the client

	idle      time.Duration // 0: no limit
	halfClose bool
	active    atomic.Int64
}

// NewRelay joins client and server. idle is how long both directions may be
// silent; 0 means for ever. With halfClose the end of one direction leaves the
// other open, without it ends both.
func NewRelay(client, server *Conn, idle time.Duration, halfClose bool) *Relay {
	r := &Relay{idle: idle, halfClose: halfClose}
	r.Up = Half{relay: r, from: client, to: server}
	r.Down = Half{relay: r, from: server, to: client}
	r.touch(client.Now())
	return r
}

func (r *Relay) touch(now clock.Instant) { r.active.Store(int64(now)) }

// Half is one direction of a Relay and the Handler of the side it reads.
type Half struct {
	Bytes int64 // copied so far; read it when the half has ended
	// Err is why the half ended: nil at the end of the stream.
	Err error
	// Wrote says that Err came from the receiving side.
	Wrote bool

	relay    *Relay
	from, to *Conn
	buf      Buffer
}

// Begin takes bytes that were read from the sending side before the relay began.
func (h *Half) Begin(early []byte) error {
	h.Bytes += int64(len(early))
	return h.to.Write(early)
}

// Ready copies what there is.
func (h *Half) Ready(c *Conn) bool {
	defer h.buf.Release()
	if c.Woken() && h.expired() {
		h.end(ErrIdle)
		return true
	}
	for {
		// It reads until there is nothing: an end of stream that came along with
		// bytes must be passed on at once.
		n, err := c.TryRead(h.buf.Room())
		if err != nil {
			if errors.Is(err, ErrWouldBlock) {
				return h.park()
			}
			h.end(err)
			return true
		}
		h.Bytes += int64(n)
		h.buf.Filled(n)
		if err := h.to.Write(h.buf.Bytes()); err != nil {
			h.Wrote = true
			h.end(err)
			return true
		}
		h.relay.touch(c.Now()) // at once: the next read may not find an end for long
		h.buf.Skip(n)
		if n == SmallBuffer {
			h.buf.Grow() // a long stream: fewer, larger copies
		}
	}
}

// Cancel ends both halves because of err.
func (h *Half) Cancel(err error) { h.end(err) }

func (h *Half) park() bool {
	if h.relay.idle > 0 {
		h.from.WakeAt(clock.Instant(h.relay.active.Load()).Add(h.relay.idle))
	}
	return false
}

func (h *Half) expired() bool {
	last := clock.Instant(h.relay.active.Load())
	return h.relay.idle > 0 && h.from.Now().Sub(last) >= h.relay.idle
}

func (h *Half) end(err error) {
	h.from.WakeAt(0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	h.Err = err
	if err == nil && h.relay.halfClose && h.to.CloseWrite() == nil {
		return
	}
	h.from.Abort()
	h.to.Abort()
}
