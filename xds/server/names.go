package server

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
)

// subscribeDelta applies the subscription changes of an incremental request.
func (st *stream) subscribeDelta(t resource.Type, sub *subscription, r *request, first bool) error {
	if len(r.subscribe) == 0 && len(r.unsubscribe) == 0 && !first {
		return nil
	}
	names := slices.DeleteFunc(slices.Clone(r.subscribe), func(n string) bool { return n == wildcardName })
	star := len(names) < len(r.subscribe)
	// The legacy wildcard: a first request that names nothing.
	wildcard := star || first && len(r.subscribe) == 0 && fullState(t)
	if err := st.room(sub, len(names)+len(r.initial)); err != nil {
		return err
	}
	g := st.group
	g.mu.Lock()
	defer g.mu.Unlock()
	tab := &g.tables[t]
	if wildcard && !sub.wildcard {
		sub.wildcard, sub.full, sub.reply = true, true, true
	}
	st.unsubscribe(tab, sub, r.unsubscribe)
	if len(names) > 0 {
		ids := tab.internAll(names)
		sub.insertAll(tab, slices.Clone(ids))
		for _, i := range ids {
			e := sub.find(i)
			sub.setExplicit(e, true)
			// The client may have dropped what it had: it always gets an answer.
			e.flags |= force
			sub.queue(e)
		}
		tab.unref(ids)
	}
	if first && len(r.initial) > 0 {
		st.initialVersions(t, sub, r.initial)
	}
	return nil
}

// room checks that a stream may have so many more entries.
func (st *stream) room(sub *subscription, more int) error {
	n := more
	for _, s := range st.subs {
		if s != nil {
			n += s.names
		}
	}
	if n > st.srv.cfg.MaxNames {
		return errTooMany(st.srv.cfg.MaxNames)
	}
	return nil
}

// unsubscribe takes names out of a delta subscription. g.mu is held for writing.
func (st *stream) unsubscribe(tab *table, sub *subscription, names []string) {
	dropped := false
	for _, name := range names {
		if name == wildcardName {
			dropped = dropped || sub.wildcard
			sub.wildcard = false
			continue
		}
		i, known := tab.index[name]
		if !known {
			continue
		}
		e := sub.find(i)
		if e == nil || !e.has(explicit) {
			continue
		}
		sub.setExplicit(e, false)
		dropped = true
		if sub.wildcard && !slices.Contains(names, wildcardName) {
			// The client now drops it unless told that the wildcard has it too.
			e.flags |= force
			sub.queue(e)
		}
	}
	if dropped && !sub.wildcard {
		sub.deleteFunc(tab, func(e *entry) bool { return !e.has(explicit) })
	}
}

// initialVersions notes what a client that connects anew already holds. g.mu is held
// for writing.
func (st *stream) initialVersions(t resource.Type, sub *subscription, initial map[string]string) {
	tab := &st.group.tables[t]
	if sub.wildcard {
		names := make([]string, 0, len(initial))
		for name := range initial {
			names = append(names, name)
		}
		ids := tab.internAll(names)
		sub.insertAll(tab, slices.Clone(ids))
		tab.unref(ids)
	}
	held := make([]change, 0, len(initial))
	for name, version := range initial {
		i, known := tab.index[name]
		if !known {
			continue
		}
		e := sub.find(i)
		if e == nil {
			continue // it does not subscribe to it
		}
		e.flags &^= force
		sub.setVer(tab, e, wire.Fold(version))
		held = append(held, change{id: i, ver: e.ver})
	}
	st.knownBefore(t, sub)
	tab.provenLocked(held)
}

// provenLocked is accepted for a client's older knowledge: it wakes nobody, since a
// version that is in quarantine is lifted by an acknowledgement alone. g.mu is held.
func (t *table) provenLocked(held []change) {
	for _, c := range held {
		s := &t.slots[c.id]
		if proven := s.proves(c.ver); proven != nil && len(s.refused) == 0 {
			if s.good = proven; proven == s.item {
				s.prev = nil
			}
		}
	}
}

