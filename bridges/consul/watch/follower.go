// Package watch follows one Consul through blocking queries and reports what
// changes: one query on the list of services of each data centre, one on the
// health of each service.
//
// bridges/consul wires it to wire.Client and a sink; Rules.part turns answers
// into endpoints and is pure. One goroutine owns all state of a Run, so nothing
// here is locked; Run may be called again after it returned, and then knows what
// it knew. Follower's other methods may be called from any goroutine.
//
// What is asked when, what deletes, what freezes: ../RATIONALE.md.
package watch

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
)

// Registry is what the follower needs of one Consul agent.
type Registry interface {
	Services(ctx context.Context, q wire.Query) (wire.Catalog, wire.Meta, error)
	Health(ctx context.Context, service string, q wire.Query) (wire.Instances, wire.Meta, error)
	Ping(ctx context.Context) error
}

// Config is what New needs. Durations must be positive.
type Config struct {
	// Name is the source's; Kind is the sort of registry. Both go into reports.
	Name, Kind string
	// Servers are agents of one cluster; another is asked when one fails.
	Servers []Registry
	// Datacenters are followed, each with a list of its own; "" is the agent's.
	Datacenters []string
	Rules       Rules
	// Wait is how long a blocking query may wait.
	Wait time.Duration
	// Queries is how many queries run at once over HTTP/1, QueriesHTTP2 once
	// answers come over HTTP/2. At least MinQueries(len(Datacenters)).
	Queries, QueriesHTTP2 int
	// Heartbeat is how often the agent is asked for a sign of life, and
	// HeartbeatTime how long the answer may take.
	Heartbeat, HeartbeatTime time.Duration
	Log                      *slog.Logger
	Metrics                  *Metrics
}

// Follower reads one Consul. Make one with New.
type Follower struct {
	cfg   Config
	http2 atomic.Bool

	// server is the one of cfg.Servers that is asked; touched by Run only.
	server int
}

// New makes a follower; it asks nothing.
func New(cfg Config) *Follower { return &Follower{cfg: cfg} }

// HTTP2 notes that answers come over HTTP/2, whose queries share connections.
func (f *Follower) HTTP2() { f.http2.Store(true) }

// MinQueries is the least number of queries at once with which a source of so
// many data centres works: the list of each, one first read, two waiting ones.
func MinQueries(datacenters int) int { return datacenters + 3 }

// Run follows until ctx ends, and then returns nil. Once everything was read it
// retries by itself whatever fails; before that, it returns why the registry
// cannot be reached.
func (f *Follower) Run(ctx context.Context, sink bridges.Sink) error {
	err := f.session(ctx, sink)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (f *Follower) session(ctx context.Context, sink bridges.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	s := newSession(f, sink)
	defer func() {
		cancel()
		s.turns.Wait()
		f.cfg.Metrics.inFlight.Set(0)
	}()
	return s.run(ctx)
}

// limit is how many queries may run at once now.
func (f *Follower) limit() int {
	if f.http2.Load() {
		return max(f.cfg.Queries, f.cfg.QueriesHTTP2)
	}
	return f.cfg.Queries
}
