// Package xds wires a MeshServer: catalog, rules, generator, the xDS server with
// its status service, and the Mesh API.
//
// New checks and builds, Run works until its ctx ends. Bridges write through the
// handles that Source returns; everything else happens inside. All methods may be
// called from any goroutine.
//
// The stream engine and what is shared between streams: RATIONALE.md.
package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/generate"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/rules/file"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store"
	"github.com/isthmus-mesh/isthmus/xds/translate"
)

// Config is what a MeshServer is made from. Fields are required unless they say
// otherwise.
type Config struct {
	XDS   net.Listener // ADS and status discovery; loopback, plain text
	API   net.Listener // the Mesh API; loopback
	Store store.Store  // rules at rest; stays the caller's to close

	// RulesDir is a folder of YAML rules that are in force beside the store's;
	// empty means none. On one key the store's rule wins.
	RulesDir string
	// Sources names those that will write through Source. Nothing is served
	// before each has reported once, from its registry or from disk: proxies
	// come with a good configuration of their own, which an answer out of
	// ignorance would wipe out.
	Sources []string
	// StartWait serves without the sources that are silent after so long; 0
	// means never.
	StartWait time.Duration
	// Priority lists sources, the most trusted first; see catalog.Config.
	Priority []string
	// Options hold for the resources of the whole mesh.
	Options translate.Options
	// Leases drives the built-in registry; nil: workloads cannot be registered.
	Leases      manage.Leases
	LeaseErrors manage.LeaseErrors
	// Conditions are shown by the Mesh API; may be nil.
	Conditions func() []manage.Condition

	Version, DataDir string
	Roles            []string
	Log              *slog.Logger
	Registerer       prometheus.Registerer
}

// MeshServer is the control plane. Make one with New.
type MeshServer struct {
	cfg       Config
	catalog   *catalog.Catalog
	generator *generate.Generator
	loader    *manage.Loader
	api       *manage.Server
	folder    *file.Folder // nil without RulesDir
	grpc      *grpc.Server

	stored, filed atomic.Pointer[rules.Set]
	declaring     sync.Mutex // keeps what is declared in the order of the sets
	// changed wakes publishRules; one pending wake-up stands for all changes.
	changed chan struct{}
	serving atomic.Bool
}

