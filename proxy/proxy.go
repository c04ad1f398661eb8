// Package proxy is the sidecar: it wires the way of a request (listener, codec,
// stream, router, upstream) to the configuration that arrives over xDS, and to
// the admin, metrics and readiness addresses.
//
// New checks, Run works and owns every goroutine. Connections that are open when
// Run's context ends may finish within the drain time. All methods may be called
// from any goroutine.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/isthmus-mesh/isthmus/proxy/admin"
	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/listener"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/xds/client"
)

// Config of a Proxy.
type Config struct {
	Bootstrap bootstrap.Config
	// The sockets of the three addresses; nil: not served. Run closes them.
	Admin, Metrics, Readiness net.Listener
	// HTTP and TCP are the codecs of listeners, http1.New() and tcp.New();
	// required.
	HTTP, TCP codec.Codec
	// DialOptions reach the control plane; they must hold transport credentials.
	DialOptions []grpc.DialOption
	// AccessLog opens what Bootstrap.AccessLog.Path names, now and on every
	// reopening; required if that is set. What it returns is closed.
	AccessLog func() (io.WriteCloser, error)
	HostName  string // of the machine, for JSON access logs
	Version   string // of the program
	Log       *slog.Logger
	Level     *slog.LevelVar       // of Log, settable on the admin address; nil: it is not
	Registry  *prometheus.Registry // nil: one of its own
	// Conditions are shown by /ready beside the proxy's own; may be nil.
	Conditions func() []admin.Condition
	// Admin paths beside the built-in ones, as http.ServeMux patterns.
	Extra map[string]http.Handler
}

// Proxy is a sidecar. Make one with New.
type Proxy struct {
	cfg      Config
	counters *telemetry.Registry
	log      *telemetry.AccessLog // nil: none
	store    *snapshot.Store
	kept     atomic.Int64 // resources that were loaded from disk

	// Set early in Run.
	client    atomic.Pointer[client.Client]
	listeners atomic.Pointer[listener.Server]
}

// Files under the data folder.
const (
	snapshotFile = "snapshot.bin"
	loopbackFile = "loopback.json"
)

// New checks cfg and reports every mistake at once.
func New(cfg Config) (*Proxy, error) {
	errs := []error{cfg.Bootstrap.Validate()}
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	p := &Proxy{cfg: cfg, counters: telemetry.NewRegistry()}
	if err := cfg.Registry.Register(p.counters); err != nil {
		errs = append(errs, fmt.Errorf("proxy metrics: %w", err))
	}
	if cfg.Bootstrap.AccessLog.Path != "" {
		log, err := telemetry.NewAccessLog(telemetry.AccessLogConfig{
			Open:        cfg.AccessLog,
			Format:      cfg.Bootstrap.AccessLog.Format,
			HostName:    cfg.HostName,
			BufferBytes: cfg.Bootstrap.AccessLog.BufferBytes,
			Log:         cfg.Log,
		})
		if err != nil {
			errs = append(errs, err)
		} else {
			p.log = log
			p.counters.ShowAccessLog(log)
		}
	}
	store, err := snapshot.New(snapshot.Config{
		Counters:  p.counters,
		HTTP:      cfg.HTTP,
		TCP:       cfg.TCP,
		AccessLog: p.log,
		LogAll:    cfg.Bootstrap.AccessLog.All,
		Path:      filepath.Join(cfg.Bootstrap.DataDir, snapshotFile),
		Log:       cfg.Log,
	})
	p.store = store
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return p, nil
}

// Store is the configuration in force.
func (p *Proxy) Store() *snapshot.Store { return p.store }

// Drain stops accepting for good; connections may finish within the drain time.
// It does nothing before Run has started the listeners.
func (p *Proxy) Drain() {
	if l := p.listeners.Load(); l != nil {
		l.Drain()
	}
}

// Draining reports whether the proxy accepts no more.
func (p *Proxy) Draining() bool {
	l := p.listeners.Load()
	return l != nil && l.Draining()
}

