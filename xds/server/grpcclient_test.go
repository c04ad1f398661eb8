package server_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

// httpManager takes its routes over ADS.
func httpManager(routes string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: "test",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{
			Rds: &hcmv3.Rds{RouteConfigName: routes, ConfigSource: servertest.ADS()},
		},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})},
		}},
	}
}

// routeTo sends everything of one domain to a cluster.
func routeTo(name, domain, cluster string) *resource.Resource {
	return servertest.Make(resource.Route, name, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{domain},
		Routes: []*routev3.Route{{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
			}},
		}},
	}}}, "virtualservice/default/"+cluster)
}

func edsCluster(name string) *resource.Resource {
	return servertest.Make(resource.Cluster, name, &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: servertest.ADS()},
	})
}

func localityHere() *corev3.Locality { return &corev3.Locality{Region: "here"} }

func regex(expr string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: expr} }

func endpointsAt(name string, addrs ...string) *resource.Resource {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		Locality: localityHere(), LoadBalancingWeight: wrapperspb.UInt32(1),
	}}}
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			panic(err)
		}
		n, err := net.LookupPort("tcp", port)
		if err != nil {
			panic(err)
		}
		cla.Endpoints[0].LbEndpoints = append(cla.Endpoints[0].LbEndpoints, servertest.Endpoint(host, n))
	}
	return servertest.Make(resource.Endpoints, name, cla)
}

// startBackend serves gRPC health until the test ends.
func startBackend(t *testing.T) (addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

func TestGRPCClient(t *testing.T) {
	const host = "svc.mesh:80"
	one, two := startBackend(t), startBackend(t)
	reg := status.NewRegistry()
	w := servertest.NewWorld(edsCluster("one"), edsCluster("two"), endpointsAt("one", one), endpointsAt("two", two))
	w.PutOnDemand(
		servertest.Make(resource.Listener, host, &listenerv3.Listener{
			Name: host, ApiListener: &listenerv3.ApiListener{ApiListener: pack(httpManager(host))},
		}),
		routeTo(host, host, "one"),
	)
	addr := servertest.Serve(t, w, server.Config{Log: quietLog(), Status: reg})
	builder, err := xds.NewXDSResolverWithConfigForTesting(fmt.Appendf(nil, `{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "grpc-client"}
	}`, addr))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///"+host, grpc.WithResolvers(builder), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "the client leaves", func() bool { return w.Joined() == 0 })
	})
	reaches := func(want string) func() bool {
		return func() bool {
			var p peer.Peer
			_, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{},
				grpc.WaitForReady(true), grpc.Peer(&p))
			if err != nil && strings.Contains(err.Error(), "unknown cluster selected for RPC") {
				return false // grpc-go takes a new route a moment before its balancer knows the cluster
			}
			if err != nil {
				t.Fatal(err)
			}
			return p.Addr.String() == want
		}
	}
	eventually(t, "calls reach the first backend", reaches(one))
	w.PutOnDemand(routeTo(host, host, "two"))
	eventually(t, "the route changes", reaches(two))
	w.Put(endpointsAt("two", one))
	eventually(t, "the endpoints change without a failed call", reaches(one))
	if f := reg.Refusals(); len(f) > 0 {
		t.Errorf("the client refused %+v", f)
	}
	eventually(t, "the rule is in force on the client", func() bool {
		p := reg.Applied("virtualservice/default/two")["virtualservice/default/two"]
		return p.Total == 1 && p.Applied == 1
	})
	// A route that it cannot take is refused by name, and the good one stays.
	bad := servertest.Make(resource.Route, host, &routev3.RouteConfiguration{Name: host, VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{host},
		Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: regex("(")}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "one"}}},
		}},
	}}}, "virtualservice/default/bad")
	w.PutOnDemand(bad)
	eventually(t, "the refusal is reported", func() bool {
		f := reg.Refusals()
		return len(f) == 1 && f[0].Name == host && f[0].Version == bad.Version && len(f[0].Origins) == 1
	})
	if !reaches(one)() {
		t.Error("calls go elsewhere after a refused route")
	}
}
