// Package listener binds the sidecar's listeners, accepts connections and hands
// each to its protocol; when the configuration changes it binds, unbinds and
// swaps without touching connections that are open.
//
// A socket is known by its address: a listener that is renamed or reconfigured
// keeps its socket. An address that cannot be bound is reported (Status, metrics),
// tried again with growing pauses, and leaves the others alone. Connections are
// bounded; those over the bound are closed at once and counted.
//
// Allocator gives egress services loopback addresses that stay over restarts.
//
// All methods may be called from any goroutine.
package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot"
)

// Source is where listeners come from: snapshot.Store.
type Source interface {
	Listeners() snapshot.Listeners
	Watch() (changed <-chan struct{}, stop func())
}

// ServeFunc serves a connection by what l says, and closes it.
type ServeFunc func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error

// Config of a Server.
type Config struct {
	Source Source       // required
	Serve  ServeFunc    // required
	Wheel  *clock.Wheel // required; its Run is the caller's
	// OnDemand gives listeners that have no address of their own one to bind,
	// by name. On-demand listeners that are not in it are not bound.
	OnDemand map[string]netip.AddrPort
	// MaxConnections bounds the connections of all listeners; 0 means 16,000.
	MaxConnections int
	// DrainTime bounds how long connections may finish after their listener
	// went or Run was told to end; 0 means 30 s.
	DrainTime time.Duration
	Log       *slog.Logger          // required
	Metrics   prometheus.Registerer // required
	// Listen binds an address; nil means a TCP socket of the machine.
	Listen func(ctx context.Context, addr netip.AddrPort) (net.Listener, error)
}

// Defaults of Config, and the pauses between attempts to bind.
const (
	defaultMaxConnections = 16000
	defaultDrainTime      = 30 * time.Second
	firstRetry            = 250 * time.Millisecond
	lastRetry             = 15 * time.Second
)

// Status is the state of one listener.
type Status struct {
	Name        string
	Addr        netip.AddrPort
	Bound       bool
	BindFailed  bool   // the address could not be had
	Err         string // why it is not bound
	Connections int
}

// Server accepts connections. Make one with New.
type Server struct {
	cfg     Config
	metrics *metrics
	open    atomic.Int64  // connections
	shard   atomic.Uint32 // of the next connection
	drain   chan struct{} // closed by Drain
	once    sync.Once     // guards closing drain
	group   sync.WaitGroup
	lot     *conn.Lot // of idle connections; set by Run before any other goroutine

	mu       sync.Mutex // guards the fields below
	bindings map[netip.AddrPort]*binding
	refused  []Status // listeners that were not given a binding
	drained  bool
}

// New checks cfg.
func New(cfg Config) (*Server, error) {
	var errs []error
	for _, f := range []struct {
		missing bool
		name    string
	}{
		{cfg.Source == nil, "Source"}, {cfg.Serve == nil, "Serve"}, {cfg.Wheel == nil, "Wheel"},
		{cfg.Log == nil, "Log"}, {cfg.Metrics == nil, "Metrics"},
	} {
		if f.missing {
			errs = append(errs, errors.New("listener: "+f.name+" is missing"))
		}
	}
	if cfg.MaxConnections < 0 || cfg.DrainTime < 0 {
		errs = append(errs, errors.New("listener: MaxConnections and DrainTime must not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cfg.MaxConnections = cmp.Or(cfg.MaxConnections, defaultMaxConnections)
	cfg.DrainTime = cmp.Or(cfg.DrainTime, defaultDrainTime)
	if cfg.Listen == nil {
		cfg.Listen = listenTCP
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, metrics: m, drain: make(chan struct{}), bindings: map[netip.AddrPort]*binding{}}, nil
}

// Drain stops accepting for good and lets connections finish within DrainTime.
// Run goes on until its context ends.
func (s *Server) Drain() { s.once.Do(func() { close(s.drain) }) }

// Draining reports that Drain was called or Run is about to end.
func (s *Server) Draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drained
}

// Run serves until ctx ends, then drains and returns nil.
func (s *Server) Run(ctx context.Context) error {
	changed, stop := s.cfg.Source.Watch()
	defer stop()
	lot, err := conn.NewLot()
	if err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	s.lot = lot
	// Connections outlive ctx by the time they may take to finish.
	serving, abort := context.WithCancel(context.WithoutCancel(ctx))
	var resting sync.WaitGroup
	resting.Go(func() {
		if err := lot.Run(serving); err != nil {
			s.cfg.Log.Error("idle connections are not served any more", "error", err)
		}
	})
	defer func() {
		abort()
		resting.Wait()
	}()

	retry := time.NewTimer(0)
	defer retry.Stop()
	pause := firstRetry
	drain := (<-chan struct{})(s.drain)
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case <-drain:
			drain = nil
			s.drainAll()
		case <-changed:
			pause = firstRetry
			retry.Reset(0)
		case <-retry.C:
			if !s.reconcile(ctx, serving) {
				retry.Reset(pause)
				pause = min(2*pause, lastRetry)
			}
		}
	}
	s.drainAll()
	s.group.Wait()
	return nil
}

