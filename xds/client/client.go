// Package client is the sidecar's end of ADS: one incremental stream that survives its
// servers.
//
// The client subscribes to all clusters and listeners, to the load assignments and
// route configurations that these name, and to what Subscribe adds. Each response goes
// to the Handler, which may refuse single resources: those are refused to the server
// with their names and reasons, the others are in force. After a lost connection it
// tries the addresses in turn and tells each what it holds, so that only what changed
// is sent. proxy/snapshot implements Handler. All methods may be called from any
// goroutine.
//
// Why listeners are asked for after clusters: xds/RATIONALE.md, "The client's order".
package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Config is what a Client needs.
type Config struct {
	// Node says who asks; required, with an id.
	Node *corev3.Node
	// Targets are the control plane's addresses as gRPC names them, "127.0.0.1:15010",
	// tried in this order. At least one.
	Targets []string
	// DialOptions must hold transport credentials.
	DialOptions []grpc.DialOption
	// Handler takes in what is sent; required.
	Handler Handler
	// Initial is what the handler holds already from an earlier run. It is not
	// applied again; the server sends what differs.
	Initial map[resource.Type][]Named
	// Subscribe names resources to ask for beside those that clusters and listeners
	// name, as Client.Subscribe does later.
	Subscribe map[resource.Type][]string

	Log        *slog.Logger          // nil: slog.Default
	Registerer prometheus.Registerer // nil: no metrics

	// MinBackoff and MaxBackoff bound the pause after all targets were tried in
	// vain; it doubles from one to the other, with jitter. Zero: 200 ms and 15 s.
	MinBackoff, MaxBackoff time.Duration
	// ConnectTimeout bounds an attempt until the first response. Zero: 10 s.
	ConnectTimeout time.Duration
	// WarmTimeout is how long listeners are not asked for while clusters wait for
	// their endpoints, on a start without Initial. Zero: 5 s.
	WarmTimeout time.Duration
	// MaxResponseBytes bounds a response. Zero: 64 MiB.
	MaxResponseBytes int
}

func (c *Config) fill() error {
	c.Log = cmp.Or(c.Log, slog.Default())
	c.MinBackoff = cmp.Or(c.MinBackoff, 200*time.Millisecond)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, 15*time.Second)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.WarmTimeout = cmp.Or(c.WarmTimeout, 5*time.Second)
	c.MaxResponseBytes = cmp.Or(c.MaxResponseBytes, 64<<20)
	var errs []error
	if c.Node.GetId() == "" {
		errs = append(errs, errors.New("no Node with an id"))
	}
	if len(c.Targets) == 0 {
		errs = append(errs, errors.New("no Targets"))
	}
	if c.Handler == nil {
		errs = append(errs, errors.New("no Handler"))
	}
	if c.MinBackoff < 0 || c.MaxBackoff < c.MinBackoff {
		errs = append(errs, fmt.Errorf("MinBackoff %v and MaxBackoff %v are no range", c.MinBackoff, c.MaxBackoff))
	}
	for _, d := range []struct {
		name  string
		value int64
	}{
		{"ConnectTimeout", int64(c.ConnectTimeout)}, {"WarmTimeout", int64(c.WarmTimeout)},
		{"MaxResponseBytes", int64(c.MaxResponseBytes)},
	} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("%s is negative", d.name))
		}
	}
	return errors.Join(errs...)
}

// Client is one node's connection to its control plane. Make one with New.
type Client struct {
	cfg     Config // immutable after New, as is metrics
	metrics *metrics
	hold    *holdings
	wake    chan struct{} // capacity 1: names wanted have changed

	synced     chan struct{} // closed once
	syncedOnce sync.Once

	mu        sync.Mutex // guards all below
	connected string     // target that answers; "" while none does
	since     time.Time
}

