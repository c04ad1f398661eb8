// Package admin serves what people and machines ask a sidecar: its state and
// configuration on the admin address, metrics and readiness on addresses of their
// own.
//
// The admin address is loopback, and answers only requests whose Host is an
// address or localhost and that no other site's page sent, so that a browser on
// the same machine cannot be made to call it. Paths and output follow Envoy's.
//
// All methods may be called from any goroutine.
package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/proxy/listener"
)

// Configuration is what is shown of the snapshot.
type Configuration interface {
	WriteClusters(w io.Writer) error
	// WriteDump writes /config_dump.
	WriteDump(w io.Writer) error
}

// Listeners is what is shown and asked of the listeners.
type Listeners interface {
	Status() []listener.Status
	Drain()
	Draining() bool
}

// Condition is something about the sidecar's state that readers should know.
type Condition struct {
	Name     string // "listener 127.0.0.1_15002"
	NotReady bool   // traffic should not be sent; otherwise it is degraded
	Detail   string
}

// Config of a Server. Sockets that are nil are not served.
type Config struct {
	Admin, Metrics, Readiness net.Listener

	Configuration Configuration           // required
	Listeners     Listeners               // required
	Gatherer      prometheus.Gatherer     // required
	Conditions    func() []Condition      // required
	Level         *slog.LevelVar          // of the process; nil: /logging is not there
	ReopenLogs    func()                  // nil: /reopen_logs is not there
	Extra         map[string]http.Handler // further paths of the admin address
	Node          *corev3.Node
	Version       string
	Log           *slog.Logger // required
}

// Bounds on callers, who are on the same machine or a scraper.
const (
	headTime   = 5 * time.Second
	readTime   = 30 * time.Second
	idleTime   = 2 * time.Minute
	maxHead    = 16 << 10
	shutDownIn = 2 * time.Second
)

// Server answers. Make one with New.
type Server struct {
	cfg     Config
	started time.Time
}

// New checks cfg.
func New(cfg Config) (*Server, error) {
	var errs []error
	for _, f := range []struct {
		missing bool
		name    string
	}{
		{cfg.Configuration == nil, "Configuration"}, {cfg.Listeners == nil, "Listeners"}, {cfg.Gatherer == nil, "Gatherer"},
		{cfg.Conditions == nil, "Conditions"}, {cfg.Log == nil, "Log"},
	} {
		if f.missing {
			errs = append(errs, errors.New("admin: "+f.name+" is missing"))
		}
	}
	if cfg.Admin != nil {
		if a, ok := cfg.Admin.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			errs = append(errs, fmt.Errorf("admin: %v, want a loopback address", a))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, started: time.Now()}, nil
}

// Run serves until ctx ends; it returns nil then, and an error when a socket
// fails.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, part := range []struct {
		name    string
		socket  net.Listener
		handler http.Handler
	}{
		{"admin", s.cfg.Admin, s.adminHandler()},
		{"metrics", s.cfg.Metrics, s.metricsHandler()},
		{"readiness", s.cfg.Readiness, s.readinessHandler()},
	} {
		if part.socket == nil {
			continue
		}
		server := &http.Server{
			Handler:           part.handler,
			ReadHeaderTimeout: headTime,
			ReadTimeout:       readTime,
			IdleTimeout:       idleTime,
			MaxHeaderBytes:    maxHead,
			ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		}
		group.Go(func() {
			if err := serve(ctx, server, part.socket); err != nil {
				cancel(fmt.Errorf("serve %s: %w", part.name, err))
			}
		})
	}
	<-ctx.Done()
	group.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// serve returns nil when ctx ended it.
func serve(ctx context.Context, server *http.Server, socket net.Listener) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutDownIn)
		defer cancel()
		if server.Shutdown(bound) != nil {
			_ = server.Close() // who still reads a profile is cut off
		}
	})
	err := server.Serve(socket)
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// state is the first line of /ready.
func state(conditions []Condition, draining bool) (name string, ready bool) {
	if draining {
		return "DRAINING", false
	}
	name = "LIVE"
	for _, c := range conditions {
		if c.NotReady {
			return "NOT READY", false
		}
		name = "DEGRADED"
	}
	return name, true
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	conditions := s.cfg.Conditions()
	name, ready := state(conditions, s.cfg.Listeners.Draining())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, name)
	for _, c := range conditions {
		fmt.Fprintf(w, "%s: %s\n", c.Name, cmp.Or(c.Detail, "-"))
	}
}
