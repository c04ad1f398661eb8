// Package snapshot turns xDS resources into what requests are served by:
// listeners, route tables and clusters.
//
// A Store takes changes by resource type (Apply), refuses what is wrong or not
// implemented with its field path while the last good version goes on serving,
// and publishes listeners behind an atomic pointer. Clusters and route tables are
// replaced in place, so that neither listeners nor connections notice. A listener
// or route table whose dependencies have not arrived waits for them, bounded,
// while its predecessor serves.
//
// What was accepted is kept on disk (Run writes it, Load reads it), so that a
// sidecar starts while its control plane is down.
//
// All methods may be called from any goroutine.
package snapshot

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Config of a Store.
type Config struct {
	Counters *telemetry.Registry // required
	// HTTP and TCP are what connections of listeners are served with; required.
	HTTP, TCP codec.Codec
	// AccessLog is what listeners log to; nil: no listener logs.
	AccessLog *telemetry.AccessLog
	// LogAll makes every listener log; otherwise those that ask for it do.
	LogAll bool
	// Path is the file that keeps what was accepted; empty: nothing is kept.
	Path string
	// WarmTime bounds how long a listener or route table waits for what it
	// depends on; 0 means 5 s.
	WarmTime time.Duration
	Log      *slog.Logger // required
}

// defaultWarmTime is well above a round trip to the control plane, and short
// enough that a lost dependency is noticed by people, not by time-outs.
const defaultWarmTime = 5 * time.Second

// Listeners are all listeners at one moment, by name; read-only.
type Listeners map[string]*Listener

// accepted is the last good version of a resource.
type accepted struct {
	Resource
	at time.Time
}

// Store holds what is served. Make one with New.
type Store struct {
	cfg       Config
	listeners atomic.Pointer[Listeners]
	dirty     chan struct{} // capacity 1: something is to be written
	wakeWarm  chan struct{} // capacity 1: something waits
	saved     atomic.Pointer[error]

	mu        sync.Mutex // guards the fields below
	accepted  [resource.NumTypes]map[string]accepted
	rejected  [resource.NumTypes]map[string]*Rejection
	clusters  map[string]*clusterState
	endpoints map[string][]upstream.Endpoint
	routes    map[string]*routeState
	serving   map[string]*listenerState
	// unknown clusters are named by routes or listeners, not by a Cluster.
	unknown map[string]struct{}
	// The three that follow are the names that wait.
	coldClusters, coldRoutes, coldListeners map[string]struct{}
	watchers                                map[chan struct{}]struct{}
	relisted                                bool // the live listeners changed since they were published
}

// clusterState is a cluster and what it is made of.
type clusterState struct {
	cluster *upstream.Cluster
	active  *clusterSpec
	// next waits for its endpoints; until then active serves.
	next  *clusterSpec
	until time.Time
}

// routeState is a route configuration.
type routeState struct {
	active *compiledRoutes // nil until the first one arrived
	next   *compiledRoutes // waits for its clusters
	used   bool            // by a listener, now or before
	until  time.Time
}

type compiledRoutes struct {
	table    *router.Table
	clusters []string // that it names
}

// listenerState is a listener.
type listenerState struct {
	active *listenerSpec
	live   *Listener // made of active; nil until its routes arrived
	// next waits for its routes or clusters.
	next  *listenerSpec
	until time.Time
}

// New checks cfg.
func New(cfg Config) (*Store, error) {
	var errs []error
	if cfg.Counters == nil {
		errs = append(errs, errors.New("snapshot: Counters is missing"))
	}
	if cfg.HTTP == nil || cfg.TCP == nil {
		errs = append(errs, errors.New("snapshot: HTTP or TCP is missing"))
	}
	if cfg.Log == nil {
		errs = append(errs, errors.New("snapshot: Log is missing"))
	}
	if cfg.WarmTime < 0 {
		errs = append(errs, errors.New("snapshot: WarmTime is negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.WarmTime == 0 {
		cfg.WarmTime = defaultWarmTime
	}
	s := &Store{
		cfg:           cfg,
		dirty:         make(chan struct{}, 1),
		wakeWarm:      make(chan struct{}, 1),
		clusters:      map[string]*clusterState{},
		endpoints:     map[string][]upstream.Endpoint{},
		routes:        map[string]*routeState{},
		serving:       map[string]*listenerState{},
		unknown:       map[string]struct{}{},
		coldClusters:  map[string]struct{}{},
		coldRoutes:    map[string]struct{}{},
		coldListeners: map[string]struct{}{},
		watchers:      map[chan struct{}]struct{}{},
	}
	for t := range resource.NumTypes {
		s.accepted[t] = map[string]accepted{}
		s.rejected[t] = map[string]*Rejection{}
	}
	s.listeners.Store(&Listeners{})
	return s, nil
}

// Listeners returns those that are served now; read-only.
func (s *Store) Listeners() Listeners { return *s.listeners.Load() }

// Watch returns a channel that holds a value whenever Listeners changed since it
// was last read. stop ends the watch.
func (s *Store) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[ch] = struct{}{}
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, ch)
	}
}

// signal puts a value into a channel of capacity 1, unless one is there.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // a wake-up is pending; the reader will find what is new
	}
}

// Held returns the accepted resources of t, for a stream that resumes.
func (s *Store) Held(t resource.Type) []Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Resource, 0, len(s.accepted[t]))
	for _, a := range s.accepted[t] {
		out = append(out, a.Resource)
	}
	return out
}

// Cluster returns a cluster that requests may be sent to, for dumps and tests.
func (s *Store) Cluster(name string) (*upstream.Cluster, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.clusters[name]
	if !ok || !c.cluster.Known() {
		return nil, false
	}
	return c.cluster, true
}

// Rejections returns what is refused at present, by type and name.
func (s *Store) Rejections() []Rejection {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Rejection
	for t := range resource.NumTypes {
		for _, name := range slices.Sorted(maps.Keys(s.rejected[t])) {
			out = append(out, *s.rejected[t][name])
		}
	}
	return out
}

// Waiting returns how many listeners wait for routes or clusters and have no
// predecessor that serves.
func (s *Store) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for name := range s.coldListeners {
		if s.serving[name].live == nil {
			n++
		}
	}
	return n
}
