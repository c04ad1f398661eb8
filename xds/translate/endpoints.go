package translate

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// MetadataKey is the filter_metadata under which endpoints carry "workload" (the
// name of the workload whose sidecar serves them) and "mesh-tls" (true when that
// sidecar accepts mutual TLS).
const MetadataKey = "isthmus"

// Endpoints makes the load assignments of a service: one for each cluster that
// Outbound makes for it with the same destination rule and parts. A cluster
// without endpoints gets an empty one, so that no client waits for it.
func Endpoints(svc *model.Service, dest *rules.Rule, parts []string) ([]*resource.Resource, error) {
	built := make([]*builtEndpoint, len(svc.Endpoints)) // shared by all clusters that hold the endpoint
	var all []*resource.Resource
	err := clusterNames(svc.Host, svc.Ports, dest, parts, func(name resource.ClusterName, port model.Port, subset *networking.Subset, part string) error {
		want := model.NewLabels(subset.GetLabels())
		var chosen []*builtEndpoint
		for i := range svc.Endpoints {
			e := &svc.Endpoints[i]
			if e.Port != port.Number || !e.Labels.Contains(want) || part != "" && !heldBy(e, part) {
				continue
			}
			if built[i] == nil {
				built[i] = buildEndpoint(e)
			}
			chosen = append(chosen, built[i])
		}
		origins := keys(dest)
		if subset == nil {
			origins = nil // every endpoint, whatever the rule says
		}
		r, err := resource.New(resource.Endpoints, name.String(), assignment(name.String(), chosen), origins...)
		all = append(all, r)
		return err
	})
	return all, err
}

func heldBy(e *model.Endpoint, registry string) bool {
	return slices.ContainsFunc(e.Registries, func(r string) bool { return strings.EqualFold(r, registry) })
}

type builtEndpoint struct {
	model   *model.Endpoint
	message *endpointv3.LbEndpoint
}

// assignment groups endpoints by locality. A locality's weight is the sum of its
// endpoints', since gRPC clients skip localities without one.
func assignment(cluster string, endpoints []*builtEndpoint) *endpointv3.ClusterLoadAssignment {
	slices.SortStableFunc(endpoints, func(a, b *builtEndpoint) int {
		la, lb := a.model.Locality, b.model.Locality
		return cmp.Or(cmp.Compare(la.Region, lb.Region), cmp.Compare(la.Zone, lb.Zone),
			cmp.Compare(la.SubZone, lb.SubZone), a.model.Address.Compare(b.model.Address))
	})
	out := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	var group *endpointv3.LocalityLbEndpoints
	for i, e := range endpoints {
		if i == 0 || e.model.Locality != endpoints[i-1].model.Locality {
			l := e.model.Locality
			group = &endpointv3.LocalityLbEndpoints{
				Locality: &corev3.Locality{Region: text(l.Region), Zone: text(l.Zone), SubZone: text(l.SubZone)},
			}
			out.Endpoints = append(out.Endpoints, group)
		}
		group.LbEndpoints = append(group.LbEndpoints, e.message)
	}
	fitWeights(out.Endpoints)
	return out
}

// fitWeights gives each locality the sum of its endpoints' weights. Clients refuse
// an assignment whose weights sum to more than 2^32-1, so all are scaled down then.
func fitWeights(groups []*endpointv3.LocalityLbEndpoints) {
	var total uint64
	for _, g := range groups {
		for _, e := range g.LbEndpoints {
			total += uint64(e.LoadBalancingWeight.Value)
		}
	}
	divisor := uint32(1)
	if total > math.MaxUint32 {
		// Half of the range is left for weights that would round to 0.
		divisor = uint32(total/(math.MaxUint32/2)) + 1
	}
	for _, g := range groups {
		sum := uint32(0)
		for i, e := range g.LbEndpoints {
			if divisor > 1 {
				e = proto.Clone(e).(*endpointv3.LbEndpoint) // other clusters hold it too
				e.LoadBalancingWeight.Value = max(1, e.LoadBalancingWeight.Value/divisor)
				g.LbEndpoints[i] = e
			}
			sum += e.LoadBalancingWeight.Value
		}
		g.LoadBalancingWeight = wrapperspb.UInt32(sum)
	}
}

// maxWeight bounds one endpoint's weight: larger ones are a registry's mistake, and
// a rule may not state them.
const maxWeight = 1_000_000

var healths = [...]corev3.HealthStatus{
	model.Healthy: corev3.HealthStatus_HEALTHY, model.Draining: corev3.HealthStatus_DRAINING, model.Unhealthy: corev3.HealthStatus_UNHEALTHY,
}

func buildEndpoint(e *model.Endpoint) *builtEndpoint {
	m := &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socket(e.Address)}},
		HealthStatus:        corev3.HealthStatus_UNHEALTHY,
		LoadBalancingWeight: wrapperspb.UInt32(min(cmp.Or(e.Weight, model.DefaultWeight), maxWeight)),
	}
	if int(e.Health) < len(healths) {
		m.HealthStatus = healths[e.Health]
	}
	if e.Workload != "" {
		m.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{MetadataKey: {Fields: map[string]*structpb.Value{
			"workload": structpb.NewStringValue(text(e.Workload)),
			"mesh-tls": structpb.NewBoolValue(e.MeshTLS),
		}}}}
	}
	return &builtEndpoint{e, m}
}

// text makes what a registry wrote fit for a protobuf string.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func socket(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}
