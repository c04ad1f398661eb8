// Package translate turns services and rules into xDS resources. All functions
// are pure: the same inputs give the same bytes, on every replica.
//
// Outbound resources are made host by host from Inputs, which names everything
// that may shape them: who caches a result by its Inputs cannot forget one.
// Endpoints is apart, since endpoints change most often.
//
// Nothing here keeps state; everything may be called from any goroutine.
//
// Defaults, retries and the reasons for both: RATIONALE.md.
package translate

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// Services finds services by host; *catalog.View is one.
type Services interface {
	Service(model.Host) *model.Service
}

// Options hold for all clients of a mesh.
type Options struct {
	// AccessLog is the file that proxies log requests to, "/dev/stdout"; empty
	// switches access logs off.
	AccessLog string
}

// Inputs is everything about one host, and the hosts its rule leads to, that
// shapes the resources of one client: all but endpoints.
type Inputs struct {
	Host      model.Host
	Namespace string
	Ports     []model.Port   // must not be modified
	Addresses []netip.Prefix // must not be modified
	Exists    bool           // false: only a rule knows the host
	Virtual   *rules.Rule    // virtual service of the host; may be nil
	Dest      *rules.Rule    // destination rule of the host; may be nil
	Targets   []Target       // what Virtual leads to, in the order of rules.Destinations
	Parts     []string       // registries that rules address by "<host>@<registry>"
}

// Target is a destination of a virtual service, found for the rule's namespace.
type Target struct {
	Host  model.Host   // "@<registry>" included
	Ports []model.Port // none when no registry holds the host
	Dest  *rules.Rule  // its destination rule; may be nil
}

// routedPorts is what a host gets that only a rule knows: plain HTTP on port 80.
var routedPorts = []model.Port{{Number: 80, Protocol: model.HTTP, Name: "http"}}

// Resolve collects the inputs of host for a client.
func Resolve(services Services, set rules.Set, client scope.Client, host model.Host) Inputs {
	in := Inputs{Host: host, Ports: routedPorts, Virtual: set.VirtualService(host), Parts: set.RegistryParts(host)}
	if svc := services.Service(host); svc != nil {
		in.Exists, in.Namespace, in.Ports, in.Addresses = true, svc.Namespace, svc.Ports, svc.Addresses
	}
	in.Dest = set.DestinationRule(host, client.Namespace, in.Namespace)
	if in.Virtual == nil {
		return in
	}
	exists := func(h model.Host) bool { return services.Service(h) != nil }
	for _, d := range rules.Destinations(in.Virtual.VirtualService()) {
		t := Target{Host: rules.ResolveHost(d.GetHost(), in.Virtual.Namespace, exists)}
		bare, _, _ := t.Host.CutRegistry()
		namespace := ""
		if svc := services.Service(bare); svc != nil {
			namespace, t.Ports = svc.Namespace, svc.Ports
		}
		t.Dest = set.DestinationRule(bare, client.Namespace, namespace)
		in.Targets = append(in.Targets, t)
	}
	return in
}

// Same reports whether in and other give the same resources.
func (in Inputs) Same(other Inputs) bool {
	return in.Host == other.Host && in.Namespace == other.Namespace && in.Exists == other.Exists &&
		slices.Equal(in.Ports, other.Ports) && slices.Equal(in.Addresses, other.Addresses) &&
		in.Virtual.Same(other.Virtual) && in.Dest.Same(other.Dest) && slices.Equal(in.Parts, other.Parts) &&
		slices.EqualFunc(in.Targets, other.Targets, func(a, b Target) bool {
			return a.Host == b.Host && a.Dest.Same(b.Dest) && slices.Equal(a.Ports, b.Ports)
		})
}

// Personal reports whether the resources differ between clients of one kind: by who
// matches the rule, or by the short names of a Kubernetes host.
func (in Inputs) Personal() bool {
	if strings.HasSuffix(string(in.Host), kubernetesDomain) {
		return true
	}
	return rules.MatchesCallers(in.Virtual)
}

// RoutedHosts are the hosts that no registry holds but virtual services name, so
// that requests to them can be routed all the same; ascending.
func RoutedHosts(services Services, set rules.Set) []model.Host {
	exists := func(h model.Host) bool { return services.Service(h) != nil }
	var hosts []model.Host
	for _, h := range set.RoutedHosts() {
		r := set.VirtualService(h)
		if !exists(h) && rules.ResolveHost(string(h), r.Namespace, exists) == h && len(r.VirtualService().GetHttp()) > 0 {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Outputs are the outbound resources of one host for one client, but for endpoints.
type Outputs struct {
	Clusters []*resource.Resource
	// Listeners and Routes are named "<host>:<port>", for who asks by that name.
	Listeners []*resource.Resource
	Routes    []*resource.Resource
	// VirtualHosts are for the explicit proxy, one for each HTTP port.
	VirtualHosts []VirtualHost
}

// Outbound makes the resources of one host.
func Outbound(in Inputs, client scope.Client, opt Options) (Outputs, error) {
	var out Outputs
	var err error
	if in.Exists {
		if out.Clusters, err = clusters(in, client); err != nil {
			return Outputs{}, err
		}
	}
	for _, port := range in.Ports {
		port.Protocol = spoken(port.Protocol, client.Kind)
		name := resource.HostPortName(in.Host, port.Number)
		if port.Protocol.HTTPLike() {
			vh, err := newVirtualHost(in, client, port)
			if err != nil {
				return Outputs{}, err
			}
			out.VirtualHosts = append(out.VirtualHosts, vh)
			out.Routes = append(out.Routes, routeConfiguration(name, vh.encode([]string{"*"}), vh.origins))
		}
		l, err := demandListener(in, client, port, opt)
		if err != nil {
			return Outputs{}, err
		}
		if l != nil {
			out.Listeners = append(out.Listeners, l)
		}
	}
	return out, nil
}

// spoken is the protocol as which a client of that kind treats a port. The sidecar
// has no HTTP/2 codec yet: it carries HTTP/2 and gRPC as bytes, which works both
// ways, but routes and balances connections instead of requests.
func spoken(p model.Protocol, kind scope.Kind) model.Protocol {
	if kind == scope.Sidecar && (p == model.HTTP2 || p == model.GRPC) {
		return model.TCP
	}
	return p
}

// keys are the origins of a resource: the keys of those rules, ascending, each once.
func keys(all ...*rules.Rule) []string {
	var out []string
	for _, r := range all {
		if r != nil {
			out = append(out, string(r.Key()))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
