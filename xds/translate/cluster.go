package translate

import (
	"cmp"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// Defaults of clusters; the reasons are in RATIONALE.md.
const (
	connectTimeout   = 2 * time.Second
	budgetPercent    = 80
	budgetMinRetries = 32
	minRingSize      = 1024
)

const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// pack wraps a message whose bytes must be the same everywhere.
func pack(m proto.Message) (*anypb.Any, error) {
	out := &anypb.Any{}
	return out, anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
}

// ads says: ask the stream that this came by.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// clusterNames yields the names of a host's clusters: for the whole host and each
// addressed part, without subset and with each.
func clusterNames(host model.Host, ports []model.Port, dest *rules.Rule, parts []string, yield func(name resource.ClusterName, port model.Port, subset *networking.Subset, part string) error) error {
	for _, part := range append([]string{""}, parts...) {
		h := host
		if part != "" {
			h = host.AtRegistry(part)
		}
		for _, port := range ports {
			name := resource.ClusterName{Port: port.Number, Host: h}
			if err := yield(name, port, nil, part); err != nil {
				return err
			}
			for _, s := range dest.DestinationRule().GetSubsets() {
				name.Subset = s.Name
				if err := yield(name, port, s, part); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func clusters(in Inputs, client scope.Client) ([]*resource.Resource, error) {
	var all []*resource.Resource
	err := clusterNames(in.Host, in.Ports, in.Dest, in.Parts, func(name resource.ClusterName, port model.Port, subset *networking.Subset, _ string) error {
		c, err := cluster(name.String(), spoken(port.Protocol, client.Kind), policyOf(in.Dest, subset), client)
		if err != nil {
			return err
		}
		r, err := resource.New(resource.Cluster, c.Name, c, keys(in.Dest)...)
		all = append(all, r)
		return err
	})
	return all, err
}

// policyOf is what a destination rule says of a subset; nil is the whole host.
// As in Istio, each part of a subset's policy replaces the host's.
func policyOf(dest *rules.Rule, subset *networking.Subset) *networking.TrafficPolicy {
	whole := dest.DestinationRule().GetTrafficPolicy()
	own := subset.GetTrafficPolicy()
	return &networking.TrafficPolicy{
		LoadBalancer:   cmp.Or(own.GetLoadBalancer(), whole.GetLoadBalancer()),
		ConnectionPool: cmp.Or(own.GetConnectionPool(), whole.GetConnectionPool()),
		RetryBudget:    cmp.Or(own.GetRetryBudget(), whole.GetRetryBudget()),
	}
}

// subsetOf finds a subset by name; nil for none.
func subsetOf(dest *rules.Rule, name string) *networking.Subset {
	for _, s := range dest.DestinationRule().GetSubsets() {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func cluster(name string, protocol model.Protocol, policy *networking.TrafficPolicy, client scope.Client) (*clusterv3.Cluster, error) {
	tcp, http := policy.GetConnectionPool().GetTcp(), policy.GetConnectionPool().GetHttp()
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       cmp.Or(tcp.GetConnectTimeout(), durationpb.New(connectTimeout)),
		// Half the endpoints down is no reason to send requests to them.
		CommonLbConfig:  &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
		CircuitBreakers: breakers(policy),
	}
	balance(c, policy.GetLoadBalancer(), client)
	if !protocol.HTTPLike() {
		return c, nil
	}
	opt := protocolOptions(protocol)
	if http.GetIdleTimeout() != nil || http.GetMaxRequestsPerConnection() > 0 {
		opt.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: http.GetIdleTimeout()}
		if n := http.GetMaxRequestsPerConnection(); n > 0 {
			opt.CommonHttpProtocolOptions.MaxRequestsPerConnection = wrapperspb.UInt32(uint32(n))
		}
	}
	return c, setProtocol(c, opt)
}

func setProtocol(c *clusterv3.Cluster, opt *httpv3.HttpProtocolOptions) error {
	packed, err := pack(opt)
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: packed}
	return err
}

// protocolOptions names the protocol, so that nothing is left to negotiation.
func protocolOptions(protocol model.Protocol) *httpv3.HttpProtocolOptions {
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{}
	if protocol == model.HTTP {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}
	} else {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	}
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit}}
}

func balance(c *clusterv3.Cluster, lb *networking.LoadBalancerSettings, client scope.Client) {
	if ch := lb.GetConsistentHash(); ch != nil {
		size := cmp.Or(ch.GetRingHash().GetMinimumRingSize(), minRingSize)
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(size)}}
		return
	}
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = clusterv3.Cluster_RANDOM
		if client.Kind == scope.GRPC {
			c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN // gRPC libraries refuse a cluster with RANDOM
		}
	default:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	}
}

// breakers are the limits of a rule. What no rule limits is unlimited: Envoy's own
// defaults (1024 connections, 3 retries) are surprises under load.
func breakers(policy *networking.TrafficPolicy) *clusterv3.CircuitBreakers {
	limit := func(n int32) *wrapperspb.UInt32Value {
		if n <= 0 {
			return wrapperspb.UInt32(math.MaxUint32)
		}
		return wrapperspb.UInt32(uint32(n))
	}
	http := policy.GetConnectionPool().GetHttp()
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     limit(policy.GetConnectionPool().GetTcp().GetMaxConnections()),
		MaxPendingRequests: limit(0), // no rule sets it: sidecars let nothing wait
		MaxRequests:        limit(http.GetHttp2MaxRequests()),
	}
	if n := http.GetMaxRetries(); n > 0 {
		t.MaxRetries = limit(n)
		return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
	}
	percent := float64(budgetPercent)
	if p := policy.GetRetryBudget().GetPercent(); p != nil {
		percent = p.Value
	}
	t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
		BudgetPercent:       &typev3.Percent{Value: percent},
		MinRetryConcurrency: wrapperspb.UInt32(cmp.Or(policy.GetRetryBudget().GetMinRetryConcurrency(), budgetMinRetries)),
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

// inboundCluster leads to the application beside the node.
func inboundCluster(in scope.Inbound, protocol model.Protocol) (*clusterv3.Cluster, error) {
	name := resource.ClusterName{Inbound: true, Port: in.App.Port()}.String()
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
		CircuitBreakers:      breakers(nil),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: socket(in.App)},
			}}},
		}}},
	}
	if !protocol.HTTPLike() {
		return c, nil
	}
	return c, setProtocol(c, protocolOptions(protocol))
}
