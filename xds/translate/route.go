package translate

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// router makes the routes of one port of a host for one client.
type router struct {
	in     Inputs
	client scope.Client
	port   model.Port
	// origins are the rules that shaped a route so far.
	origins []*rules.Rule
}

// routes returns the routes in the order in which they are tried.
func (r *router) routes() ([]*routev3.Route, error) {
	var all []*routev3.Route
	next := 0 // index of the first target of the HTTP route at hand
	for _, h := range r.in.Virtual.VirtualService().GetHttp() {
		targets := r.in.Targets[next : next+len(h.GetRoute())]
		next += len(h.GetRoute())
		matches := h.GetMatch()
		if len(matches) == 0 {
			matches = []*networking.HTTPMatchRequest{{}}
		}
		for _, m := range matches {
			if !r.concerns(m) {
				continue
			}
			made, err := r.route(h, m, targets)
			if err != nil {
				return nil, err
			}
			all = append(all, made...)
		}
	}
	if len(all) > 0 {
		r.origins = append(r.origins, r.in.Virtual)
		return all, nil
	}
	// No rule, or one that does not speak of this client and port.
	if !r.in.Exists {
		return nil, nil
	}
	whole := &networking.HTTPRoute{Name: "default"}
	return r.forward(whole, &networking.HTTPMatchRequest{}, []*networking.HTTPRouteDestination{{
		Destination: &networking.Destination{Port: &networking.PortSelector{Number: uint32(r.port.Number)}},
	}}, []Target{{Host: r.in.Host, Ports: r.in.Ports, Dest: r.in.Dest}})
}

// sourceMatch is the part of a match that is decided here and not by the proxy.
type sourceMatch interface {
	GetPort() uint32
	GetSourceLabels() map[string]string
	GetSourceNamespace() string
}

func (r *router) concerns(m sourceMatch) bool { return concerns(m, r.client, r.port.Number) }

func concerns(m sourceMatch, client scope.Client, port uint16) bool {
	return (m.GetPort() == 0 || m.GetPort() == uint32(port)) &&
		(m.GetSourceNamespace() == "" || m.GetSourceNamespace() == client.Namespace) &&
		client.Labels.Contains(model.NewLabels(m.GetSourceLabels()))
}

func (r *router) route(h *networking.HTTPRoute, m *networking.HTTPMatchRequest, targets []Target) ([]*routev3.Route, error) {
	if len(h.Route) > 0 {
		return r.forward(h, m, h.Route, targets)
	}
	out := r.base(h, m)
	if h.Redirect != nil {
		out.Action = redirect(h.Redirect)
	} else {
		out.Action = directResponse(h.DirectResponse)
	}
	return []*routev3.Route{out}, nil
}

// base is a route without its action.
func (r *router) base(h *networking.HTTPRoute, m *networking.HTTPMatchRequest) *routev3.Route {
	name := h.Name
	if m.GetName() != "" {
		name = strings.TrimPrefix(name+"."+m.GetName(), ".")
	}
	out := &routev3.Route{Name: name, Match: match(m)}
	request, response := h.GetHeaders().GetRequest(), h.GetHeaders().GetResponse()
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = headersToAdd(request), headersToRemove(request)
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = headersToAdd(response), headersToRemove(response)
	return out
}

// forward makes the route to one or several clusters, twice where safe methods are
// retried more freely than others.
func (r *router) forward(h *networking.HTTPRoute, m *networking.HTTPMatchRequest, dests []*networking.HTTPRouteDestination, targets []Target) ([]*routev3.Route, error) {
	var out []*routev3.Route
	for _, c := range r.retryCases(h.Retries, m.GetMethod()) {
		route := r.base(h, m)
		if c.methods != "" {
			route.Match.Headers = append(route.Match.Headers, regexHeader(":method", c.methods))
		}
		action := &routev3.RouteAction{Timeout: timeoutOf(h)}
		policy, err := c.policy(h.Retries)
		if err != nil {
			return nil, err
		}
		action.RetryPolicy = policy
		if r.client.Kind == scope.GRPC && h.GetTimeout() != nil {
			// gRPC libraries read no other field.
			action.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: h.GetTimeout()}
		}
		action.PrefixRewrite = h.GetRewrite().GetUri()
		if a := h.GetRewrite().GetAuthority(); a != "" {
			action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: a}
		}
		r.clusters(action, dests, targets)
		route.Action = &routev3.Route_Route{Route: action}
		out = append(out, route)
	}
	return out, nil
}

