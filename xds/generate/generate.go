// Package generate keeps the resources of every scope of nodes that is connected,
// and recomputes only what a change of services or rules touches.
//
// The stream engine calls Join and Leave; cmd calls Run and SetRules. A change of
// endpoints alone is published at once and costs in proportion to the host that
// changed. Outbound resources are shared between scopes that see the same.
//
// All methods may be called from any goroutine.
//
// How scopes, clients and hosts divide the work: RATIONALE.md.
package generate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
	"github.com/isthmus-mesh/isthmus/xds/translate"
)

// Config is what a Generator is made from.
type Config struct {
	Catalog    *catalog.Catalog      // required
	Rules      rules.Set             // in force until the first SetRules; may be empty
	Options    translate.Options     // of the whole mesh
	Log        *slog.Logger          // required
	Registerer prometheus.Registerer // required
	// MaxScopes bounds the scopes held at once, MaxClients the sets of outbound
	// resources behind them; a node beyond is refused by Join. 0 means 10,000
	// and 256: estates have tens. Where rules tell more clients apart by their
	// labels, the others are served as if they had none, which is reported.
	MaxScopes, MaxClients int
}

// Generator computes resources. Make one with New.
type Generator struct {
	catalog *catalog.Catalog  // immutable after New
	options translate.Options // immutable after New
	log     *slog.Logger      // immutable after New
	metrics *metrics          // immutable after New
	limits  limits            // immutable after New
	wake    chan struct{}     // capacity 1: SetRules has stored a set

	mu      sync.Mutex // guards the fields below
	pending *rules.Set // newest set that Run has not applied
	world   world
	outs    map[scope.Client]*outbound
	lives   map[scope.Key]*live
	byFeed  map[*resource.Feed]*live
	// unlabelled is how many scopes were last seen to be served without their labels.
	unlabelled int
}

type limits struct{ scopes, clients int }

// world is what resources are computed from. It is a value of immutable parts.
type world struct {
	view    *catalog.View
	set     rules.Set
	labels  map[string]map[string]struct{} // by which rules match callers: values by key
	options translate.Options
}

// New checks cfg. The generator serves from the catalog's present view at once;
// changes are seen while Run runs.
func New(cfg Config) (*Generator, error) {
	var errs []error
	for what, missing := range map[string]bool{"Catalog": cfg.Catalog == nil, "Log": cfg.Log == nil, "Registerer": cfg.Registerer == nil} {
		if missing {
			errs = append(errs, fmt.Errorf("generate: %s is missing", what))
		}
	}
	if cfg.MaxScopes < 0 || cfg.MaxClients < 0 {
		errs = append(errs, errors.New("generate: MaxScopes and MaxClients want 0 or more"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.MaxScopes == 0 {
		cfg.MaxScopes = 10_000
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = 256
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	return &Generator{
		catalog: cfg.Catalog, options: cfg.Options, log: cfg.Log, metrics: m, limits: limits{cfg.MaxScopes, cfg.MaxClients},
		wake:  make(chan struct{}, 1),
		world: world{view: cfg.Catalog.View(), set: cfg.Rules, labels: cfg.Rules.SourceLabels(), options: cfg.Options},
		outs:  map[scope.Client]*outbound{}, lives: map[scope.Key]*live{}, byFeed: map[*resource.Feed]*live{},
	}, nil
}

// SetRules makes set the rules in force. It returns at once; Run applies the
// newest set and skips those in between.
func (g *Generator) SetRules(set rules.Set) {
	g.mu.Lock()
	g.pending = &set
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default: // a wake-up is pending; Run will find the newest set
	}
}

// Rules is the set in force.
func (g *Generator) Rules() rules.Set {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.world.set
}

// Join returns the feed of the node's scope; the caller gives it back by Leave.
// The error names the fields of the node that are wrong, or has the gRPC status
// ResourceExhausted.
func (g *Generator) Join(node *corev3.Node) (*resource.Feed, error) {
	n, err := scope.Parse(node)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	l, report, err := g.join(n)
	g.mu.Unlock()
	g.report(report)
	if err != nil {
		return nil, err
	}
	return l.feed, nil
}

// join is called with mu held.
func (g *Generator) join(n *scope.Node) (*live, report, error) {
	if l := g.lives[n.Key()]; l != nil {
		l.refs++
		return l, report{}, nil
	}
	if len(g.lives) >= g.limits.scopes {
		return nil, report{}, status.Errorf(codes.ResourceExhausted, "node %s: %d scopes are connected, no more are taken", n.ID, len(g.lives))
	}
	p := newPass(g.world, g.outs)
	client, ok := g.admit(n)
	if !ok {
		return nil, report{}, status.Errorf(codes.ResourceExhausted, "node %s: %d kinds of client are connected, no more are taken", n.ID, len(g.outs))
	}
	o := g.outs[client]
	if o == nil {
		o = p.build(client)
		g.outs[client] = o
	}
	l := &live{node: n, key: n.Key(), out: o, refs: 1}
	l.own = p.own(l, o, nil)
	l.feed = resource.NewFeed(n.Name(), l.snapshot())
	g.lives[l.key], g.byFeed[l.feed] = l, l
	g.metrics.sizes(len(g.lives), len(g.outs))
	if client.Labels != n.Caller(g.world.labels).Labels {
		p.report.crowded = g.noteCrowded()
	}
	return l, p.report, nil
}

// Leave gives back a feed of Join. The last one to leave a scope ends it.
func (g *Generator) Leave(feed *resource.Feed) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.byFeed[feed]
	if l == nil {
		return
	}
	if l.refs--; l.refs == 0 {
		delete(g.lives, l.key)
		delete(g.byFeed, feed)
		// The outbound resources stay for who comes back at once; the next
		// change of more than endpoints, or the next new client, drops them.
		g.metrics.sizes(len(g.lives), len(g.outs))
	}
}

// dropIdle forgets outbound resources that no scope uses. Called with mu held.
func (g *Generator) dropIdle() {
	used := map[*outbound]bool{}
	for _, l := range g.lives {
		used[l.out] = true
	}
	for client, o := range g.outs {
		if !used[o] {
			delete(g.outs, client)
		}
	}
}

// Run applies changes until ctx ends.
func (g *Generator) Run(ctx context.Context) error {
	sub := g.catalog.Subscribe()
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sub.Wake():
			g.takeServices(sub)
		case <-g.wake:
			g.takeRules()
		}
	}
}

