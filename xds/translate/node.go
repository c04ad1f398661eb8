package translate

import (
	"net/netip"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// Own makes what a node gets for itself alone: inbound listeners and clusters, the
// listener of the explicit proxy, and bound listeners for the services of its
// EGRESS. lookup gives the Inputs of those. All are part of wildcard subscriptions.
func Own(n *scope.Node, client scope.Client, lookup func(model.Host) Inputs, opt Options) ([]*resource.Resource, error) {
	var all []*resource.Resource
	for _, in := range n.Inbound {
		made, err := inbound(in, n.Kind, opt)
		if err != nil {
			return nil, err
		}
		all = append(all, made...)
	}
	for _, e := range n.Egress {
		r, err := egressListener(e, lookup(e.Host), client, opt)
		if err != nil {
			return nil, err
		}
		if r != nil {
			all = append(all, r)
		}
	}
	if n.HTTPProxy.IsValid() {
		r, err := proxyListener(n.HTTPProxy, opt)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// ProxyRouteName names the route configuration of the explicit proxy at that address.
func ProxyRouteName(at netip.AddrPort) string { return strconv.Itoa(int(at.Port())) }

func proxyListener(at netip.AddrPort, opt Options) (*resource.Resource, error) {
	log, err := accessLog(opt)
	if err != nil {
		return nil, err
	}
	hcm := manager(&hcmv3.HttpConnectionManager{RouteSpecifier: rds(ProxyRouteName(at))}, listenerStatPrefix("outbound", at), log)
	l, err := listener(resource.ListenerName(at), at, corev3.TrafficDirection_OUTBOUND, wellknown.HTTPConnectionManager, hcm)
	if err != nil {
		return nil, err
	}
	return resource.New(resource.Listener, l.Name, l)
}

func inbound(in scope.Inbound, kind scope.Kind, opt Options) ([]*resource.Resource, error) {
	protocol := spoken(in.Protocol, kind)
	c, err := inboundCluster(in, protocol)
	if err != nil {
		return nil, err
	}
	log, err := accessLog(opt)
	if err != nil {
		return nil, err
	}
	filter, config := wellknown.TCPProxy, proto.Message(tcpProxy([]weighted{{c.Name, 1}}, log))
	if protocol.HTTPLike() {
		routes := &routev3.RouteConfiguration{Name: c.Name, VirtualHosts: []*routev3.VirtualHost{{
			Name: "inbound|http|" + strconv.Itoa(int(in.App.Port())), Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Name:  "default",
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: c.Name},
					Timeout:          durationpb.New(0),
					// The application may close an idle connection in the moment of its reuse.
					RetryPolicy: &routev3.RetryPolicy{RetryOn: retryInbound, NumRetries: wrapperspb.UInt32(defaultAttempts)},
				}},
			}},
		}}}
		filter = wellknown.HTTPConnectionManager
		config = manager(&hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes}},
			listenerStatPrefix("inbound", in.Listen), log)
	}
	l, err := listener(resource.ListenerName(in.Listen), in.Listen, corev3.TrafficDirection_INBOUND, filter, config)
	if err != nil {
		return nil, err
	}
	cluster, err := resource.New(resource.Cluster, c.Name, c)
	if err != nil {
		return nil, err
	}
	bound, err := resource.New(resource.Listener, l.Name, l)
	return []*resource.Resource{cluster, bound}, err
}
