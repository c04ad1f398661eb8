package server

import (
	"time"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
)

// warmTime bounds how long changes of listeners and routes wait for the load
// assignments of clusters that were just sent: a client that never asks for them
// must not be stuck.
const warmTime = 2 * time.Second

// phase is which part of what is due a response carries.
type phase uint8

const (
	additions phase = iota // whatever adds or changes, and notices
	urgent                 // only what the client asks for the first time
	removals               // only what goes
)

// backlog counts what a subscription has to send.
type backlog struct{ adds, urgent, removals int }

func (b backlog) any() bool { return b.adds+b.removals > 0 }

// next composes the response that is due, or returns nil. st.mu is held.
//
// Additions go first in the order of types, removals last in the reverse order, so
// that at every moment what the client has refers only to what it has.
func (st *stream) next() *outgoing {
	if st.dead || st.group == nil {
		return nil
	}
	g := st.group
	g.mu.RLock()
	defer g.mu.RUnlock()
	var logs [resource.NumTypes]backlog
	for t, sub := range st.subs {
		if sub != nil {
			sub.scan(&g.tables[t])
			logs[t] = st.backlog(resource.Type(t), sub)
		}
	}
	held := st.warming()
	for t := range resource.Type(resource.NumTypes) {
		sub, log := st.subs[t], logs[t]
		if sub == nil || log.adds == 0 && !sub.reply {
			continue
		}
		waits := held && (t == resource.Listener || t == resource.Route) && !sub.reply
		switch {
		case sub.awaiting:
		case !waits:
			return st.compose(t, sub, additions)
		case log.urgent > 0:
			return st.compose(t, sub, urgent)
		}
		held = true
	}
	later := held
	for k := range resource.Type(resource.NumTypes) {
		t := resource.NumTypes - 1 - k
		sub, log := st.subs[t], logs[t]
		if sub == nil {
			continue
		}
		if log.removals > 0 && !sub.awaiting && !later {
			return st.compose(t, sub, removals)
		}
		later = later || log.any()
	}
	return nil
}

// backlog classifies what is pending, and settles what needs no response. g.mu is held
// for reading.
func (st *stream) backlog(t resource.Type, sub *subscription) (b backlog) {
	if len(sub.pending) == 0 {
		sub.limit = 0
		return b
	}
	tab := &st.group.tables[t]
	rest := sub.pending[:0]
	for _, i := range sub.pending {
		e := sub.find(i)
		kind := sub.due(e, &tab.slots[i])
		if !st.delta && (kind == notice || kind == removal && !fullState(t)) {
			// The state of the world has no word for it.
			e.flags &^= force
			sub.setVer(tab, e, wire.Absent)
			kind = nothing
		}
		switch kind {
		case nothing:
			e.flags &^= queued
			continue
		case removal:
			b.removals++
		default:
			b.adds++
			if e.has(explicit) && !e.held() {
				b.urgent++
			}
		}
		rest = append(rest, i)
	}
	if sub.pending = rest; len(rest) == 0 {
		sub.pending = nil
	}
	return b
}

// compose makes a response of type t. g.mu is held for reading.
func (st *stream) compose(t resource.Type, sub *subscription, ph phase) *outgoing {
	out := &outgoing{t: t, sub: sub}
	version := ""
	if !st.delta && fullState(t) {
		out.resp = wire.NewResponse(t, false, len(sub.entries))
		st.composeWhole(out, ph)
	} else {
		out.resp = wire.NewResponse(t, st.delta, len(sub.pending))
		st.composePart(out, ph)
	}
	if version = setVersion(sub.set); st.srv.cfg.SetVersion != nil {
		version = st.srv.cfg.SetVersion(t)
	}
	sub.nonce = st.nextNonce()
	out.resp.Finish(version, sub.nonce)
	sub.sentSet, sub.sentAt = sub.set, time.Now()
	sub.awaiting, sub.reply = true, false
	return out
}

// setVersion is the version of a set, from the sum of its mixes.
func setVersion(set uint64) string { return wire.Version(max(set, uint64(wire.Absent)+1)).String() }

