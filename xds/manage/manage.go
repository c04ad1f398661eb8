// Package manage implements the Mesh API: rules with history, what the registries
// hold, what the proxies made of their configuration, and the leases of the
// built-in registry.
//
// New makes a Server over the parts of a MeshServer, which are declared here as
// interfaces; Run serves gRPC, gRPC-Web and JSON on one port. A Loader follows the
// rule store and publishes the set in force. All methods may be called from any
// goroutine.
//
// Why loopback only, and why one port: RATIONALE.md.
package manage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/grpcreflect/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/generate"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

const (
	// maxRequest bounds one request message in bytes: the largest rule text that
	// the parser takes, and as much again for the rest.
	maxRequest = 2 * rules.MaxFileBytes
	// callTime bounds one call, and so how long a slow reader of the answer holds one.
	callTime = time.Minute
	// bodyTime bounds how long the body of a request may take to arrive. Callers
	// are on this machine: the largest one takes milliseconds.
	bodyTime = 5 * time.Second
	// drainTime bounds how long Run waits for open calls when it stops.
	drainTime = 5 * time.Second
)

// Catalog is what manage needs of xds/catalog.
type Catalog interface{ View() *catalog.View }

// Proxies is what manage needs of xds/status.
type Proxies interface {
	Clients(match func(*corev3.Node) bool, detail bool) []status.Client
	Applied(origins ...string) map[string]status.Progress
	Refusals() []status.Refusal
}

// Leases is the built-in registry. It checks what it is given.
type Leases interface {
	Register(ctx context.Context, w model.Workload, ttl time.Duration) (leaseID string, err error)
	Renew(ctx context.Context, leaseID string) error
	Leave(ctx context.Context, leaseID string) error
}

// LeaseErrors are what the errors of Leases wrap, where they mean this. A nil one
// never matches.
type LeaseErrors struct {
	Unknown error // the lease ended or never was
	Invalid error // the workload or its time is not acceptable
	Full    error // no more workloads fit
}

// Previewer is what manage needs of xds/generate: what a set of rules would change
// for the proxies that are connected.
type Previewer interface {
	Preview(candidate rules.Set) (generate.Diff, error)
}

// Condition is the state of one part of the server.
type Condition struct {
	Name               string
	Degraded, NotReady bool
	Detail             string
}

// Config is what a Server is made from. All fields without "may be nil" are required.
type Config struct {
	Listener net.Listener // loopback
	Store    store.Store
	Catalog  Catalog
	Proxies  Proxies
	Log      *slog.Logger
	// Leases drives the built-in registry; may be nil, then workloads cannot be
	// registered.
	Leases Leases
	// LeaseErrors tells the errors of Leases apart.
	LeaseErrors LeaseErrors
	// Preview answers what a dry run changes; may be nil, then it lists no changes.
	Preview Previewer
	// InForce are the rules that proxies are served by now; nil: those of the
	// store at once.
	InForce func() rules.Set
	// FileRules are the rules in force that come from files; may be nil.
	FileRules func() rules.Set
	// Conditions may be nil.
	Conditions func() []Condition
	// Version, Roles and DataDir are shown by StatusService.
	Version string
	Roles   []string
	DataDir string
	// Hosts are further names under which a browser may call the API, beside
	// loopback addresses and localhost.
	Hosts []string
}

// Server serves the Mesh API. Make one with New.
type Server struct {
	cfg     Config
	http    *http.Server
	started time.Time
	lanes   *lanes
	// pageBytes and bodyTime are maxPageBytes and bodyTime but in tests.
	pageBytes int
	bodyTime  time.Duration
}

// New checks cfg and reports every mistake.
func New(cfg Config) (*Server, error) {
	var errs []error
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"Listener", cfg.Listener == nil}, {"Store", cfg.Store == nil}, {"Catalog", cfg.Catalog == nil},
		{"Proxies", cfg.Proxies == nil}, {"Log", cfg.Log == nil},
	} {
		if f.missing {
			errs = append(errs, fmt.Errorf("mesh api: %s is missing", f.name))
		}
	}
	if cfg.Listener != nil {
		errs = append(errs, loopbackOnly(cfg.Listener.Addr()))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.FileRules == nil {
		cfg.FileRules = func() rules.Set { return rules.Set{} }
	}
	s := &Server{cfg: cfg, started: time.Now(), lanes: newLanes(), pageBytes: maxPageBytes, bodyTime: bodyTime}
	s.http = &http.Server{
		Handler:           s.handler(),
		Protocols:         protocols(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       callTime,
		WriteTimeout:      callTime,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// protocols are HTTP/1.1 for JSON and HTTP/2 without TLS for gRPC.
func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

func (s *Server) handler() http.Handler {
	rpc := connect.NewServer(s.translate, s.admit)
	api.RegisterRuleServiceHandler(rpc, &ruleService{Server: s})
	api.RegisterCatalogServiceHandler(rpc, &catalogService{cfg: s.cfg})
	api.RegisterProxyServiceHandler(rpc, &proxyService{cfg: s.cfg})
	api.RegisterWorkloadServiceHandler(rpc, &workloadService{cfg: s.cfg})
	api.RegisterStatusServiceHandler(rpc, &statusService{Server: s})
	grpcreflect.Register(rpc)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, rpc, connecthttp.WithReadMaxBytes(maxRequest))
	return guard(s.cfg.Hosts, s.receive(mux))
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if s.http.Shutdown(bound) != nil {
			_ = s.http.Close() // a reflection stream stays open as long as its client likes
		}
	})
	err := s.http.Serve(s.cfg.Listener)
	if !stop() {
		<-drained
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve mesh api: %w", err)
}

// translate gives every error its code and logs what wakes a person.
func (s *Server) translate(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		err := next(ctx, spec, stream)
		if err == nil {
			return nil
		}
		wire := wireError(err)
		switch wire.Code() {
		case connect.CodeInternal, connect.CodeDataLoss, connect.CodeUnknown:
			s.cfg.Log.Error("mesh api call failed", "procedure", spec.Procedure, "code", wire.Code().String(), "error", err)
		default:
			s.cfg.Log.Debug("mesh api call refused", "procedure", spec.Procedure, "code", wire.Code().String(), "error", err)
		}
		return wire
	}
}

type statusService struct{ *Server }

func (s *statusService) Get(ctx context.Context, _ *api.GetStatusRequest) (*api.Status, error) {
	revision, err := s.cfg.Store.Revision(ctx)
	if err != nil {
		return nil, err
	}
	out := &api.Status{
		Version: s.cfg.Version, Roles: s.cfg.Roles, DataDir: s.cfg.DataDir, Started: stamp(s.started),
		RuleRevision: uint64(revision),
		Proxies:      uint32(len(s.cfg.Proxies.Clients(nil, false))),
		Services:     uint32(len(s.cfg.Catalog.View().Services())),
	}
	if s.cfg.Conditions != nil {
		for _, c := range s.cfg.Conditions() {
			out.Conditions = append(out.Conditions, &api.Condition{Name: c.Name, Degraded: c.Degraded, NotReady: c.NotReady, Detail: c.Detail})
		}
	}
	return out, nil
}