// New checks the configuration.
func New(cfg Config) (*Client, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("xds client: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("xds client: metrics: %w", err)
	}
	c := &Client{cfg: cfg, metrics: m, hold: newHoldings(), wake: make(chan struct{}, 1), synced: make(chan struct{})}
	var errs []error
	for t, all := range cfg.Initial {
		for _, n := range all {
			of, needs, err := references(t, n.Body)
			if err != nil {
				errs = append(errs, fmt.Errorf("xds client: initial %v %s: %w", t, n.Name, err))
				continue
			}
			c.hold.store(t, n, of, needs)
		}
	}
	for t, names := range cfg.Subscribe {
		c.hold.pin(t, names, true)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// Subscribe asks for resources by name until Unsubscribe. Names that do not exist are
// reported in Change.Missing. It does not wait for the server.
func (c *Client) Subscribe(t resource.Type, names ...string) {
	if c.hold.pin(t, names, true) {
		c.nudge()
	}
}

// Unsubscribe undoes Subscribe. What nothing else needs is reported in Change.Removed.
func (c *Client) Unsubscribe(t resource.Type, names ...string) {
	if c.hold.pin(t, names, false) {
		c.nudge()
	}
}

func (c *Client) nudge() {
	select {
	case c.wake <- struct{}{}:
	default: // a wake-up is pending; the stream will see all names
	}
}

// Versions returns the versions that the handler holds, by type and name.
func (c *Client) Versions() map[resource.Type]map[string]string {
	all := map[resource.Type]map[string]string{}
	for t := range resource.Type(resource.NumTypes) {
		if v := c.hold.versions(t); len(v) > 0 {
			all[t] = v
		}
	}
	return all
}

// Synced is closed once a server has answered for clusters, listeners and everything
// that these name.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Connected returns the target that answers and since when; "" while none does.
func (c *Client) Connected() (target string, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected, c.since
}

func (c *Client) setConnected(target string) {
	c.mu.Lock()
	c.connected, c.since = target, time.Now()
	c.mu.Unlock()
	if target == "" {
		c.metrics.connected.Set(0)
	} else {
		c.metrics.connected.Set(1)
	}
}

// recvWindow is fixed: to size it gRPC would ping the server after each response, which
// costs the server as much as the response.
const recvWindow = 1 << 20

// Keepalive finds a dead server that no packet tells about.
const (
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
)

// Run keeps a stream to one of the targets until ctx ends, and then returns nil.
func (c *Client) Run(ctx context.Context) error {
	failed := 0 // attempts without an answer since the last one with
	for at := 0; ctx.Err() == nil; at++ {
		target := c.cfg.Targets[at%len(c.cfg.Targets)]
		answered, err := c.connect(ctx, target)
		if ctx.Err() != nil {
			return nil
		}
		if answered {
			failed = 0
			at-- // the same one first: its connection may just have reached its age
			c.metrics.attempts.WithLabelValues(resultLost).Inc()
			c.cfg.Log.Info("control plane lost", "target", target, "err", err)
		} else {
			failed++
			c.metrics.attempts.WithLabelValues(resultUnreachable).Inc()
			c.cfg.Log.Warn("control plane not reached", "target", target, "attempt", failed, "err", err)
		}
		c.pause(ctx, failed)
	}
	return nil
}

// pause waits before the next attempt: not at all while there are targets that were
// not tried, then longer each time around.
func (c *Client) pause(ctx context.Context, failed int) {
	n := len(c.cfg.Targets)
	if failed > 0 && failed%n != 0 {
		return
	}
	d := c.cfg.MinBackoff
	for range max(0, failed/n-1) {
		if d = min(2*d, c.cfg.MaxBackoff); d == c.cfg.MaxBackoff {
			break
		}
	}
	// Half to the whole of it, so that the clients of a server do not return as one.
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// connect runs one stream; answered says whether the server sent anything.
func (c *Client) connect(ctx context.Context, target string) (answered bool, err error) {
	opts := append([]grpc.DialOption{
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: c.cfg.ConnectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(c.cfg.MaxResponseBytes)),
		grpc.WithStaticStreamWindowSize(recvWindow),
		grpc.WithStaticConnWindowSize(recvWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}, c.cfg.DialOptions...)
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return false, err
	}
	s := newSession(c, target)
	err = s.run(ctx, conn)
	if cerr := conn.Close(); err == nil {
		err = cerr
	}
	if s.answered {
		c.setConnected("")
	}
	return s.answered, err
}
