package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Apply takes in a change and returns what of it was refused: of each resource on
// its own, the others are in force when it returns (or wait for what they need).
func (s *Store) Apply(ch Change) []*Rejection {
	s.mu.Lock()
	now := time.Now()
	var refused []*Rejection
	for _, r := range ch.Updated {
		if old, ok := s.accepted[ch.Type][r.Name]; ok && old.Version == r.Version && s.rejected[ch.Type][r.Name] == nil {
			continue
		}
		if err := s.update(ch.Type, r, now); err != nil {
			refusal := reject(ch.Type, r, err)
			s.rejected[ch.Type][r.Name] = refusal
			refused = append(refused, refusal)
			continue
		}
		delete(s.rejected[ch.Type], r.Name)
		s.accepted[ch.Type][r.Name] = accepted{r, now}
	}
	for _, name := range ch.Removed {
		delete(s.rejected[ch.Type], name)
		if s.remove(ch.Type, name) {
			delete(s.accepted[ch.Type], name)
		}
	}
	s.settle(now)
	s.sweep()
	tell := s.publish()
	s.mu.Unlock()
	for _, w := range tell {
		signal(w)
	}
	signal(s.dirty)
	return refused
}

// publish makes the listeners that are live the current ones, and returns who is
// to be told of what changed.
func (s *Store) publish() (tell []chan struct{}) {
	if s.relisted {
		next := Listeners{}
		for name, l := range s.serving {
			if l.live != nil {
				next[name] = l.live
			}
		}
		s.listeners.Store(&next)
		s.relisted = false
		tell = slices.Collect(maps.Keys(s.watchers))
	}
	if len(s.coldClusters)+len(s.coldRoutes)+len(s.coldListeners) > 0 {
		tell = append(tell, s.wakeWarm)
	}
	return tell
}

func (s *Store) update(t resource.Type, r Resource, now time.Time) error {
	if r.Name == "" {
		return fields.Errorf("", "has no name")
	}
	switch t {
	case resource.Cluster:
		spec, err := decodeCluster(r.Name, r.Body)
		if err != nil {
			return err
		}
		c := s.cluster(r.Name)
		c.next, c.until = spec, now.Add(s.cfg.WarmTime)
		delete(s.unknown, r.Name)
		s.coldClusters[r.Name] = struct{}{}
	case resource.Endpoints:
		endpoints, err := decodeEndpoints(r.Name, r.Body)
		if err != nil {
			return err
		}
		s.setEndpoints(r.Name, endpoints)
	case resource.Route:
		return s.updateRoutes(r, now)
	case resource.Listener:
		return s.updateListener(r, now)
	default:
		return fmt.Errorf("%v is not implemented", t)
	}
	return nil
}

func (s *Store) setEndpoints(eds string, endpoints []upstream.Endpoint) {
	if endpoints == nil {
		endpoints = []upstream.Endpoint{}
	}
	s.endpoints[eds] = endpoints
	// Almost always the resource is named as its cluster is.
	if c, ok := s.clusters[eds]; ok && c.active != nil && c.active.eds == eds {
		c.cluster.SetEndpoints(endpoints)
		return
	}
	for _, c := range s.clusters {
		if c.active != nil && c.active.eds == eds {
			c.cluster.SetEndpoints(endpoints)
		}
	}
}

func (s *Store) updateRoutes(r Resource, now time.Time) error {
	var m routev3.RouteConfiguration
	if err := decode(r.Body, &m); err != nil {
		return err
	}
	if m.GetName() != r.Name {
		return fields.Errorf("name", "%q, but the resource is named %q", m.GetName(), r.Name)
	}
	compiled, err := s.compileRoutes(&m)
	if err != nil {
		return err
	}
	state := s.routes[r.Name]
	if state == nil {
		state = &routeState{}
		s.routes[r.Name] = state
	}
	state.next, state.until = compiled, now.Add(s.cfg.WarmTime)
	s.coldRoutes[r.Name] = struct{}{}
	return nil
}

