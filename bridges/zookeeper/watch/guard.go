package watch

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"
)

// maxReply bounds one reply of the server, in bytes. The largest are lists of
// children: 64 MiB hold 60,000 providers of one interface with 1 KiB of URL each.
const maxReply = 64 << 20

// maxGreeting bounds the first reply, the answer to the connect request, of which
// ZooKeeper sends some 40 bytes. The client library sets no bound of its own.
const maxGreeting = 4 << 10

// greetingTime bounds the wait for that answer. Measured: a server that is just
// starting may take a connection and never answer it; the next try succeeds.
const greetingTime = 3 * time.Second

// minReply is a reply's header; the library's decoder slices behind it unchecked.
const minReply = 16

// guard is a connection to a server whose frames are checked before the client
// library sees them, and whose reads always end.
type guard struct {
	net.Conn
	limit time.Duration // no read waits longer

	// Frames of what was read; used by the library's one reading goroutine.
	head    [4]byte
	headLen int
	left    int64 // bytes of the current frame still to come
	greeted bool

	mu  sync.Mutex // guards the field below
	err error      // why a frame was refused
}

// Read implements net.Conn. A frame of a wrong size ends the connection.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if bad := g.follow(p[:n]); bad != nil {
		g.mu.Lock()
		g.err = bad
		g.mu.Unlock()
		return 0, bad
	}
	return n, err
}

// follow walks over the frames in p.
func (g *guard) follow(p []byte) error {
	for len(p) > 0 {
		if g.left > 0 {
			n := min(g.left, int64(len(p)))
			g.left -= n
			p = p[n:]
			continue
		}
		n := copy(g.head[g.headLen:], p)
		g.headLen += n
		p = p[n:]
		if g.headLen < len(g.head) {
			return nil
		}
		size, low, high := int64(binary.BigEndian.Uint32(g.head[:])), int64(minReply), int64(maxReply)
		if !g.greeted {
			high = maxGreeting
		}
		if size < low || size > high {
			return fmt.Errorf("reply of %d bytes, want %d to %d", size, low, high)
		}
		g.left, g.headLen, g.greeted = size, 0, true
	}
	return nil
}

// SetReadDeadline implements net.Conn. The library waits without end, or for
// minutes, where this connection waits for limit.
func (g *guard) SetReadDeadline(t time.Time) error {
	limit := g.limit
	if !g.greeted {
		limit = min(limit, greetingTime)
	}
	if last := time.Now().Add(limit); t.IsZero() || t.After(last) {
		t = last
	}
	return g.Conn.SetReadDeadline(t)
}

// refused is why a frame was refused; nil when none was.
func (g *guard) refused() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
