package server

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

func (s *Server) openGroups() []*group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.groups))
}

// Clients implements status.Source.
func (s *Server) Clients(match func(*corev3.Node) bool, detail bool) iter.Seq[status.Client] {
	return func(yield func(status.Client) bool) {
		for _, g := range s.openGroups() {
			for _, st := range g.current() {
				if match(st.node) && !yield(st.describe(detail)) {
					return
				}
			}
		}
	}
}

func (st *stream) describe(detail bool) status.Client {
	c := status.Client{
		Node: st.node, Address: st.address, Scope: st.group.feed.Scope, Delta: st.delta, Connected: st.connected,
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.group.mu.RLock()
	defer st.group.mu.RUnlock()
	for t, sub := range st.subs {
		if sub != nil {
			c.Types = append(c.Types, st.describeType(resource.Type(t), sub, detail))
		}
	}
	return c
}

func (st *stream) describeType(t resource.Type, sub *subscription, detail bool) status.TypeState {
	tab := &st.group.tables[t]
	ts := status.TypeState{Type: t, Wildcard: sub.wildcard, Version: setVersion(sub.set), LastAck: sub.ackedAt}
	if !sub.ackedAt.IsZero() {
		ts.Acked = setVersion(sub.acked)
	}
	for k := range sub.entries {
		e := &sub.entries[k]
		s := &tab.slots[e.id]
		if e.idle() {
			continue
		}
		if e.held() {
			ts.Held++
		}
		state := sub.state(e, s)
		if state != status.Acked && state != status.Missing {
			ts.Waiting++
		}
		item := status.Item{Name: s.name, State: state, Sent: e.ver.String()}
		if s.item != nil {
			item.Current = s.item.Resource
			if s.item.Folded == e.ver {
				item.Sent = s.item.Version
			}
		}
		if r, ok := sub.refusals[e.id]; ok {
			f := status.Refusal{
				At: r.at, NodeID: st.node.GetId(), Scope: st.group.feed.Scope, Type: t, Name: s.name,
				Version: r.ver.String(), Detail: r.detail, Quarantined: r.quarantined,
			}
			if s.item != nil && s.item.Folded == r.ver {
				f.Version, f.Origins = s.item.Version, s.item.Origins
			}
			item.Refusal = &f
			ts.Refusals = append(ts.Refusals, f)
		}
		if detail {
			ts.Items = append(ts.Items, item)
		}
	}
	slices.SortFunc(ts.Items, func(a, b status.Item) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(ts.Refusals, func(a, b status.Refusal) int { return cmp.Compare(a.Name, b.Name) })
	return ts
}

// state compares what a client acknowledged with the newest, quarantined or not.
func (sub *subscription) state(e *entry, s *slot) status.State {
	r, refused := sub.refusals[e.id]
	switch {
	case s.item == nil && !e.held():
		if e.ver == wire.Absent {
			return status.Missing
		}
		return status.Requested
	case s.item != nil && refused && r.ver == s.item.Folded:
		return status.Nacked
	case e.has(flight):
		return status.Sent
	case !e.held():
		return status.Requested
	case s.item != nil && e.ver == s.item.Folded:
		return status.Acked
	}
	return status.Stale
}

// Rollout implements status.Source.
func (s *Server) Rollout(only func(origin string) bool) map[string]map[string]status.Stage {
	all := map[string]map[string]status.Stage{}
	for _, g := range s.openGroups() {
		shaped := g.shaped(only)
		if len(shaped) == 0 {
			continue
		}
		for _, st := range g.current() {
			st.rollout(shaped, all)
		}
	}
	return all
}

// shapedSlot is a resource that rules shaped.
type shapedSlot struct {
	t       resource.Type
	id      id
	version string
	origins []string
}

func (g *group) shaped(only func(string) bool) []shapedSlot {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var all []shapedSlot
	for t := range g.tables {
		for i := range g.tables[t].slots {
			s := &g.tables[t].slots[i]
			if s.item == nil {
				continue
			}
			origins := slices.DeleteFunc(slices.Clone(s.item.Origins), func(o string) bool { return !only(o) })
			if len(origins) > 0 {
				all = append(all, shapedSlot{resource.Type(t), id(i), s.item.Version, origins})
			}
		}
	}
	return all
}

// rollout merges the stages of this stream into all.
func (st *stream) rollout(shaped []shapedSlot, all map[string]map[string]status.Stage) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.group.mu.RLock()
	defer st.group.mu.RUnlock()
	for _, sh := range shaped {
		sub := st.subs[sh.t]
		s := &st.group.tables[sh.t].slots[sh.id]
		if sub == nil || s.item == nil || s.item.Version != sh.version {
			continue // not subscribed, or it has just changed
		}
		stage := status.Waiting
		switch e := sub.find(sh.id); {
		case e == nil && (!sub.wildcard || s.onDemand):
			continue // not subscribed
		case e == nil:
		case s.onDemand && !e.has(explicit):
			continue
		default:
			switch sub.state(e, s) {
			case status.Acked:
				stage = status.Applied
			case status.Nacked:
				stage = status.Refused
			}
		}
		for _, o := range sh.origins {
			if all[o] == nil {
				all[o] = map[string]status.Stage{}
			}
			node := st.node.GetId()
			all[o][node] = max(all[o][node], stage)
		}
	}
}
