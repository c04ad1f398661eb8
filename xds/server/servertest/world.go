// Package servertest is what tests of the xDS server and of its clients share: a World
// that is set by hand, resources to put into it, a connection to a server within the
// process, and the load that compares servers.
//
// A World may be used from any goroutine.
package servertest

import (
	"fmt"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// World gives every node the same resources. A node's scope is its cluster field, so
// tests may have several feeds. Make one with NewWorld.
type World struct {
	// Refuse, if not nil, is what Join answers; set it before use.
	Refuse error

	order sync.Mutex // held over a publication, so that none overtakes another

	mu    sync.Mutex // guards all below
	snap  *resource.Snapshot
	feeds map[string]*resource.Feed
	in    int // joins less leaves
}

// NewWorld returns a world that holds rs.
func NewWorld(rs ...*resource.Resource) *World {
	w := &World{snap: &resource.Snapshot{}, feeds: map[string]*resource.Feed{}}
	w.Put(rs...)
	return w
}

// Join implements server.World.
func (w *World) Join(node *corev3.Node) (*resource.Feed, error) {
	if w.Refuse != nil {
		return nil, w.Refuse
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.feeds[node.GetCluster()]
	if f == nil {
		f = resource.NewFeed("scope/"+node.GetCluster(), w.snap)
		w.feeds[node.GetCluster()] = f
	}
	w.in++
	return f, nil
}

// Leave implements server.World.
func (w *World) Leave(*resource.Feed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.in--
}

// Joined is the number of streams that joined and did not leave.
func (w *World) Joined() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.in
}

// Put adds or replaces resources in one publication.
func (w *World) Put(rs ...*resource.Resource) {
	w.change(func(s *resource.Snapshot) (keys []resource.Key) {
		for _, r := range rs {
			s.Tables[r.Type] = s.Tables[r.Type].Set(r.Name, r)
			keys = append(keys, resource.Key{Type: r.Type, Name: r.Name})
		}
		return keys
	})
}

// PutOnDemand is Put for resources that a wildcard does not carry.
func (w *World) PutOnDemand(rs ...*resource.Resource) {
	w.change(func(s *resource.Snapshot) (keys []resource.Key) {
		for _, r := range rs {
			s.Tables[r.Type] = s.Tables[r.Type].Set(r.Name, r)
			s.OnDemand[r.Type] = s.OnDemand[r.Type].Set(r.Name, struct{}{})
			keys = append(keys, resource.Key{Type: r.Type, Name: r.Name})
		}
		return keys
	})
}

// Delete removes resources in one publication.
func (w *World) Delete(keys ...resource.Key) {
	w.change(func(s *resource.Snapshot) []resource.Key {
		for _, k := range keys {
			s.Tables[k.Type] = s.Tables[k.Type].Delete(k.Name)
			s.OnDemand[k.Type] = s.OnDemand[k.Type].Delete(k.Name)
		}
		return keys
	})
}

// Change applies puts and deletes in one publication.
func (w *World) Change(put []*resource.Resource, del []resource.Key) {
	w.change(func(s *resource.Snapshot) (keys []resource.Key) {
		for _, r := range put {
			s.Tables[r.Type] = s.Tables[r.Type].Set(r.Name, r)
			keys = append(keys, resource.Key{Type: r.Type, Name: r.Name})
		}
		for _, k := range del {
			s.Tables[k.Type] = s.Tables[k.Type].Delete(k.Name)
		}
		return append(keys, del...)
	})
}

func (w *World) change(edit func(*resource.Snapshot) []resource.Key) {
	w.order.Lock()
	defer w.order.Unlock()
	w.mu.Lock()
	next := *w.snap
	keys := edit(&next)
	w.snap = &next
	feeds := make([]*resource.Feed, 0, len(w.feeds))
	for _, f := range w.feeds {
		feeds = append(feeds, f)
	}
	w.mu.Unlock()
	for _, f := range feeds {
		f.Publish(&next, keys)
	}
}

// Snapshot is the newest one.
func (w *World) Snapshot() *resource.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snap
}

// Make encodes m and panics if that fails: resources of tests are written by hand.
func Make(t resource.Type, name string, m proto.Message, origins ...string) *resource.Resource {
	r, err := resource.New(t, name, m, origins...)
	if err != nil {
		panic(err)
	}
	return r
}

// Simple makes a resource of any type whose content differs by seed. A cluster gets
// its endpoints over ADS.
func Simple(t resource.Type, name string, seed int, origins ...string) *resource.Resource {
	mark := fmt.Sprintf("seed-%d", seed)
	switch t {
	case resource.Secret:
		return Make(t, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{
			GenericSecret: &tlsv3.GenericSecret{Secret: inline(mark)},
		}}, origins...)
	case resource.Cluster:
		return Make(t, name, &clusterv3.Cluster{
			Name: name, AltStatName: mark,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ADS()},
		}, origins...)
	case resource.Endpoints:
		return Endpoints(name, seed, 1, origins...)
	case resource.Listener:
		return Make(t, name, &listenerv3.Listener{Name: name, StatPrefix: mark}, origins...)
	case resource.Route:
		return Make(t, name, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{
			{Name: mark, Domains: []string{"*"}},
		}}, origins...)
	}
	panic("no such type")
}

// Endpoints makes a load assignment of n addresses; seed is in the first one's port.
func Endpoints(name string, seed, n int, origins ...string) *resource.Resource {
	all := make([]*endpointv3.LbEndpoint, n)
	for i := range all {
		port := 8080
		if i == 0 {
			port = 1 + seed%65535
		}
		all[i] = Endpoint(fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255), port)
	}
	return Make(resource.Endpoints, name, &endpointv3.ClusterLoadAssignment{
		ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: all}},
	}, origins...)
}

// Endpoint is one address.
func Endpoint(ip string, port int) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
		Address: Address(ip, port),
	}}}
}

// Address is a TCP address.
func Address(ip string, port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// ADS is the config source of everything that comes over the same stream.
func ADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}