func (s *Store) compileRoutes(m *routev3.RouteConfiguration) (*compiledRoutes, error) {
	out := &compiledRoutes{}
	var err error
	out.table, err = router.Compile(m, func(name string) *upstream.Cluster {
		if !slices.Contains(out.clusters, name) {
			out.clusters = append(out.clusters, name)
		}
		return s.cluster(name).cluster
	})
	return out, err
}

func (s *Store) updateListener(r Resource, now time.Time) error {
	spec, err := decodeListener(r.Name, r.Body)
	if err != nil {
		return err
	}
	spec.listener.Version = r.Version
	if spec.inline != nil {
		if spec.inlined, err = s.compileRoutes(spec.inline); err != nil {
			return fields.At("filter_chains[0].filters[0].typed_config.route_config", err)
		}
		spec.inline = nil
	}
	if spec.listener.OnDemand && spec.listener.Addr.Port() == 0 {
		if _, port, ok := resource.ParseHostPort(r.Name); ok {
			spec.listener.Addr = anyAddress(port)
		} else {
			return fields.Errorf("address", "no port, and %q does not end with one", r.Name)
		}
	}
	l := s.serving[r.Name]
	if l == nil {
		l = &listenerState{}
		s.serving[r.Name] = l
	}
	l.next, l.until = spec, now.Add(s.cfg.WarmTime)
	s.coldListeners[r.Name] = struct{}{}
	return nil
}

// remove reports whether the resource is to be forgotten.
func (s *Store) remove(t resource.Type, name string) bool {
	switch t {
	case resource.Cluster:
		if c, ok := s.clusters[name]; ok {
			old := [2]*clusterSpec{c.active, c.next}
			c.active, c.next = nil, nil
			for _, spec := range old {
				if spec != nil && !s.usesEndpoints(spec.eds) {
					delete(s.endpoints, spec.eds)
					delete(s.accepted[resource.Endpoints], spec.eds)
				}
			}
			c.cluster.Retire()
			s.unknown[name] = struct{}{}
			delete(s.coldClusters, name)
		}
	case resource.Endpoints:
		// Endpoints go with their cluster only: a removal of theirs alone says
		// that the control plane has none to tell, not that hosts died. A cluster
		// that waits for them waits no longer.
		if _, ok := s.endpoints[name]; ok && s.usesEndpoints(name) {
			return false
		}
		s.setEndpoints(name, nil)
	case resource.Route:
		// As long as a listener uses the routes the last ones stay.
		if r, ok := s.routes[name]; ok && s.usesRoutes(name) {
			if r.active == nil && r.next == nil {
				r.next = &compiledRoutes{table: &router.Table{Name: name}}
				s.coldRoutes[name] = struct{}{}
			}
			return false
		} else if !ok && s.usesRoutes(name) {
			// The control plane has none: the listener answers that itself.
			s.routes[name] = &routeState{next: &compiledRoutes{table: &router.Table{Name: name}}}
			s.coldRoutes[name] = struct{}{}
			return false
		}
		delete(s.routes, name)
		delete(s.coldRoutes, name)
	case resource.Listener:
		delete(s.serving, name)
		delete(s.coldListeners, name)
		s.relisted = true
	}
	return true
}

func (s *Store) usesEndpoints(eds string) bool {
	for _, c := range s.clusters {
		if c.active != nil && c.active.eds == eds || c.next != nil && c.next.eds == eds {
			return true
		}
	}
	return false
}

func (s *Store) usesRoutes(rds string) bool {
	for _, l := range s.serving {
		if l.active != nil && l.active.rds == rds || l.next != nil && l.next.rds == rds {
			return true
		}
	}
	return false
}

// cluster returns the state of a cluster; one that is not known yet is made.
func (s *Store) cluster(name string) *clusterState {
	c, ok := s.clusters[name]
	if !ok {
		service := name
		if n, err := resource.ParseClusterName(name); err == nil && !n.Inbound {
			service = string(n.Host)
		}
		c = &clusterState{cluster: upstream.NewCluster(name, s.cfg.Counters.Upstream(name, service))}
		s.clusters[name] = c
		s.unknown[name] = struct{}{}
	}
	return c
}
