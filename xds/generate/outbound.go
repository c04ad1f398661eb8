package generate

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/persistent"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
	"github.com/isthmus-mesh/isthmus/xds/translate"
)

// outbound is everything about other services that a kind of client gets. It
// never changes; a step makes the next one.
type outbound struct {
	client   scope.Client
	hosts    persistent.Map[*hostState]
	ruled    persistent.Map[struct{}] // hosts with a virtual service
	tables   [resource.NumTypes]resource.Table
	onDemand [resource.NumTypes]persistent.Map[struct{}]
	// proxies are the route configurations of explicit proxies by name, made
	// when a scope first wants one. Guarded by the Generator's mu while the
	// outbound is current, and by nobody in a preview, which owns its own.
	proxies map[string]*resource.Resource
}

// hostState is one host of an outbound.
type hostState struct {
	in        translate.Inputs
	out       translate.Outputs
	service   *model.Service // that endpoints were made of; nil for a routed host
	endpoints []*resource.Resource
}

type changes map[model.Host]catalog.Change

func (c changes) endpointsOnly() bool {
	for _, change := range c {
		if change&^catalog.EndpointsChanged != 0 {
			return false
		}
	}
	return true
}

// pass is one recomputation over all outbounds of a world.
type pass struct {
	world
	outs      map[scope.Client]*outbound // of before the pass, to share with
	endpoints map[endpointsKey][]*resource.Resource
	outputs   map[outputsKey][]*hostState         // of this pass, for clients of one kind
	made      map[resource.Key]*resource.Resource // newest of each name in this pass
	routed    map[model.Host]struct{}             // made on first use
	report    report
}

type endpointsKey struct {
	service *model.Service
	dest    *rules.Rule
}

type outputsKey struct {
	host model.Host
	kind scope.Kind
}

// work says what a step looks at.
type work struct {
	services changes
	rules    *rules.Affected // nil: rules did not change
	all      bool            // the outbound is new
}

func (w work) endpointsOnly() bool { return !w.all && w.rules == nil && w.services.endpointsOnly() }

func (w work) kind() string {
	switch {
	case w.rules != nil:
		return "rules"
	case w.endpointsOnly():
		return "endpoints"
	}
	return "services"
}

func newPass(w world, outs map[scope.Client]*outbound) *pass {
	return &pass{
		world: w, outs: outs, endpoints: map[endpointsKey][]*resource.Resource{},
		outputs: map[outputsKey][]*hostState{}, made: map[resource.Key]*resource.Resource{},
	}
}

// step is an outbound moved on.
type step struct {
	out     *outbound
	changed []resource.Key
	proxies bool // virtual hosts changed, so explicit proxies' routes may have
}

// build makes the outbound of a client from nothing.
func (p *pass) build(client scope.Client) *outbound {
	empty := &outbound{client: client, proxies: map[string]*resource.Resource{}}
	return p.step(empty, work{all: true}).out
}

// step recomputes the hosts that the work names, and those whose rule may lead to
// one of them.
func (p *pass) step(o *outbound, w work) step {
	next := *o
	s := step{out: &next}
	for host, change := range w.services {
		state, known := o.hosts.Get(string(host))
		if known && change&^catalog.EndpointsChanged == 0 {
			if svc := p.view.Service(host); svc != nil && state.in.Exists {
				p.setEndpoints(&s, state, svc)
				continue
			}
		}
		p.recompute(&s, host)
	}
	if w.endpointsOnly() {
		return s
	}
	if w.rules != nil {
		for _, host := range w.rules.Hosts {
			p.recompute(&s, host)
		}
	}
	if w.all || w.rules != nil && w.rules.ByWildcard() {
		for _, svc := range p.view.Services() {
			if w.all || w.rules.Contains(svc.Host) {
				p.recompute(&s, svc.Host)
			}
		}
	}
	for host := range o.ruled.All() {
		p.recompute(&s, model.Host(host))
	}
	for host := range p.routedHosts() {
		p.recompute(&s, host)
	}
	if s.proxies {
		next.proxies = map[string]*resource.Resource{}
	}
	return s
}

// routedHosts are the hosts that only rules know.
func (p *pass) routedHosts() map[model.Host]struct{} {
	if p.routed == nil {
		p.routed = map[model.Host]struct{}{}
		for _, h := range translate.RoutedHosts(p.view, p.set) {
			p.routed[h] = struct{}{}
		}
	}
	return p.routed
}

// recompute makes the resources of a host anew if its inputs changed.
func (p *pass) recompute(s *step, host model.Host) {
	o := s.out
	old, known := o.hosts.Get(string(host))
	svc := p.view.Service(host)
	if _, routed := p.routedHosts()[host]; svc == nil && !routed {
		if known {
			p.remove(s, host, old)
		}
		return
	}
	in := translate.Resolve(p.view, p.set, o.client, host)
	if known && old.in.Same(in) {
		if svc != nil && svc != old.service {
			p.setEndpoints(s, old, svc)
		}
		return
	}
	out, err := p.translate(in, o.client)
	if err != nil {
		p.report.failures = append(p.report.failures, failure{string(host), err})
		return
	}
	state := &hostState{in: in, out: out}
	if !known {
		old = &hostState{}
	} else {
		state.service, state.endpoints = old.service, old.endpoints
	}
	state.out.Clusters = p.replace(s, resource.Cluster, old.out.Clusters, out.Clusters)
	state.out.Listeners = p.replace(s, resource.Listener, old.out.Listeners, out.Listeners)
	state.out.Routes = p.replace(s, resource.Route, old.out.Routes, out.Routes)
	if !slices.EqualFunc(old.out.VirtualHosts, out.VirtualHosts, translate.VirtualHost.Equal) {
		s.proxies = true
	}
	o.hosts = o.hosts.Set(string(host), state)
	if in.Virtual != nil {
		o.ruled = o.ruled.Set(string(host), struct{}{})
	} else {
		o.ruled = o.ruled.Delete(string(host))
	}
	if svc != nil {
		p.setEndpoints(s, state, svc)
	} else {
		p.replace(s, resource.Endpoints, state.endpoints, nil)
		o.hosts = o.hosts.Set(string(host), &hostState{in: in, out: state.out})
	}
}

