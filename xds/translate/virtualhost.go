package translate

import (
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// VirtualHost is one HTTP port of a host. Its routes are encoded once, for the
// route configuration of its own and for each explicit proxy's.
type VirtualHost struct {
	name string
	// domains by how strong the claim is: the host itself, the host with its
	// port, other names. A name that two hosts claim goes to the stronger claim.
	domains [3][]string
	routes  []byte // the fields of a VirtualHost message after domains
	origins []string
}

// Name is "<host>:<port>".
func (v VirtualHost) Name() string { return v.name }

// Equal reports whether both give the same bytes.
func (v VirtualHost) Equal(w VirtualHost) bool {
	return v.name == w.name && string(v.routes) == string(w.routes) && slices.Equal(v.origins, w.origins) &&
		slices.EqualFunc(v.domains[:], w.domains[:], func(a, b []string) bool { return slices.Equal(a, b) })
}

func newVirtualHost(in Inputs, client scope.Client, port model.Port) (VirtualHost, error) {
	r := &router{in: in, client: client, port: port}
	routes, err := r.routes()
	if err != nil {
		return VirtualHost{}, err
	}
	vh := VirtualHost{name: resource.HostPortName(in.Host, port.Number), domains: domains(in, client, port)}
	vh.routes, err = proto.MarshalOptions{Deterministic: true}.Marshal(&routev3.VirtualHost{Routes: routes})
	vh.origins = keys(r.origins...)
	return vh, err
}

const kubernetesDomain = ".svc.cluster.local"

// domains are the names under which callers ask the explicit proxy for a port. A
// name without port means port 80, or the first HTTP port where there is no 80.
func domains(in Inputs, client scope.Client, port model.Port) [3][]string {
	bare := port.Number
	for _, p := range slices.Backward(in.Ports) {
		if spoken(p.Protocol, client.Kind).HTTPLike() {
			bare = p.Number
		}
	}
	if p, ok := (&model.Service{Ports: in.Ports}).Port(80); ok && spoken(p.Protocol, client.Kind).HTTPLike() {
		bare = 80
	}
	var out [3][]string
	withPort := func(name string) string { return resource.HostPortName(model.Host(name), port.Number) }
	host := string(in.Host)
	if bare == port.Number {
		out[0] = []string{host}
	}
	out[1] = []string{withPort(host)}
	var others []string
	if short, ok := strings.CutSuffix(host, kubernetesDomain); ok {
		name, namespace, ok := strings.Cut(short, ".")
		if ok && !strings.Contains(namespace, ".") {
			others = append(others, short+".svc", short)
			if namespace == client.Namespace {
				others = append(others, name)
			}
		}
	}
	for _, a := range in.Addresses {
		if a.IsSingleIP() && a.Addr().Is6() {
			others = append(others, "["+a.Addr().String()+"]")
		} else if a.IsSingleIP() {
			others = append(others, a.Addr().String())
		}
	}
	for _, name := range others {
		if bare == port.Number {
			out[2] = append(out[2], name)
		}
		out[2] = append(out[2], withPort(name))
	}
	return out
}

// Field numbers of the messages that are put together from encoded parts.
const (
	virtualHostName         = 1
	virtualHostDomains      = 2
	routeConfigName         = 1
	routeConfigVirtualHosts = 2
)

// encode is the VirtualHost message with those domains, as proto.Marshal gives it.
func (v VirtualHost) encode(domains []string) []byte {
	var b []byte
	b = protowire.AppendTag(b, virtualHostName, protowire.BytesType)
	b = protowire.AppendString(b, v.name)
	for _, d := range domains {
		b = protowire.AppendTag(b, virtualHostDomains, protowire.BytesType)
		b = protowire.AppendString(b, d)
	}
	return append(b, v.routes...)
}

// routeConfiguration puts a RouteConfiguration together from encoded virtual hosts.
func routeConfiguration(name string, virtualHosts []byte, origins []string) *resource.Resource {
	var b []byte
	b = protowire.AppendTag(b, routeConfigName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	return finish(name, appendVirtualHost(b, virtualHosts), origins)
}

func appendVirtualHost(b, virtualHost []byte) []byte {
	b = protowire.AppendTag(b, routeConfigVirtualHosts, protowire.BytesType)
	return protowire.AppendBytes(b, virtualHost)
}

func finish(name string, body []byte, origins []string) *resource.Resource {
	return &resource.Resource{Type: resource.Route, Name: name, Version: resource.Hash(body), Body: body, Origins: origins}
}

// ProxyRoutes makes the route configuration of an explicit proxy: all virtual
// hosts, in the order given, and last one that answers 404 to any other name.
//
// A name that several virtual hosts claim goes to one of them: to who is called
// so, before who is called so with its port, before who has it as another name;
// among equals to the first. Envoy would refuse them all.
func ProxyRoutes(name string, all []VirtualHost) (*resource.Resource, error) {
	blockAll, err := proto.MarshalOptions{Deterministic: true}.Marshal(&routev3.VirtualHost{
		Name: "block_all", Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Name:  "block_all",
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
				Status: 404,
				Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "no service of this name\n"}},
			}},
		}},
	})
	if err != nil {
		return nil, err
	}
	owner := make(map[string]int, 4*len(all))
	for strength := range len(VirtualHost{}.domains) {
		for i, v := range all {
			for _, d := range v.domains[strength] {
				if _, taken := owner[d]; !taken {
					owner[d] = i
				}
			}
		}
	}
	var b []byte
	b = protowire.AppendTag(b, routeConfigName, protowire.BytesType)
	b = protowire.AppendString(b, name)
	var origins []string
	var own []string
	for i, v := range all {
		own = own[:0]
		for _, claimed := range v.domains {
			for _, d := range claimed {
				if j, ok := owner[d]; ok && j == i {
					own = append(own, d)
					delete(owner, d) // its own second claim is no second domain
				}
			}
		}
		if len(own) > 0 {
			b = appendVirtualHost(b, v.encode(own))
			origins = append(origins, v.origins...)
		}
	}
	slices.Sort(origins)
	return finish(name, appendVirtualHost(b, blockAll), slices.Compact(origins)), nil
}