// reconcile binds what is to be served and unbinds what no longer is. It reports
// false when an address could not be bound.
func (s *Server) reconcile(ctx, serving context.Context) bool {
	want, refused := s.wanted()
	s.mu.Lock()
	if s.drained {
		s.mu.Unlock()
		return true
	}
	var gone []*binding
	var fresh []*binding
	for addr, b := range s.bindings {
		if want[addr] == nil {
			delete(s.bindings, addr)
			gone = append(gone, b)
		}
	}
	for addr, l := range want {
		b := s.bindings[addr]
		if b == nil {
			b = newBinding(s, addr)
			s.bindings[addr] = b
		}
		b.current.Store(l)
		if b.socket == nil {
			fresh = append(fresh, b)
		}
	}
	s.refused = refused
	s.mu.Unlock()

	for _, b := range gone {
		b.retire(s.cfg.DrainTime)
	}
	ok := true
	for _, b := range fresh {
		ok = b.bind(ctx, serving) && ok
	}
	s.metrics.unbound.Set(float64(s.unbound()))
	return ok
}

// wanted is the listeners by the address they are to be bound at, and those that
// cannot be, because another has their address.
func (s *Server) wanted() (map[netip.AddrPort]*snapshot.Listener, []Status) {
	all := s.cfg.Source.Listeners()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	want := make(map[netip.AddrPort]*snapshot.Listener, len(all))
	var refused []Status
	for _, name := range names {
		l := all[name]
		addr := l.Addr
		if l.OnDemand {
			var ok bool
			if addr, ok = s.cfg.OnDemand[name]; !ok {
				continue
			}
		}
		if other := want[addr]; other != nil {
			refused = append(refused, Status{Name: name, Addr: addr, BindFailed: true, Err: "the address is taken by listener " + other.Name})
			continue
		}
		want[addr] = l
	}
	return want, refused
}

func (s *Server) unbound() int {
	n := 0
	for _, st := range s.Status() {
		if !st.Bound {
			n++
		}
	}
	return n
}

// Status returns the state of all listeners, by name, on-demand ones included
// whose configuration has not arrived.
func (s *Server) Status() []Status {
	s.mu.Lock()
	out := slices.Clone(s.refused)
	known := map[string]bool{}
	for addr, b := range s.bindings {
		name := b.current.Load().Name
		known[name] = true
		st := Status{Name: name, Addr: addr, Bound: b.socket != nil, Connections: b.connections()}
		if b.err != nil {
			st.BindFailed, st.Err = true, b.err.Error()
		}
		out = append(out, st)
	}
	s.mu.Unlock()
	for name, addr := range s.cfg.OnDemand {
		if !known[name] {
			out = append(out, Status{Name: name, Addr: addr, Err: "it has not arrived, or waits for its clusters or routes"})
		}
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// drainAll closes all sockets and lets connections finish.
func (s *Server) drainAll() {
	s.mu.Lock()
	s.drained = true
	all := make([]*binding, 0, len(s.bindings))
	for _, b := range s.bindings {
		all = append(all, b)
	}
	clear(s.bindings)
	s.mu.Unlock()
	for _, b := range all {
		b.retire(s.cfg.DrainTime)
	}
}
