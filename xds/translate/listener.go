package translate

import (
	"fmt"
	"net/netip"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// demandListener is the listener "<host>:<port>" of a service port, for who asks
// by that name: a gRPC client gets an API listener (and none for other protocols),
// a sidecar one that it binds itself.
func demandListener(in Inputs, client scope.Client, port model.Port, opt Options) (*resource.Resource, error) {
	name := resource.HostPortName(in.Host, port.Number)
	if client.Kind == scope.GRPC {
		if !port.Protocol.HTTPLike() {
			return nil, nil
		}
		api, err := pack(manager(&hcmv3.HttpConnectionManager{RouteSpecifier: rds(name)}, outboundPrefix(name), nil))
		if err != nil {
			return nil, err
		}
		return resource.New(resource.Listener, name, &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: api}})
	}
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), port.Number)
	l, origins, err := serviceListener(in, client, port, name, at, opt)
	if err != nil {
		return nil, err
	}
	l.BindToPort = wrapperspb.Bool(false)
	return resource.New(resource.Listener, name, l, origins...)
}

func outboundPrefix(name string) string { return "outbound_" + name }

// serviceListener leads to one port of a service.
func serviceListener(in Inputs, client scope.Client, port model.Port, name string, at netip.AddrPort, opt Options) (*listenerv3.Listener, []string, error) {
	log, err := accessLog(opt)
	if err != nil {
		return nil, nil, err
	}
	if port.Protocol.HTTPLike() {
		route := resource.HostPortName(in.Host, port.Number)
		hcm := manager(&hcmv3.HttpConnectionManager{RouteSpecifier: rds(route)}, outboundPrefix(route), log)
		l, err := listener(name, at, corev3.TrafficDirection_OUTBOUND, wellknown.HTTPConnectionManager, hcm)
		return l, nil, err
	}
	r := &router{in: in, client: client, port: port}
	proxy := tcpProxy(r.tcpClusters(), log)
	l, err := listener(name, at, corev3.TrafficDirection_OUTBOUND, wellknown.TCPProxy, proxy)
	return l, keys(r.origins...), err
}

// connectAttempts is how many hosts a TCP connection tries before it is given up:
// as long as none took it, nothing was sent that could arrive twice.
const connectAttempts = 3

func tcpProxy(to []weighted, log []*accesslogv3.AccessLog) *tcpv3.TcpProxy {
	out := &tcpv3.TcpProxy{StatPrefix: to[0].cluster, AccessLog: log, MaxConnectAttempts: wrapperspb.UInt32(connectAttempts)}
	if len(to) == 1 {
		out.ClusterSpecifier = &tcpv3.TcpProxy_Cluster{Cluster: to[0].cluster}
		return out
	}
	all := &tcpv3.TcpProxy_WeightedCluster{}
	for _, w := range to {
		all.Clusters = append(all.Clusters, &tcpv3.TcpProxy_WeightedCluster_ClusterWeight{Name: w.cluster, Weight: w.weight})
	}
	out.ClusterSpecifier = &tcpv3.TcpProxy_WeightedClusters{WeightedClusters: all}
	return out
}

func rds(name string) *hcmv3.HttpConnectionManager_Rds {
	return &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: name}}
}

// manager fills what all HTTP connection managers share. Envoy's own additions are
// switched off: an answer must not tell which proxy it came through.
func manager(m *hcmv3.HttpConnectionManager, statPrefix string, log []*accesslogv3.AccessLog) *hcmv3.HttpConnectionManager {
	router, err := pack(&routerv3.Router{SuppressEnvoyHeaders: true})
	if err != nil {
		panic("translate: a constant message does not marshal: " + err.Error())
	}
	m.StatPrefix = statPrefix
	m.HttpFilters = []*hcmv3.HttpFilter{{Name: wellknown.Router, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router}}}
	m.UpgradeConfigs = []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}}
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	m.GenerateRequestId = wrapperspb.Bool(false)
	m.AccessLog = log
	return m
}

func accessLog(opt Options) ([]*accesslogv3.AccessLog, error) {
	if opt.AccessLog == "" {
		return nil, nil
	}
	file, err := pack(&filelogv3.FileAccessLog{Path: opt.AccessLog})
	return []*accesslogv3.AccessLog{{Name: wellknown.FileAccessLog, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: file}}}, err
}

func listener(name string, at netip.AddrPort, direction corev3.TrafficDirection, filter string, config proto.Message) (*listenerv3.Listener, error) {
	packed, err := pack(config)
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name: name, Address: socket(at), TrafficDirection: direction,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: filter, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
		}}}},
	}, nil
}

// egressListener is bound where the node wants a service; nil when the service
// does not have the port, or no one knows its host.
func egressListener(e scope.Egress, in Inputs, client scope.Client, opt Options) (*resource.Resource, error) {
	for _, port := range in.Ports {
		if port.Number != e.Port || !in.Exists && in.Virtual == nil {
			continue
		}
		port.Protocol = spoken(port.Protocol, client.Kind)
		name := resource.ListenerName(e.Listen)
		l, origins, err := serviceListener(in, client, port, name, e.Listen, opt)
		if err != nil {
			return nil, err
		}
		return resource.New(resource.Listener, name, l, origins...)
	}
	return nil, nil
}

func listenerStatPrefix(direction string, at netip.AddrPort) string {
	return fmt.Sprintf("%s_%s", direction, resource.ListenerName(at))
}