func (g *Generator) takeServices(sub *catalog.Subscription) {
	view, changed := sub.Take()
	g.apply(func(w *world) work {
		w.view = view
		return work{services: changed}
	})
}

func (g *Generator) takeRules() {
	g.apply(func(w *world) work {
		if g.pending == nil {
			return work{}
		}
		affected := rules.Affects(w.set, *g.pending)
		w.set, w.labels = *g.pending, g.pending.SourceLabels()
		g.pending = nil
		return work{rules: &affected}
	})
}

// publication is one feed's next snapshot.
type publication struct {
	feed    *resource.Feed
	snap    *resource.Snapshot
	changed []resource.Key
}

// apply moves the world on by change, recomputes what that touches, and publishes.
// Only Run calls it, so that publications keep their order.
func (g *Generator) apply(change func(*world) work) {
	start := time.Now()
	g.mu.Lock()
	w := change(&g.world)
	p := newPass(g.world, g.outs)
	publish := g.advance(p, w)
	g.metrics.sizes(len(g.lives), len(g.outs))
	g.mu.Unlock()
	for _, pub := range publish {
		pub.feed.Publish(pub.snap, pub.changed)
	}
	g.report(p.report)
	g.metrics.pass(w.kind(), time.Since(start), publish)
}

// advance is called with mu held.
func (g *Generator) advance(p *pass, w work) []publication {
	if !w.endpointsOnly() {
		g.dropIdle()
	}
	steps := map[*outbound]step{}
	next := map[scope.Client]*outbound{}
	var clients map[*live]scope.Client // nil: nobody moves
	if !w.endpointsOnly() {
		clients = assign(p.world, slices.Collect(maps.Values(g.lives)), g.outs, g.limits.clients)
	}
	for client, o := range g.outs {
		s := p.step(o, w)
		steps[o] = s
		next[client] = s.out
	}
	var publish []publication
	for _, l := range g.lives {
		client := l.out.client
		if clients != nil {
			client = clients[l]
		}
		pub, moved := p.move(l, client, steps, next, w.endpointsOnly())
		if moved {
			publish = append(publish, pub)
		}
	}
	g.outs = next
	if clients != nil {
		g.dropIdle() // clients that no node is any more, since rules read other labels
		p.report.crowded = g.noteCrowded()
	}
	return publish
}

// report is what a pass has to tell; it is told after the lock is given back.
type report struct {
	failures []failure
	crowded  int // scopes served without their labels; 0: none, or no more than before
}

type failure struct {
	host string
	err  error
}

func (g *Generator) report(r report) {
	for _, f := range r.failures {
		g.metrics.failures.Inc()
		g.log.Error("host not translated, its last resources are kept", "host", f.host, "error", f.err)
	}
	if r.crowded > 0 {
		g.log.Warn("rules tell too many clients apart by their labels, some are served as if they had none",
			"scopes", r.crowded, "most_clients", g.limits.clients)
	}
}

// noteCrowded counts who is served without its labels, and returns the number if
// it has grown. Called with mu held.
func (g *Generator) noteCrowded() int {
	n, before := g.crowded(), g.unlabelled
	g.unlabelled = n
	g.metrics.unlabelled.Set(float64(n))
	if n <= before {
		return 0
	}
	return n
}