// translate makes the outputs of a host, or takes those that another client of the
// kind has from equal inputs.
func (p *pass) translate(in translate.Inputs, client scope.Client) (translate.Outputs, error) {
	if in.Personal() {
		return translate.Outbound(in, client, p.options)
	}
	key := outputsKey{in.Host, client.Kind}
	for _, state := range p.outputs[key] {
		if state.in.Same(in) {
			return state.out, nil
		}
	}
	for _, o := range p.outs {
		if o.client.Kind != client.Kind {
			continue
		}
		if state, ok := o.hosts.Get(string(in.Host)); ok && state.in.Same(in) {
			p.outputs[key] = append(p.outputs[key], state)
			return state.out, nil
		}
	}
	out, err := translate.Outbound(in, client, p.options)
	if err == nil {
		p.outputs[key] = append(p.outputs[key], &hostState{in: in, out: out})
	}
	return out, err
}

func (p *pass) remove(s *step, host model.Host, old *hostState) {
	p.replace(s, resource.Cluster, old.out.Clusters, nil)
	p.replace(s, resource.Listener, old.out.Listeners, nil)
	p.replace(s, resource.Route, old.out.Routes, nil)
	p.replace(s, resource.Endpoints, old.endpoints, nil)
	s.proxies = s.proxies || len(old.out.VirtualHosts) > 0
	s.out.hosts = s.out.hosts.Delete(string(host))
	s.out.ruled = s.out.ruled.Delete(string(host))
}

// setEndpoints replaces the load assignments of a host; they are made once for
// all outbounds that see the host by the same destination rule.
func (p *pass) setEndpoints(s *step, state *hostState, svc *model.Service) {
	made, err := p.endpointsOf(svc, state.in)
	if err != nil {
		p.report.failures = append(p.report.failures, failure{string(svc.Host), err})
		return
	}
	kept := p.replace(s, resource.Endpoints, state.endpoints, made)
	s.out.hosts = s.out.hosts.Set(string(svc.Host), &hostState{in: state.in, out: state.out, service: svc, endpoints: kept})
}

func (p *pass) endpointsOf(svc *model.Service, in translate.Inputs) ([]*resource.Resource, error) {
	key := endpointsKey{svc, in.Dest}
	if made, ok := p.endpoints[key]; ok {
		return made, nil
	}
	for _, o := range p.outs {
		// Another outbound has them already, when this one is new.
		if h, ok := o.hosts.Get(string(svc.Host)); ok && h.service == svc && h.in.Dest.Same(in.Dest) && slices.Equal(h.in.Parts, in.Parts) {
			p.endpoints[key] = h.endpoints
			return h.endpoints, nil
		}
	}
	made, err := translate.Endpoints(svc, in.Dest, in.Parts)
	if err == nil {
		p.endpoints[key] = made
	}
	return made, err
}

// replace puts the resources next in place of old. What has the same bytes stays
// the same pointer; what differs is noted as changed. It returns what is in place.
func (p *pass) replace(s *step, t resource.Type, old, next []*resource.Resource) []*resource.Resource {
	table := &s.out.tables[t]
	byName := make(map[string]*resource.Resource, len(old))
	for _, r := range old {
		byName[r.Name] = r
	}
	kept := make([]*resource.Resource, len(next))
	for i, r := range next {
		before := byName[r.Name]
		delete(byName, r.Name)
		if before != nil && before.Version == r.Version {
			if slices.Equal(before.Origins, r.Origins) {
				kept[i] = before
				continue
			}
		} else {
			s.changed = append(s.changed, resource.Key{Type: t, Name: r.Name})
		}
		r = p.shared(t, r)
		kept[i] = r
		*table = table.Set(r.Name, r)
		if t == resource.Listener || t == resource.Route {
			s.out.onDemand[t] = s.out.onDemand[t].Set(r.Name, struct{}{})
		}
	}
	for name := range byName {
		s.changed = append(s.changed, resource.Key{Type: t, Name: name})
		*table = table.Delete(name)
		s.out.onDemand[t] = s.out.onDemand[t].Delete(name)
	}
	return kept
}

// shared returns the same resource of another outbound, so that many clients cost
// the memory of one.
func (p *pass) shared(t resource.Type, r *resource.Resource) *resource.Resource {
	equal := func(have *resource.Resource) bool {
		return have.Version == r.Version && slices.Equal(have.Origins, r.Origins)
	}
	key := resource.Key{Type: t, Name: r.Name}
	if have := p.made[key]; have != nil && equal(have) {
		return have
	}
	for _, o := range p.outs {
		if have, ok := o.tables[t].Get(r.Name); ok && equal(have) {
			return have
		}
	}
	p.made[key] = r
	return r
}