// subscribeSotW applies the names of a state-of-the-world request, which are all that
// the client wants.
func (st *stream) subscribeSotW(t resource.Type, sub *subscription, r *request, first bool) error {
	names := slices.DeleteFunc(slices.Clone(r.names), func(n string) bool { return n == wildcardName })
	star := len(names) < len(r.names)
	legacy := len(r.names) == 0 && fullState(t) && (first || sub.wildcard && !sub.named)
	if len(r.names) > 0 {
		sub.named = true
	}
	if !first && star == sub.wildcard && !legacy && st.unchanged(t, sub, names) || !first && legacy {
		return nil
	}
	if extra := len(names) - sub.names; extra > 0 {
		if err := st.room(sub, extra); err != nil {
			return err
		}
	}
	g := st.group
	g.mu.Lock()
	defer g.mu.Unlock()
	tab := &g.tables[t]
	wildcard := star || legacy
	if wildcard && !sub.wildcard {
		sub.full, sub.reply = true, true
	}
	sub.wildcard = wildcard
	if first && fullState(t) {
		sub.reply = true
	}
	ids := tab.internAll(names)
	sub.insertAll(tab, slices.Clone(ids))
	wanted := slices.Clone(ids)
	slices.Sort(wanted)
	for k := range sub.entries {
		e := &sub.entries[k]
		_, want := slices.BinarySearch(wanted, e.id)
		if want && !e.has(explicit) {
			sub.setExplicit(e, true)
			if tab.slots[e.id].item == nil && fullState(t) {
				sub.reply = true // that it is not in the answer says that it is missing
			}
			sub.queue(e)
		} else if !want {
			sub.setExplicit(e, false)
		}
	}
	tab.unref(ids)
	if !sub.wildcard {
		sub.deleteFunc(tab, func(e *entry) bool { return !e.has(explicit) })
	} else {
		sub.full = true // what was explicit alone may be on demand
	}
	if first && r.version != "" && st.srv.cfg.SetVersion == nil {
		st.sameSet(t, sub, r.version)
	}
	return nil
}

// staleNames takes note of the names that a stale request leaves out. It gets no answer,
// and a later request repeats what it adds; but a name that the client dropped in it and
// asks for again later must be sent anew.
func (st *stream) staleNames(t resource.Type, sub *subscription, names []string) {
	if sub.wildcard || st.unchanged(t, sub, names) {
		return
	}
	g := st.group
	g.mu.Lock()
	defer g.mu.Unlock()
	tab := &g.tables[t]
	ids := make([]id, 0, len(names))
	for _, name := range names {
		if i, known := tab.index[name]; known {
			ids = append(ids, i)
		}
	}
	slices.Sort(ids)
	sub.deleteFunc(tab, func(e *entry) bool {
		_, named := slices.BinarySearch(ids, e.id)
		return !named
	})
}

// unchanged says that names are exactly the explicit entries: true of every
// acknowledgement, so it must be cheap.
func (st *stream) unchanged(t resource.Type, sub *subscription, names []string) bool {
	if len(names) != sub.names {
		return false
	}
	st.group.mu.RLock()
	defer st.group.mu.RUnlock()
	tab := &st.group.tables[t]
	var sum uint64
	for _, name := range names {
		i, known := tab.index[name]
		if !known {
			return false
		}
		sum += mix(uint64(i), 0)
	}
	return sum == sub.nameSum
}

// sameSet marks everything as held if the version that a client brings along is that
// of what it would be sent now. g.mu is held for writing.
func (st *stream) sameSet(t resource.Type, sub *subscription, version string) {
	tab := &st.group.tables[t]
	sub.compareAll(tab)
	var want uint64
	for k := range sub.entries {
		e := &sub.entries[k]
		if offer := offered(e, &tab.slots[e.id]); offer != nil {
			want += mix(tab.slots[e.id].nameHash, offer.Folded)
		}
	}
	if setVersion(want) != version {
		return
	}
	for k := range sub.entries {
		e := &sub.entries[k]
		if offer := offered(e, &tab.slots[e.id]); offer != nil {
			sub.setVer(tab, e, offer.Folded)
		}
	}
	sub.reply = false
	sub.acked, sub.sentSet = sub.set, sub.set
	st.knownBefore(t, sub)
}

// knownBefore is called when a client turns out to hold load assignments from before
// this stream. Those whose cluster was sent on it are due again.
func (st *stream) knownBefore(t resource.Type, sub *subscription) {
	clusters := st.subs[resource.Cluster]
	if t != resource.Endpoints || clusters == nil {
		return
	}
	tab := &st.group.tables[resource.Cluster]
	for k := range clusters.entries {
		e := &clusters.entries[k]
		if s := &tab.slots[e.id]; e.has(here) && s.item != nil {
			st.clusterSent(s.item)
		}
	}
}
