package faultproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// chunkBytes is the most that is read at once.
	chunkBytes = 32 << 10
	// queueChunks is how much may be on its way in one direction. When it is
	// full, reading stops, and so in the end does the sender.
	queueChunks = 64
)

// link is one connection of a client and its counterpart to the target.
type link struct {
	proxy  *Proxy
	client *net.TCPConn
	dead   chan struct{} // closed by reset
	gone   chan struct{} // closed when nothing of the link is left

	mu     sync.Mutex   // guards the fields below
	server *net.TCPConn // nil until connected
	cut    bool
}

// chunk is what was read at once.
type chunk struct {
	bytes []byte
	at    time.Time // when it was read
}

func newLink(p *Proxy, client *net.TCPConn) *link {
	return &link{proxy: p, client: client, dead: make(chan struct{}), gone: make(chan struct{})}
}

// connect gives the link its other end, and reports whether it still lives.
func (l *link) connect(server *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		abort(server)
		return false
	}
	l.server = server
	return true
}

// reset ends both connections with RST. It may be called more than once.
func (l *link) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return
	}
	l.cut = true
	close(l.dead)
	abort(l.client)
	if l.server != nil {
		abort(l.server)
	}
}

// abort closes a connection with RST. Errors mean that it is closed already.
func abort(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// forward copies both ways until both sides have finished or one has died.
func (l *link) forward() {
	var both sync.WaitGroup
	both.Go(func() { l.pump(l.server, l.client, false) })
	both.Go(func() { l.pump(l.client, l.server, true) })
	both.Wait()
	// Both ends have seen their EOF, or the link was reset: closing twice does no harm.
	_ = l.client.Close()
	_ = l.server.Close()
}

// pump copies from src to dst; answers says that src is the server.
func (l *link) pump(dst, src *net.TCPConn, answers bool) {
	queue := make(chan chunk, queueChunks)
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() {
		defer close(queue)
		l.read(queue, src)
	})
	out := delivery{link: l, dst: dst, answers: answers}
	for c := range queue {
		if !out.deliver(c) {
			l.reset()
			return
		}
	}
	if err := dst.CloseWrite(); err != nil {
		l.reset()
	}
}

// read queues what comes from src until its end. Any other end than EOF resets
// the link, so that the peer sees what the proxy saw.
func (l *link) read(queue chan<- chunk, src *net.TCPConn) {
	for {
		buf := make([]byte, chunkBytes)
		n, err := src.Read(buf)
		if n > 0 {
			select {
			case queue <- chunk{bytes: buf[:n], at: time.Now()}:
			case <-l.dead:
				return
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			l.reset()
			return
		}
	}
}

// delivery is one direction of a link: what reaches dst, and when.
type delivery struct {
	link    *link
	dst     *net.TCPConn
	answers bool

	counted *fault // the fault that sent counts for
	sent    int    // bytes delivered since counted came into force, or the link began
}

// deliver writes a chunk as the fault of the moment has it, and reports whether
// the link lives on.
func (d *delivery) deliver(c chunk) bool {
	for len(c.bytes) > 0 {
		f := d.link.proxy.current()
		if f != d.counted {
			d.counted, d.sent = f, 0
		}
		n := len(c.bytes)
		switch {
		case f.hold:
			if !d.wait(f, nil) {
				return false
			}
			continue
		case f.delay > 0:
			if left := time.Until(c.at.Add(f.delay)); left > 0 {
				timer := time.NewTimer(left)
				alive := d.wait(f, timer.C)
				timer.Stop()
				if !alive {
					return false
				}
				continue // another fault may be in force now
			}
		case d.answers && f.resetAfter >= 0:
			n = min(n, f.resetAfter-d.sent)
		case d.answers && f.dripBytes > 0:
			n = min(n, f.dripBytes)
		}
		if _, err := d.dst.Write(c.bytes[:n]); err != nil {
			return false
		}
		c.bytes = c.bytes[n:]
		d.sent += n
		if d.answers && f.resetAfter >= 0 && d.sent >= f.resetAfter {
			return false
		}
		if d.answers && f.dripBytes > 0 {
			timer := time.NewTimer(f.dripEvery)
			alive := d.wait(f, timer.C)
			timer.Stop()
			if !alive {
				return false
			}
		}
	}
	return true
}

// wait blocks until the fault changes or the timer fires (never, if nil). It
// reports whether the link lives.
func (d *delivery) wait(f *fault, timer <-chan time.Time) bool {
	select {
	case <-f.changed:
		return true
	case <-timer:
		return true
	case <-d.link.dead:
		return false
	}
}
