// Package faultproxy puts a TCP proxy between a client and a server, so that a
// test can break the way between them while both run.
//
// A new proxy forwards everything, half-closes and resets included. One fault is
// in force at a time: Cut, Refuse, Delay, Blackhole, ResetAfter and SlowDrip each
// replace the one before, and Resume ends it. A fault reaches the connections
// that are open, too. The proxy ends with its test. All methods may be called
// from any goroutine.
package faultproxy

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// dialTime bounds the connection to the target.
const dialTime = 5 * time.Second

// Proxy forwards TCP connections to one target.
type Proxy struct {
	t      testing.TB // immutable after Start
	addr   string     // immutable after Start
	target string     // immutable after Start
	quit   chan struct{}
	tasks  sync.WaitGroup // every goroutine of the proxy

	mu       sync.Mutex // guards the fields below
	listener net.Listener
	fault    *fault
	links    map[*link]struct{}
	accepted int
	closed   bool
}

// fault is what is wrong at present. Only changed is ever touched after it is
// set: it is closed when another fault takes its place.
type fault struct {
	delay      time.Duration // every byte comes so much later
	hold       bool          // no byte comes
	resetAfter int           // answer bytes until the reset; negative means none
	dripBytes  int           // answer bytes an interval; zero means no limit
	dripEvery  time.Duration
	changed    chan struct{}
}

// healthy returns a fault with nothing wrong.
func healthy() *fault { return &fault{resetAfter: -1, changed: make(chan struct{})} }

// Start starts a proxy in front of target, host:port. The target need not listen
// yet: a connection that cannot be forwarded is reset.
func Start(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{
		t:      t,
		addr:   net.JoinHostPort("127.0.0.1", strconv.Itoa(peers.FreePort(t))),
		target: target,
		quit:   make(chan struct{}),
		fault:  healthy(),
		links:  make(map[*link]struct{}),
	}
	if err := p.listen(); err != nil {
		t.Fatalf("start fault proxy: %v", err)
	}
	t.Cleanup(p.close)
	return p
}

// Addr returns the address for clients, host:port. It is the same for life.
func (p *Proxy) Addr() string { return p.addr }

// Accepted returns how many connections clients have made so far.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open returns how many connections are open.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Cut resets every connection and refuses new ones, as if the server had crashed.
func (p *Proxy) Cut() {
	p.t.Helper()
	p.Refuse()
	for _, l := range p.snapshot() {
		l.reset()
		<-l.gone
	}
}

// Refuse refuses new connections; the open ones go on.
func (p *Proxy) Refuse() {
	p.t.Helper()
	p.set(healthy())
	p.mu.Lock()
	listener := p.listener
	p.listener = nil
	p.mu.Unlock()
	if listener == nil {
		return
	}
	if err := listener.Close(); err != nil {
		p.t.Errorf("refuse connections: %v", err)
	}
}

// Resume ends whatever is wrong. What was held back is delivered.
func (p *Proxy) Resume() {
	p.t.Helper()
	p.use(healthy())
}

// Delay delivers every byte later by d, in each direction.
func (p *Proxy) Delay(d time.Duration) {
	p.t.Helper()
	f := healthy()
	f.delay = d
	p.use(f)
}

// Blackhole accepts connections and forwards nothing, on old ones neither. Bytes
// on their way stay where they are, as if packets were lost, until Resume.
func (p *Proxy) Blackhole() {
	p.t.Helper()
	f := healthy()
	f.hold = true
	p.use(f)
}

// ResetAfter resets each connection once it has delivered n more bytes of the
// server's answers: the open connections, and every new one.
func (p *Proxy) ResetAfter(n int) {
	p.t.Helper()
	f := healthy()
	f.resetAfter = n
	p.use(f)
}

// SlowDrip delivers at most n bytes of the server's answers each interval, on
// every connection. Requests pass at full speed.
func (p *Proxy) SlowDrip(n int, interval time.Duration) {
	p.t.Helper()
	f := healthy()
	f.dripBytes, f.dripEvery = n, interval
	p.use(f)
}

// use puts f in force and listens again if connections were refused.
func (p *Proxy) use(f *fault) {
	p.t.Helper()
	p.set(f)
	if err := p.listen(); err != nil {
		p.t.Errorf("accept connections again: %v", err)
	}
}

func (p *Proxy) set(f *fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.fault.changed)
	p.fault = f
}

func (p *Proxy) current() *fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

// listen accepts connections, if it does not yet.
func (p *Proxy) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return nil
	}
	listener, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener = listener
	p.tasks.Go(func() { p.accept(listener) })
	return nil
}

// accept serves a listener until it is closed.
func (p *Proxy) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.t.Errorf("accept a connection: %v", err)
			return
		}
		if l := p.admit(listener, conn.(*net.TCPConn)); l != nil {
			p.tasks.Go(func() { p.serve(l) })
		}
	}
}

// admit makes the link for a client's connection; nil if connections are refused
// since it was accepted.
func (p *Proxy) admit(listener net.Listener, client *net.TCPConn) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != listener {
		abort(client)
		return nil
	}
	l := newLink(p, client)
	p.links[l] = struct{}{}
	p.accepted++
	return l
}

// serve forwards one connection until it ends.
func (p *Proxy) serve(l *link) {
	defer close(l.gone)
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	for f := p.current(); f.hold; f = p.current() {
		select {
		case <-f.changed:
		case <-l.dead:
			return
		}
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), dialTime)
	defer cancel()
	server, err := new(net.Dialer).DialContext(ctx, "tcp", p.target)
	if err != nil || !l.connect(server.(*net.TCPConn)) {
		l.reset()
		return
	}
	l.forward()
}

func (p *Proxy) snapshot() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

// close ends the proxy and all its goroutines.
func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
	p.tasks.Wait()
}
