// Package pool keeps idle HTTP/1 connections to one host for the next request.
//
// proxy/upstream embeds an Idle in each host; proxy/codec/http1 takes connections
// out and puts them back. The newest is used first, so that a burst's surplus
// grows old and is closed. All methods may be called from any goroutine; a Conn
// belongs to whoever took it.
//
// When a request may be sent again on another connection: ../../RATIONALE.md,
// "Reuse".
package pool

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// maxIdle bounds the idle connections of one host: with more requests at once
// than this the surplus is opened and closed, which the cluster's limits bound.
const maxIdle = 1024

// sweepEvery is how often a host's idle connections are looked at.
const sweepEvery = 5 * time.Second

// Conn is a connection to a host with what its pool must know.
type Conn struct {
	*conn.Conn
	Requests uint32        // sent so far
	Expiry   time.Duration // how long it may be idle; 0 or less: for ever

	onClose func()
	closed  atomic.Bool
	idle    clock.Instant
}

// NewConn wraps c. onClose is called once, when it is closed.
func NewConn(c *conn.Conn, onClose func()) *Conn { return &Conn{Conn: c, onClose: onClose} }

// Close closes the connection and reports it to its cluster, once.
func (c *Conn) Close() {
	if c.closed.CompareAndSwap(false, true) {
		c.Conn.Close()
		c.onClose()
	}
}

// Idle holds idle connections. The zero Idle is empty and ready.
type Idle struct {
	mu     sync.Mutex // guards the fields below
	conns  []*Conn    // oldest first
	closed bool
	armed  bool
	timer  *clock.Timer
}

// Get takes the newest connection that can still be used, or returns nil.
func (p *Idle) Get(now clock.Instant) *Conn {
	for {
		p.mu.Lock()
		last := len(p.conns) - 1
		if last < 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.conns[last]
		p.conns[last] = nil
		p.conns = p.conns[:last]
		p.mu.Unlock()
		if c.Expiry <= 0 || now.Sub(c.idle) < c.Expiry {
			return c
		}
		c.Close()
	}
}

// Evict closes the connection that is idle for longest, to make room for another
// under the cluster's limit; false: none is idle.
func (p *Idle) Evict() bool {
	p.mu.Lock()
	if len(p.conns) == 0 {
		p.mu.Unlock()
		return false
	}
	c := p.conns[0]
	p.conns = slices.Delete(p.conns, 0, 1)
	p.mu.Unlock()
	c.Close()
	return true
}

// Put keeps c for later, or closes it when there is no room or the host is gone.
func (p *Idle) Put(c *Conn, now clock.Instant) {
	c.idle = now
	p.mu.Lock()
	if p.closed || len(p.conns) >= maxIdle {
		p.mu.Unlock()
		c.Close()
		return
	}
	p.conns = append(p.conns, c)
	arm := !p.armed
	if arm {
		p.armed = true
		if p.timer == nil {
			p.timer = new(clock.Timer)
			p.timer.Init(c.Wheel(), (*sweeper)(p))
		}
	}
	p.mu.Unlock()
	if arm {
		p.timer.Set(now.Add(sweepEvery))
	}
}

// Len is how many connections are idle.
func (p *Idle) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Close closes all idle connections; later ones are closed when they are put back.
func (p *Idle) Close() {
	p.mu.Lock()
	conns, timer := p.conns, p.timer
	p.conns, p.closed = nil, true
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	if timer != nil {
		timer.Stop()
	}
}

type sweeper Idle

// Wake closes connections that are too old or that the peer has closed. Bytes
// that nobody asked for end a connection too: they must not become the answer to
// the next request. Only those idle since the last sweep are looked at; younger
// ones are in demand, and are checked when they are used.
func (s *sweeper) Wake() {
	s.mu.Lock()
	if s.closed || len(s.conns) == 0 {
		s.armed = false
		s.mu.Unlock()
		return
	}
	now := s.conns[0].Now()
	n := 0
	for n < len(s.conns) && now.Sub(s.conns[n].idle) >= sweepEvery {
		n++
	}
	old := slices.Clone(s.conns[:n])
	s.conns = slices.Delete(s.conns, 0, n)
	s.mu.Unlock()

	old = slices.DeleteFunc(old, func(c *Conn) bool {
		dead := (c.Expiry > 0 && now.Sub(c.idle) >= c.Expiry) || !c.Fresh()
		if dead {
			c.Close()
		}
		return dead
	})

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		for _, c := range old {
			c.Close()
		}
		return
	}
	s.conns = slices.Insert(s.conns, 0, old...)
	s.mu.Unlock()
	s.timer.Set(now.Add(sweepEvery))
}