// clusters sets where the action leads, and what requests are hashed by.
func (r *router) clusters(action *routev3.RouteAction, dests []*networking.HTTPRouteDestination, targets []Target) {
	var weights []*routev3.WeightedCluster_ClusterWeight
	plain := true
	for i, d := range dests {
		if len(dests) > 1 && d.Weight == 0 {
			continue
		}
		name := clusterOf(d.Destination, targets[i], r.port.Number)
		w := &routev3.WeightedCluster_ClusterWeight{Name: name, Weight: wrapperspb.UInt32(uint32(max(1, d.Weight)))}
		request, response := d.GetHeaders().GetRequest(), d.GetHeaders().GetResponse()
		w.RequestHeadersToAdd, w.RequestHeadersToRemove = headersToAdd(request), headersToRemove(request)
		w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = headersToAdd(response), headersToRemove(response)
		plain = plain && d.Headers == nil
		weights = append(weights, w)
		r.hash(action, d.Destination, targets[i])
	}
	if len(weights) == 1 && plain {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: weights[0].Name}
		return
	}
	action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: weights}}
}

func (r *router) hash(action *routev3.RouteAction, d *networking.Destination, t Target) {
	header := policyOf(t.Dest, subsetOf(t.Dest, d.GetSubset())).GetLoadBalancer().GetConsistentHash().GetHttpHeaderName()
	if header == "" {
		return
	}
	r.origins = append(r.origins, t.Dest)
	if slices.ContainsFunc(action.HashPolicy, func(p *routev3.RouteAction_HashPolicy) bool {
		return strings.EqualFold(p.GetHeader().GetHeaderName(), header)
	}) {
		return
	}
	action.HashPolicy = append(action.HashPolicy, &routev3.RouteAction_HashPolicy{
		PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: strings.ToLower(header)}},
	})
}

// clusterOf names the cluster of a destination. As in Istio the port is the one it
// names, else the only one of the service, else the caller's.
func clusterOf(d *networking.Destination, t Target, callers uint16) string {
	port := callers
	if n := d.GetPort().GetNumber(); n != 0 {
		port = uint16(n)
	} else if len(t.Ports) == 1 {
		port = t.Ports[0].Number
	}
	return resource.ClusterName{Port: port, Subset: d.GetSubset(), Host: t.Host}.String()
}

func match(m *networking.HTTPMatchRequest) *routev3.RouteMatch {
	out := &routev3.RouteMatch{}
	switch uri := m.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: uri.Exact}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: uri.Regex}}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: uri.Prefix}
	default:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetHeaders())) {
		out.Headers = append(out.Headers, headerMatch(strings.ToLower(name), m.GetHeaders()[name]))
	}
	if m.GetMethod() != nil {
		out.Headers = append(out.Headers, headerMatch(":method", m.GetMethod()))
	}
	if m.GetAuthority() != nil {
		out.Headers = append(out.Headers, headerMatch(":authority", m.GetAuthority()))
	}
	return out
}

func headerMatch(name string, m *networking.StringMatch) *routev3.HeaderMatcher {
	s := &matcherv3.StringMatcher{}
	switch v := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		s.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: v.Exact}
	case *networking.StringMatch_Prefix:
		s.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: v.Prefix}
	case *networking.StringMatch_Regex:
		return regexHeader(name, v.Regex)
	default:
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: s}}
}

func regexHeader(name, regex string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: regex}},
	}}}
}

// tcpClusters are the destinations of a TCP port with their weights.
func (r *router) tcpClusters() []weighted {
	vs := r.in.Virtual.VirtualService()
	next := 0
	for _, h := range vs.GetHttp() {
		next += len(h.GetRoute())
	}
	for _, t := range vs.GetTcp() {
		targets := r.in.Targets[next : next+len(t.GetRoute())]
		next += len(t.GetRoute())
		if len(t.GetMatch()) > 0 && !slices.ContainsFunc(t.GetMatch(), func(m *networking.L4MatchAttributes) bool { return r.concerns(m) }) {
			continue
		}
		r.origins = append(r.origins, r.in.Virtual)
		var all []weighted
		for i, d := range t.GetRoute() {
			if len(t.GetRoute()) > 1 && d.Weight == 0 {
				continue
			}
			all = append(all, weighted{clusterOf(d.Destination, targets[i], r.port.Number), uint32(max(1, d.Weight))})
		}
		return all
	}
	return []weighted{{resource.ClusterName{Port: r.port.Number, Host: r.in.Host}.String(), 1}}
}

type weighted struct {
	cluster string
	weight  uint32
}

var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY, 302: routev3.RedirectAction_FOUND, 303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func redirect(in *networking.HTTPRedirect) *routev3.Route_Redirect {
	out := &routev3.RedirectAction{HostRedirect: in.GetAuthority(), PortRedirect: in.GetPort(), ResponseCode: redirectCodes[cmp.Or(in.GetRedirectCode(), 301)]}
	if in.GetUri() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: in.GetUri()}
	}
	if in.GetScheme() != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: in.GetScheme()}
	}
	return &routev3.Route_Redirect{Redirect: out}
}