// New checks cfg and builds the parts.
func New(cfg Config) (*MeshServer, error) {
	if cfg.XDS == nil || cfg.API == nil || cfg.Store == nil || cfg.Log == nil || cfg.Registerer == nil {
		return nil, errors.New("xds: XDS, API, Store, Log and Registerer are required")
	}
	if cfg.RulesDir != "" {
		cfg.Sources = append(slices.Clip(cfg.Sources), file.Kind)
	}
	m := &MeshServer{cfg: cfg, changed: make(chan struct{}, 1)}
	m.stored.Store(&rules.Set{})
	m.filed.Store(&rules.Set{})
	m.catalog = catalog.New(catalog.Config{Priority: cfg.Priority, Log: cfg.Log})
	var err error
	m.generator, err = generate.New(generate.Config{
		Catalog: m.catalog, Options: cfg.Options, Log: cfg.Log.With("part", "generate"), Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	registry := status.NewRegistry()
	engine, err := server.New(server.Config{
		World: m.generator, Status: registry, Log: cfg.Log.With("part", "xds"), Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	m.grpc = grpc.NewServer(engine.ServerOptions()...)
	engine.Register(m.grpc)
	status.NewCSDS(registry).Register(m.grpc)
	reflection.Register(m.grpc)

	m.loader, err = manage.NewLoader(manage.LoaderConfig{
		Store: cfg.Store, Log: cfg.Log.With("part", "rules"), Publish: m.publishStored,
	})
	if err != nil {
		return nil, err
	}
	if cfg.RulesDir != "" {
		m.folder, err = file.New(file.Config{
			Dir: cfg.RulesDir, Rules: m.publishFiled, Sink: statusOnly{m.catalog.Source(file.Kind)}, Log: cfg.Log.With("part", "rules"),
		})
		if err != nil {
			return nil, err
		}
	}
	m.api, err = manage.New(manage.Config{
		Listener: cfg.API, Store: cfg.Store, Catalog: m.catalog, Proxies: registry, Log: cfg.Log.With("part", "api"),
		Leases: cfg.Leases, LeaseErrors: cfg.LeaseErrors, Preview: m.generator, InForce: m.generator.Rules,
		FileRules: func() rules.Set { return *m.filed.Load() }, Conditions: cfg.Conditions,
		Version: cfg.Version, Roles: cfg.Roles, DataDir: cfg.DataDir,
	})
	return m, err
}

// Source returns the handle through which the named source writes.
func (m *MeshServer) Source(name string) *catalog.Handle { return m.catalog.Source(name) }

// Catalog is the merged state of all sources.
func (m *MeshServer) Catalog() *catalog.Catalog { return m.catalog }

// Run reads the rules, then serves until ctx ends.
func (m *MeshServer) Run(ctx context.Context) error {
	if err := m.loader.Load(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.loader.Run(ctx) })
	group.Go(func() error { return m.api.Run(ctx) })
	if m.folder != nil {
		group.Go(func() error { return m.folder.Run(ctx) })
	}
	group.Go(func() error {
		if m.awaitSources(ctx); ctx.Err() != nil {
			return nil
		}
		m.generator.SetRules(m.rules())
		m.generator.Start()
		m.serving.Store(true)
		group.Go(func() error { return m.publishRules(ctx) })
		group.Go(func() error { return m.generator.Run(ctx) })
		return m.serve(ctx)
	})
	return group.Wait()
}

// Rules says how far the rules of the store are in force.
func (m *MeshServer) Rules() manage.LoaderState { return m.loader.State() }

// Serving reports whether xDS is answered yet.
func (m *MeshServer) Serving() bool { return m.serving.Load() }

// awaitSources returns when every source has reported what it holds, when the
// wait is over, or when ctx ended.
func (m *MeshServer) awaitSources(ctx context.Context) {
	var late <-chan time.Time
	if m.cfg.StartWait > 0 {
		timer := time.NewTimer(m.cfg.StartWait)
		defer timer.Stop()
		late = timer.C
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		silent := m.SilentSources()
		if len(silent) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-late:
			m.cfg.Log.Warn("serving without sources that never answered", "sources", silent, "waited", m.cfg.StartWait)
			return
		case <-tick.C:
		}
	}
}

// SilentSources are those of Config.Sources of which nothing is known yet.
func (m *MeshServer) SilentSources() []string {
	known := map[string]bool{}
	for _, s := range m.catalog.View().Statuses() {
		known[s.Source] = s.Phase != model.Syncing
	}
	return slices.DeleteFunc(slices.Clone(m.cfg.Sources), func(name string) bool { return known[name] })
}

// serve answers xDS. Streams never end by themselves, and their clients come
// back to this or another replica: they are cut at the end.
func (m *MeshServer) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, m.grpc.Stop)
	defer stop()
	if err := m.grpc.Serve(m.cfg.XDS); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve xDS: %w", err)
	}
	return nil
}

// StoredRules is the source of services and workloads that ServiceEntry and
// WorkloadEntry rules of the store declare.
const StoredRules = "rules"

// publishStored puts the rules of the store in force, and what they declare into
// the catalog.
func (m *MeshServer) publishStored(s rules.Set) {
	source := m.catalog.Source(StoredRules)
	source.Apply(rules.Registry(s))
	now := time.Now()
	source.Report(model.SourceStatus{Source: StoredRules, Kind: "rules", Phase: model.Live, Since: now, Read: now})
	m.publish(&m.stored, s)
	m.declareFiled()
}

// publishFiled does the same for the rules of the folder.
func (m *MeshServer) publishFiled(s rules.Set) {
	m.publish(&m.filed, s)
	m.declareFiled()
}

// declareFiled puts into the catalog what the folder declares and the store does
// not: on one key the store's rule wins.
func (m *MeshServer) declareFiled() {
	if m.folder == nil {
		return
	}
	m.declaring.Lock()
	defer m.declaring.Unlock()
	var taken []rules.Key
	for _, r := range m.stored.Load().All() {
		taken = append(taken, r.Key())
	}
	m.catalog.Source(file.Kind).Apply(rules.Registry(m.filed.Load().Without(taken...)))
}

// statusOnly takes the state of the folder; what it declares goes the way of
// declareFiled.
type statusOnly struct{ source *catalog.Handle }

// Apply implements file.Sink.
func (statusOnly) Apply(model.Update) {}

// Report implements file.Sink.
func (s statusOnly) Report(st model.SourceStatus) { s.source.Report(st) }

// publish keeps a set of rules and wakes publishRules.
func (m *MeshServer) publish(into *atomic.Pointer[rules.Set], s rules.Set) {
	into.Store(&s)
	select {
	case m.changed <- struct{}{}:
	default: // the pending wake-up will find s
	}
}

// publishRules puts the rules of store and folder in force together.
func (m *MeshServer) publishRules(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.changed:
			m.generator.SetRules(m.rules())
		}
	}
}

// rules are those of store and folder together.
func (m *MeshServer) rules() rules.Set { return m.stored.Load().Union(*m.filed.Load()) }
