package client

import (
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

func encode(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func manager(tb testing.TB, route string) *anypb.Any {
	tb.Helper()
	a, err := anypb.New(&hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{
		Rds: &hcmv3.Rds{RouteConfigName: route},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func chain(a *anypb.Any) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a}}}}
}

func TestReferences(t *testing.T) {
	eds := &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	for _, tt := range []struct {
		name string
		t    resource.Type
		m    proto.Message
		of   resource.Type
		want []string
	}{
		{
			name: "a cluster asks for endpoints by its name", t: resource.Cluster, of: resource.Endpoints,
			m: &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: eds}, want: []string{"c"},
		},
		{
			name: "or by the service's", t: resource.Cluster, of: resource.Endpoints, want: []string{"s"},
			m: &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: eds, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: "s"}},
		},
		{name: "a static cluster asks for none", t: resource.Cluster, of: resource.Endpoints, m: &clusterv3.Cluster{Name: "c"}},
		{
			name: "a listener asks for the routes of all its chains", t: resource.Listener, of: resource.Route,
			m: &listenerv3.Listener{
				FilterChains: []*listenerv3.FilterChain{chain(manager(t, "r1")), {}}, DefaultFilterChain: chain(manager(t, "r2")),
			},
			want: []string{"r1", "r2"},
		},
		{
			name: "an API listener for its own", t: resource.Listener, of: resource.Route, want: []string{"r"},
			m: &listenerv3.Listener{ApiListener: &listenerv3.ApiListener{ApiListener: manager(t, "r")}},
		},
	} {
		of, got, err := references(tt.t, encode(t, tt.m))
		if err != nil || of != tt.of || !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v %q, %v, want %v %q", tt.name, of, got, err, tt.of, tt.want)
		}
	}
}

func FuzzReferences(f *testing.F) {
	f.Add(uint8(resource.Cluster), encode(f, &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}}))
	f.Add(uint8(resource.Listener), encode(f, &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain(manager(f, "r"))}}))
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		k := resource.Type(kind) % resource.NumTypes
		of, names, err := references(k, body)
		if err != nil && len(names) > 0 {
			t.Fatalf("names %q beside error %v", names, err)
		}
		again, same, err2 := references(k, body)
		if of != again || !slices.Equal(names, same) || (err == nil) != (err2 == nil) {
			t.Fatalf("twice the same body: %v %q, then %v %q", of, names, again, same)
		}
	})
}

func BenchmarkReferences(b *testing.B) {
	body := encode(b, &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain(manager(b, "r"))}})
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := references(resource.Listener, body); err != nil {
			b.Fatal(err)
		}
	}
}
