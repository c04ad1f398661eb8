package snapshot

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Dump returns what is served, what waits and what was refused, in the shape of
// Envoy's /config_dump. bootstrap comes first; it may be nil.
func (s *Store) Dump(bootstrap proto.Message) ([]byte, error) {
	d := s.dump()
	parts := []proto.Message{d.clusters, d.listeners, d.routes, d.endpoints}
	if bootstrap != nil {
		parts = append([]proto.Message{bootstrap}, parts...)
	}
	var out adminv3.ConfigDump
	for _, p := range parts {
		packed, err := anypb.New(p)
		if err != nil {
			return nil, fmt.Errorf("dump configuration: %w", err)
		}
		out.Configs = append(out.Configs, packed)
	}
	data, err := protojson.MarshalOptions{Indent: " ", UseProtoNames: true}.Marshal(&out)
	if err != nil {
		return nil, fmt.Errorf("dump configuration: %w", err)
	}
	return data, nil
}

type dumps struct {
	clusters  *adminv3.ClustersConfigDump
	listeners *adminv3.ListenersConfigDump
	routes    *adminv3.RoutesConfigDump
	endpoints *adminv3.EndpointsConfigDump
}

func (s *Store) dump() dumps {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := dumps{&adminv3.ClustersConfigDump{}, &adminv3.ListenersConfigDump{}, &adminv3.RoutesConfigDump{}, &adminv3.EndpointsConfigDump{}}
	for name, a := range s.each(resource.Cluster) {
		c := &adminv3.ClustersConfigDump_DynamicCluster{
			ErrorState: s.failure(resource.Cluster, name), ClientStatus: s.status(resource.Cluster, name),
		}
		if a != nil {
			c.VersionInfo, c.Cluster, c.LastUpdated = a.Version, packed(resource.Cluster, a), timestamppb.New(a.at)
		}
		if _, cold := s.coldClusters[name]; cold {
			d.clusters.DynamicWarmingClusters = append(d.clusters.DynamicWarmingClusters, c)
		} else {
			d.clusters.DynamicActiveClusters = append(d.clusters.DynamicActiveClusters, c)
		}
	}
	for name, a := range s.each(resource.Listener) {
		l := &adminv3.ListenersConfigDump_DynamicListener{
			Name: name, ErrorState: s.failure(resource.Listener, name), ClientStatus: s.status(resource.Listener, name),
		}
		if a != nil {
			state := &adminv3.ListenersConfigDump_DynamicListenerState{
				VersionInfo: a.Version, Listener: packed(resource.Listener, a), LastUpdated: timestamppb.New(a.at),
			}
			if _, cold := s.coldListeners[name]; cold {
				l.WarmingState = state
			} else {
				l.ActiveState = state
			}
		}
		d.listeners.DynamicListeners = append(d.listeners.DynamicListeners, l)
	}
	for name, a := range s.each(resource.Route) {
		r := &adminv3.RoutesConfigDump_DynamicRouteConfig{
			ErrorState: s.failure(resource.Route, name), ClientStatus: s.status(resource.Route, name),
		}
		if a != nil {
			r.VersionInfo, r.RouteConfig, r.LastUpdated = a.Version, packed(resource.Route, a), timestamppb.New(a.at)
		}
		d.routes.DynamicRouteConfigs = append(d.routes.DynamicRouteConfigs, r)
	}
	for name, a := range s.each(resource.Endpoints) {
		e := &adminv3.EndpointsConfigDump_DynamicEndpointConfig{
			ErrorState: s.failure(resource.Endpoints, name), ClientStatus: s.status(resource.Endpoints, name),
		}
		if a != nil {
			e.VersionInfo, e.EndpointConfig, e.LastUpdated = a.Version, packed(resource.Endpoints, a), timestamppb.New(a.at)
		}
		d.endpoints.DynamicEndpointConfigs = append(d.endpoints.DynamicEndpointConfigs, e)
	}
	return d
}

// each yields the resources that were accepted or refused, by name; what was
// never accepted is nil.
func (s *Store) each(t resource.Type) func(yield func(string, *accepted) bool) {
	names := map[string]struct{}{}
	for name := range s.accepted[t] {
		names[name] = struct{}{}
	}
	for name := range s.rejected[t] {
		names[name] = struct{}{}
	}
	return func(yield func(string, *accepted) bool) {
		for _, name := range slices.Sorted(maps.Keys(names)) {
			var got *accepted
			if a, ok := s.accepted[t][name]; ok {
				got = &a
			}
			if !yield(name, got) {
				return
			}
		}
	}
}

func packed(t resource.Type, a *accepted) *anypb.Any {
	return &anypb.Any{TypeUrl: t.URL(), Value: a.Body}
}

func (s *Store) failure(t resource.Type, name string) *adminv3.UpdateFailureState {
	r := s.rejected[t][name]
	if r == nil {
		return nil
	}
	return &adminv3.UpdateFailureState{Details: r.text(), VersionInfo: r.Version}
}

func (s *Store) status(t resource.Type, name string) adminv3.ClientResourceStatus {
	if s.rejected[t][name] != nil {
		return adminv3.ClientResourceStatus_NACKED
	}
	return adminv3.ClientResourceStatus_ACKED
}

// WriteClusters writes a line a fact, "cluster::10.0.0.1:80::weight::1", in the
// form of Envoy's /clusters.
func (s *Store) WriteClusters(w io.Writer) error {
	s.mu.Lock()
	states := make([]*clusterState, 0, len(s.clusters))
	for _, name := range slices.Sorted(maps.Keys(s.clusters)) {
		states = append(states, s.clusters[name])
	}
	s.mu.Unlock()
	var b strings.Builder
	for _, c := range states {
		name, set := c.cluster.Name, c.cluster.Settings()
		if !c.cluster.Known() {
			fmt.Fprintf(&b, "%s::unknown\n", name)
			continue
		}
		fmt.Fprintf(&b, "%s::observability_name::%s\n", name, name)
		fmt.Fprintf(&b, "%s::default_priority::max_connections::%d\n", name, set.Limits.Connections)
		fmt.Fprintf(&b, "%s::default_priority::max_requests::%d\n", name, set.Limits.Requests)
		fmt.Fprintf(&b, "%s::default_priority::max_retries::%d\n", name, set.Limits.Retries)
		fmt.Fprintf(&b, "%s::lb_policy::%s\n", name, set.Policy.Name())
		for _, h := range c.cluster.Hosts() {
			e := h.Endpoint()
			fmt.Fprintf(&b, "%s::%v::rq_active::%d\n", name, h.Addr, h.Active.Load())
			fmt.Fprintf(&b, "%s::%v::cx_idle::%d\n", name, h.Addr, h.Idle.Len())
			fmt.Fprintf(&b, "%s::%v::health_flags::%v\n", name, h.Addr, e.Health)
			fmt.Fprintf(&b, "%s::%v::weight::%d\n", name, h.Addr, e.Weight)
			fmt.Fprintf(&b, "%s::%v::priority::%d\n", name, h.Addr, e.Priority)
			if e.Locality != "" {
				fmt.Fprintf(&b, "%s::%v::locality::%s\n", name, h.Addr, e.Locality)
			}
			if e.Workload != "" {
				fmt.Fprintf(&b, "%s::%v::workload::%s\n", name, h.Addr, e.Workload)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Changed is when a resource was last accepted; zero: never.
func (s *Store) Changed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var last time.Time
	for t := range resource.NumTypes {
		for _, a := range s.accepted[t] {
			if a.at.After(last) {
				last = a.at
			}
		}
	}
	return last
}
