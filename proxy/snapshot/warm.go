package snapshot

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/stream"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

func anyAddress(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), port) }

// settle puts in force what has what it needs, or waited long enough. Clusters
// come first, then routes, then listeners, for each needs the one before.
func (s *Store) settle(now time.Time) {
	for name := range s.coldClusters {
		s.settleCluster(name, now)
	}
	for name := range s.coldRoutes {
		s.settleRoutes(name, now)
	}
	for name := range s.coldListeners {
		s.settleListener(name, now)
	}
}

func (s *Store) settleCluster(name string, now time.Time) {
	c := s.clusters[name]
	endpoints, known := c.next.endpoints, true
	if c.next.eds != "" {
		endpoints, known = s.endpoints[c.next.eds]
	}
	if !known && now.Before(c.until) {
		return
	}
	c.cluster.Configure(c.next.settings)
	if known {
		c.cluster.SetEndpoints(endpoints)
	} else if c.active != nil && c.active.eds != c.next.eds {
		c.cluster.SetEndpoints(nil)
	}
	c.active, c.next = c.next, nil
	delete(s.coldClusters, name)
}

func (s *Store) settleRoutes(name string, now time.Time) {
	r := s.routes[name]
	// The first table need not wait: an unknown cluster answers 503, and so
	// would a listener without routes. Nor does one that names no cluster more
	// than the table that serves.
	if r.active != nil && now.Before(r.until) && !s.known(r.next.clusters, r.active.clusters) {
		return
	}
	r.active, r.next = r.next, nil
	delete(s.coldRoutes, name)
	for _, l := range s.serving {
		if l.live != nil && l.active.rds == name {
			r.used = true
			l.live.HTTP.Routes.Store(r.active.table)
		}
	}
}

// known reports whether all clusters that are not among besides have arrived.
func (s *Store) known(clusters, besides []string) bool {
	for _, name := range clusters {
		if !s.clusters[name].cluster.Known() && !slices.Contains(besides, name) {
			return false
		}
	}
	return true
}

func (s *Store) settleListener(name string, now time.Time) {
	l := s.serving[name]
	spec := l.next
	var table *router.Table
	ready := true
	switch {
	case spec.inlined != nil:
		table, ready = spec.inlined.table, l.live == nil || s.known(spec.inlined.clusters, nil)
	case spec.rds != "":
		if r := s.routes[spec.rds]; r != nil && r.active != nil {
			table = r.active.table
		}
		ready = table != nil
	default:
		for _, w := range spec.clusters {
			ready = ready && s.cluster(w.name).cluster.Known()
		}
	}
	if !ready && now.Before(l.until) {
		return
	}
	l.active, l.live, l.next = spec, s.make(spec, table, l.live), nil
	s.relisted = true
	if r := s.routes[spec.rds]; r != nil {
		r.used = true
	}
	delete(s.coldListeners, name)
}

// make joins a listener with what it depends on. old is its predecessor, or nil.
func (s *Store) make(spec *listenerSpec, table *router.Table, old *Listener) *Listener {
	live := spec.listener
	stats := s.cfg.Counters.Downstream(live.direction(), live.Addr.Port())
	log := s.cfg.AccessLog
	if !spec.logs && !s.cfg.LogAll {
		log = nil
	}
	if h := spec.http; h != nil {
		routes := new(atomic.Pointer[router.Table])
		if old != nil && old.HTTP != nil {
			routes = old.HTTP.Routes // open connections go on with the new routes
		}
		if table != nil {
			routes.Store(table) // without one the last good table stays
		}
		live.HTTP = &stream.HTTP{
			Routes: routes, Stats: stats, Log: log, Codec: s.cfg.HTTP, Inbound: live.Inbound, RequestID: h.requestID,
			MaxHeaderBytes: h.maxHeaderBytes, HeaderTimeout: h.headerTimeout, IdleTimeout: h.idle, StreamIdle: h.streamIdle,
		}
		return &live
	}
	live.TCP = &stream.TCP{Stats: stats, Log: log, Codec: s.cfg.TCP, Inbound: live.Inbound, IdleTimeout: spec.idle, ConnectAttempts: spec.connectAttempts}
	for _, w := range spec.clusters {
		live.TCP.Destinations = append(live.TCP.Destinations, stream.TCPDestination{Cluster: s.cluster(w.name).cluster, Weight: w.weight})
	}
	return &live
}

// nextDeadline is when something stops waiting; zero when nothing waits.
func (s *Store) nextDeadline() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next time.Time
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for name := range s.coldClusters {
		earlier(s.clusters[name].until)
	}
	for name := range s.coldRoutes {
		earlier(s.routes[name].until)
	}
	for name := range s.coldListeners {
		earlier(s.serving[name].until)
	}
	return next
}

// expire settles what waited too long.
func (s *Store) expire(now time.Time) {
	s.mu.Lock()
	cold := [3]int{len(s.coldClusters), len(s.coldRoutes), len(s.coldListeners)}
	s.settle(now)
	s.sweep()
	left := [3]int{len(s.coldClusters), len(s.coldRoutes), len(s.coldListeners)}
	tell := s.publish()
	s.mu.Unlock()
	for _, w := range tell {
		signal(w)
	}
	if cold != left {
		s.cfg.Log.Warn("configuration put in force before what it depends on arrived",
			"clusters", cold[0]-left[0], "routes", cold[1]-left[1], "listeners", cold[2]-left[2])
	}
}

// sweep drops route tables that listeners used and no longer do, and then the
// clusters that nothing names any longer.
func (s *Store) sweep() {
	for name, r := range s.routes {
		if r.used && !s.usesRoutes(name) {
			delete(s.routes, name)
			delete(s.coldRoutes, name)
			delete(s.accepted[resource.Route], name)
		}
	}
	if len(s.unknown) == 0 {
		return
	}
	named := map[string]struct{}{}
	mark := func(r *compiledRoutes) {
		if r != nil {
			for _, name := range r.clusters {
				named[name] = struct{}{}
			}
		}
	}
	for _, r := range s.routes {
		mark(r.active)
		mark(r.next)
	}
	for _, l := range s.serving {
		for _, spec := range []*listenerSpec{l.active, l.next} {
			if spec == nil {
				continue
			}
			mark(spec.inlined)
			for _, w := range spec.clusters {
				named[w.name] = struct{}{}
			}
		}
	}
	maps.DeleteFunc(s.unknown, func(name string, _ struct{}) bool {
		if _, still := named[name]; still {
			return false
		}
		delete(s.clusters, name)
		s.cfg.Counters.Forget(name)
		return true
	})
}
