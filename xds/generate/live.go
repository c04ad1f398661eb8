package generate

import (
	"cmp"
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/scope"
	"github.com/isthmus-mesh/isthmus/xds/translate"
)

// live is a scope with at least one stream. Its fields are guarded by the
// Generator's mu; the feed has a lock of its own.
type live struct {
	node *scope.Node
	key  scope.Key
	feed *resource.Feed
	refs int
	out  *outbound
	own  []*resource.Resource // of the node alone, and its explicit proxy's routes
}

// own makes what a scope gets beside its outbound resources; before is what it
// had, and stays in place where the bytes are equal.
func (p *pass) own(l *live, o *outbound, before []*resource.Resource) []*resource.Resource {
	own, err := translate.Own(l.node, o.client, func(h model.Host) translate.Inputs {
		if state, ok := o.hosts.Get(string(h)); ok {
			return state.in
		}
		return translate.Inputs{Host: h}
	}, p.options)
	if err == nil && l.node.HTTPProxy.IsValid() {
		var routes *resource.Resource
		if routes, err = o.proxyRoutes(translate.ProxyRouteName(l.node.HTTPProxy)); err == nil {
			own = append(own, routes)
		}
	}
	if err != nil {
		p.report.failures = append(p.report.failures, failure{l.node.Name(), err})
		return before
	}
	for i, r := range own {
		for _, b := range before {
			if b.Type == r.Type && b.Name == r.Name && b.Version == r.Version && slices.Equal(b.Origins, r.Origins) {
				own[i] = b
			}
		}
	}
	return own
}

// proxyRoutes makes a route configuration once for all scopes of the outbound.
func (o *outbound) proxyRoutes(name string) (*resource.Resource, error) {
	if r := o.proxies[name]; r != nil {
		return r, nil
	}
	var states []*hostState
	for _, s := range o.hosts.All() {
		states = append(states, s)
	}
	slices.SortFunc(states, func(a, b *hostState) int { return cmp.Compare(a.in.Host, b.in.Host) })
	var all []translate.VirtualHost
	for _, s := range states {
		all = append(all, s.out.VirtualHosts...)
	}
	r, err := translate.ProxyRoutes(name, all)
	if err == nil {
		o.proxies[name] = r
	}
	return r, err
}

// snapshot joins outbound and own resources.
func (l *live) snapshot() *resource.Snapshot {
	snap := &resource.Snapshot{Tables: l.out.tables, OnDemand: l.out.onDemand}
	for _, r := range l.own {
		snap.Tables[r.Type] = snap.Tables[r.Type].Set(r.Name, r)
	}
	return snap
}

// move takes a scope to the next state of its outbound, or to that of another
// client when the rules read other labels than before. moved is false when nothing that
// the scope is served changed.
func (p *pass) move(l *live, client scope.Client, steps map[*outbound]step, next map[scope.Client]*outbound, endpointsOnly bool) (pub publication, moved bool) {
	if client != l.out.client {
		o := next[client]
		if o == nil {
			o = p.build(client)
			next[client] = o
		}
		before := l.feed.Snapshot()
		l.own = p.own(l, o, l.own)
		l.out = o
		snap := l.snapshot()
		return publication{l.feed, snap, difference(before, snap)}, true
	}
	s := steps[l.out]
	l.out = s.out
	if endpointsOnly {
		if len(s.changed) == 0 {
			return publication{}, false
		}
		snap := *l.feed.Snapshot()
		snap.Tables[resource.Endpoints] = s.out.tables[resource.Endpoints]
		return publication{l.feed, &snap, s.changed}, true
	}
	changed := slices.Clip(s.changed)
	before := l.own
	if len(l.node.Egress) > 0 || s.proxies && l.node.HTTPProxy.IsValid() {
		l.own = p.own(l, s.out, before)
		changed = append(changed, ownDifference(before, l.own)...)
	}
	// Even with nothing to send, the snapshot names the rules now in force.
	return publication{l.feed, l.snapshot(), changed}, true
}

func ownDifference(before, after []*resource.Resource) []resource.Key {
	versions := map[resource.Key]string{}
	for _, r := range before {
		versions[resource.Key{Type: r.Type, Name: r.Name}] = r.Version
	}
	var changed []resource.Key
	for _, r := range after {
		k := resource.Key{Type: r.Type, Name: r.Name}
		if v, ok := versions[k]; !ok || v != r.Version {
			changed = append(changed, k)
		}
		delete(versions, k)
	}
	for k := range versions {
		changed = append(changed, k)
	}
	return changed
}

// difference lists what differs between two snapshots, in no order.
func difference(before, after *resource.Snapshot) []resource.Key {
	var changed []resource.Key
	for t := range resource.Type(resource.NumTypes) {
		for name, r := range after.Tables[t].All() {
			if old, ok := before.Tables[t].Get(name); !ok || old.Version != r.Version {
				changed = append(changed, resource.Key{Type: t, Name: name})
			}
		}
		for name := range before.Tables[t].All() {
			if _, ok := after.Tables[t].Get(name); !ok {
				changed = append(changed, resource.Key{Type: t, Name: name})
			}
		}
	}
	return changed
}