// composePart carries what is pending and fits ph.
func (st *stream) composePart(out *outgoing, ph phase) {
	t, sub := out.t, out.sub
	tab := &st.group.tables[t]
	rest := sub.pending[:0]
	n := 0
	for _, i := range sub.pending {
		e, s := sub.find(i), &tab.slots[i]
		kind := sub.due(e, s)
		wanted := kind != removal
		switch ph {
		case urgent:
			wanted = wanted && e.has(explicit) && !e.held()
		case removals:
			wanted = !wanted
		}
		size := 0
		if kind == addition {
			size = len(offered(e, s).Body)
		}
		if !wanted || n > 0 && (sub.limit > 0 && n >= sub.limit || out.resp.Size()+size > st.srv.cfg.MaxResponseBytes) {
			rest = append(rest, i)
			continue
		}
		n++
		if kind == addition {
			st.put(out, e, offered(e, s))
			continue
		}
		out.resp.Remove(s.name)
		sub.note(tab, e, wire.Absent)
	}
	if sub.pending = rest; len(rest) == 0 {
		sub.pending = nil
	}
}

// composeWhole carries all there is: state of the world, listeners or clusters. While
// there are additions, what goes is kept in the set until what refers to it is replaced.
func (st *stream) composeWhole(out *outgoing, ph phase) {
	t, sub := out.t, out.sub
	tab := &st.group.tables[t]
	sub.pending = nil
	for k := range sub.entries {
		e := &sub.entries[k]
		s := &tab.slots[e.id]
		e.flags &^= queued
		item := offered(e, s)
		if item == nil && ph != removals && e.held() && s.prev != nil && s.prev.Folded == e.ver {
			out.resp.Add(s.prev)
			out.count++
			sub.queue(e)
			continue
		}
		if item == nil {
			if e.held() {
				sub.note(tab, e, wire.Absent)
			}
			continue
		}
		// What this client refused is left out for what it has, if that is still known.
		if r, refused := sub.refusals[e.id]; refused && r.ver == item.Folded && s.good != nil && s.good.Folded == e.ver {
			item = s.good
		}
		if item.Folded == e.ver && !e.has(force) {
			out.resp.Add(item)
			out.count++
			continue
		}
		st.put(out, e, item)
	}
}

// put adds item for e and notes that it is under way.
func (st *stream) put(out *outgoing, e *entry, item *wire.Resource) {
	out.resp.Add(item)
	out.count++
	known := e.held()
	out.sub.note(&st.group.tables[out.t], e, item.Folded)
	e.flags |= here
	delete(out.sub.refusals, e.id)
	switch out.t {
	case resource.Cluster:
		if !st.clusterSent(item) && !known {
			st.expect(item)
		}
	case resource.Endpoints:
		delete(st.expected, item.Name)
	}
}

// note notes that ver of e is under way to the client.
func (sub *subscription) note(tab *table, e *entry, ver wire.Version) {
	sub.inflight = append(sub.inflight, change{id: e.id, ver: ver, prev: e.ver})
	sub.setVer(tab, e, ver)
	e.flags = e.flags&^(force|queued) | flight
}

// clusterSent makes the load assignment of a cluster due again if the client holds one:
// a changed cluster warms up anew and waits for it. It says whether that is so.
func (st *stream) clusterSent(cluster *wire.Resource) bool {
	sub := st.subs[resource.Endpoints]
	if sub == nil {
		return false
	}
	name := cluster.EndpointsName()
	if name == "" {
		return false
	}
	i, known := st.group.tables[resource.Endpoints].index[name]
	if !known {
		return false
	}
	e := sub.find(i)
	if e == nil || !e.held() {
		return false
	}
	e.flags |= force
	sub.queue(e)
	return true
}

// expect holds back changes of listeners and routes until the client has asked for and
// got the endpoints of a new cluster. It only concerns clients that ask for endpoints
// by name and whose listeners or routes come over this stream.
func (st *stream) expect(cluster *wire.Resource) {
	sub := st.subs[resource.Endpoints]
	if sub == nil || sub.wildcard || st.subs[resource.Listener] == nil && st.subs[resource.Route] == nil {
		return
	}
	name := cluster.EndpointsName()
	if name == "" {
		return
	}
	if st.expected == nil {
		st.expected = map[string]struct{}{}
		st.expectEnd = time.Now().Add(warmTime)
		time.AfterFunc(warmTime, st.kick)
	}
	st.expected[name] = struct{}{}
}

// warming says whether clusters wait for their endpoints.
func (st *stream) warming() bool {
	if st.expected == nil {
		return false
	}
	tab, sub := &st.group.tables[resource.Endpoints], st.subs[resource.Endpoints]
	for name := range st.expected {
		// Told that there are none, or not a cluster any more: nothing to wait for.
		i, known := tab.index[name]
		if !known || tab.slots[i].item == nil {
			if e := sub.find(i); known && e != nil && e.ver == wire.None {
				continue
			}
			delete(st.expected, name)
		}
	}
	if len(st.expected) == 0 || !time.Now().Before(st.expectEnd) {
		st.expected = nil
		return false
	}
	return true
}