// Status returns the state of all listeners, by name.
func (p *Proxy) Status() []listener.Status {
	if l := p.listeners.Load(); l != nil {
		return l.Status()
	}
	return nil
}

// Run serves until ctx ends, drains, and returns nil; an error when a part of it
// cannot work.
func (p *Proxy) Run(ctx context.Context) error {
	// The parts that serve requests work on while connections drain.
	rest, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()

	wheel := clock.NewWheel()
	if err := p.start(ctx, wheel); err != nil {
		return errors.Join(err, closeAll(p.cfg.Admin, p.cfg.Metrics, p.cfg.Readiness))
	}
	adminServer, err := p.adminServer()
	if err != nil {
		return errors.Join(err, closeAll(p.cfg.Admin, p.cfg.Metrics, p.cfg.Readiness))
	}
	type part struct {
		name string
		run  func(context.Context) error
	}
	parts := []part{
		{"timers", wheel.Run}, {"configuration", p.store.Run}, {"control plane", p.client.Load().Run}, {"admin", adminServer.Run},
	}
	if p.log != nil {
		parts = append(parts, part{"access log", p.log.Run})
	}
	var group sync.WaitGroup
	for _, part := range parts {
		group.Go(func() {
			if err := part.run(rest); err != nil {
				stop(fmt.Errorf("%s: %w", part.name, err))
				stopServing()
			}
		})
	}
	err = p.listeners.Load().Run(serving)
	stop(err)
	group.Wait()
	if cause := context.Cause(rest); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func closeAll(sockets ...net.Listener) error {
	var errs []error
	for _, s := range sockets {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// start reads what an earlier process kept and makes client and listeners.
func (p *Proxy) start(ctx context.Context, wheel *clock.Wheel) error {
	b := &p.cfg.Bootstrap
	onDemand, err := p.addresses()
	if err != nil {
		return err
	}
	if err := p.load(onDemand); err != nil {
		// What was kept is of use only if it is whole; the control plane sends it anew.
		p.cfg.Log.Error("last configuration not used", "error", err)
	}
	server, err := listener.New(listener.Config{
		Source: p.store,
		Serve: func(ctx context.Context, l *snapshot.Listener, c *conn.Conn) error {
			if l.HTTP != nil {
				return l.HTTP.Serve(ctx, c)
			}
			return l.TCP.Serve(ctx, c)
		},
		Wheel:          wheel,
		OnDemand:       onDemand,
		MaxConnections: cmp.Or(b.Limits.Connections, connectionLimit()),
		DrainTime:      b.DrainTime,
		Log:            p.cfg.Log,
		Metrics:        p.cfg.Registry,
	})
	if err != nil {
		return err
	}
	c, err := p.newClient(onDemand)
	if err != nil {
		return err
	}
	p.client.Store(c)
	p.listeners.Store(server)
	return ctx.Err()
}

func (p *Proxy) adminServer() (*admin.Server, error) {
	cfg := admin.Config{
		Admin: p.cfg.Admin, Metrics: p.cfg.Metrics, Readiness: p.cfg.Readiness,
		Configuration: p,
		Listeners:     p,
		Gatherer:      p.cfg.Registry,
		Conditions:    p.Conditions,
		Level:         p.cfg.Level,
		Extra:         p.cfg.Extra,
		Node:          p.cfg.Bootstrap.Node(p.cfg.Version),
		Version:       p.cfg.Version,
		Log:           p.cfg.Log,
	}
	if p.log != nil {
		cfg.ReopenLogs = p.log.Reopen
	}
	return admin.New(cfg)
}

// OpenLog opens an access log file for appending; "/dev/stdout" is the standard
// output, which closing leaves open.
func OpenLog(path string, stdout io.Writer) func() (io.WriteCloser, error) {
	return func() (io.WriteCloser, error) {
		if path == "/dev/stdout" {
			return keepOpen{stdout}, nil
		}
		return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	}
}

type keepOpen struct{ io.Writer }

// Close implements io.Closer.
func (keepOpen) Close() error { return nil }
