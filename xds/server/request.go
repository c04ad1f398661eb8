package server

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

// wildcardName subscribes to everything that is not on demand.
const wildcardName = "*"

// typeOf finds the type a request is about; known is false if it is not served, which
// is no mistake: clients ask for types that other servers have.
func (st *stream) typeOf(url string) (t resource.Type, known bool, err error) {
	switch {
	case st.only != nil && (url == "" || url == st.only.URL()):
		return *st.only, true, nil
	case st.only != nil:
		return 0, false, errWrongType(st.only.URL(), url)
	case url == "":
		return 0, false, errNoType()
	}
	t, known = resource.ParseURL(url)
	return t, known, nil
}

// handle takes in one request. What is due in answer goes out by kick.
func (st *stream) handle(r *request) ([]status.Refusal, error) {
	t, known, err := st.typeOf(r.typeURL)
	if err != nil {
		return nil, err
	}
	m := st.srv.metrics.requests
	if err := r.checkNames(); err != nil {
		return nil, err
	}
	if !known {
		m.WithLabelValues(unknownType, kindUnknown).Inc()
		return nil, nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	sub := st.subs[t]
	first := sub == nil
	if first {
		sub = &subscription{full: true}
		st.subs[t] = sub
	}
	kind, refusals := st.answered(t, sub, r)
	m.WithLabelValues(t.String(), kind).Inc()
	switch {
	case st.delta:
		err = st.subscribeDelta(t, sub, r, first)
	case kind == kindStale:
		st.staleNames(t, sub, r.names)
	default:
		err = st.subscribeSotW(t, sub, r, first)
	}
	return refusals, err
}

// maxNameBytes bounds one name that a client subscribes to: hosts have at most 253
// bytes, and names of clusters some words more.
const maxNameBytes = 1 << 10

// checkNames refuses names that nothing is called by and that cost memory.
func (r *request) checkNames() error {
	for field, names := range map[string][]string{"resource_names": r.names, "resource_names_subscribe": r.subscribe} {
		for k, name := range names {
			if len(name) > maxNameBytes {
				return errNameSize(fmt.Sprintf("%s[%d]", field, k), len(name))
			}
		}
	}
	for name := range r.initial {
		if len(name) > maxNameBytes {
			return errNameSize("initial_resource_versions", len(name))
		}
	}
	return nil
}

// answered takes the acknowledgement or refusal out of a request, if it carries one.
func (st *stream) answered(t resource.Type, sub *subscription, r *request) (kind string, _ []status.Refusal) {
	switch {
	case r.nonce == "" || sub.nonce == "":
		return kindSubscribe, nil // a nonce before the first response is from an earlier stream
	case r.nonce != sub.nonce:
		return kindStale, nil
	case !sub.awaiting:
		return kindSubscribe, nil
	}
	now := time.Now()
	sub.awaiting = false
	sub.grant.release()
	sub.grant = nil
	st.srv.metrics.ack.WithLabelValues(t.String()).Observe(now.Sub(sub.sentAt).Seconds())
	changes := sub.inflight
	sub.inflight = nil
	for _, c := range changes {
		if e := sub.find(c.id); e != nil {
			e.flags &^= flight
		}
	}
	var refusals []status.Refusal
	if kind = kindAck; r.nacked {
		kind = kindNack
		changes, refusals = st.refused(t, sub, r, changes, now)
	} else {
		sub.acked, sub.ackedAt = sub.sentSet, now
	}
	st.group.accepted(t, changes)
	st.sweep(t, sub, changes)
	return kind, refusals
}

// sweep drops entries of what was removed; changes just were answered.
func (st *stream) sweep(t resource.Type, sub *subscription, changes []change) {
	gone := func(c change) bool {
		e := sub.find(c.id)
		return e != nil && e.idle()
	}
	if !slices.ContainsFunc(changes, gone) {
		return
	}
	st.group.mu.Lock()
	defer st.group.mu.Unlock()
	sub.deleteFunc(&st.group.tables[t], (*entry).idle)
}

// refused sorts out which resources of a response the client refused and returns those
// it took, and a report of the others.
func (st *stream) refused(t resource.Type, sub *subscription, r *request, changes []change, now time.Time) (taken []change, _ []status.Refusal) {
	g := st.group
	tab := &g.tables[t]
	g.mu.RLock()
	var blamed, others []change
	for _, c := range changes {
		if c.ver > wire.Absent && mentions(r.detail, tab.slots[c.id].name) {
			blamed = append(blamed, c)
		} else {
			others = append(others, c)
		}
	}
	halve, named := false, len(blamed) > 0
	if !named {
		blamed, others = sent(others), nil
		// Nobody is named: send half as many at a time until the culprit is alone.
		halve = len(blamed) > 1 && (st.delta || !fullState(t))
	}
	for _, c := range blamed {
		if e := sub.find(c.id); e != nil && e.ver == c.ver {
			sub.setVer(tab, e, c.prev)
		}
	}
	if halve {
		sub.limit = (len(blamed) + 1) / 2
		st.requeue(sub, blamed)
		blamed = nil
	}
	// Envoy applies nothing after the first mistake for types it takes one by one.
	if !halve && !fullState(t) {
		for _, c := range sent(others) {
			if e := sub.find(c.id); e != nil && e.ver == c.ver {
				sub.setVer(tab, e, c.prev)
			}
		}
		st.requeue(sub, sent(others))
		others = nil
	}
	names := make([]string, len(blamed))
	for k, c := range blamed {
		names[k] = tab.slots[c.id].name
	}
	g.mu.RUnlock()
	return others, st.refuse(t, sub, blamed, names, named, clip(r.detail), now)
}

// maxDetail bounds the error text that is kept of a refusal, in bytes.
const maxDetail = 4 << 10

func clip(detail string) string {
	if len(detail) <= maxDetail {
		return detail
	}
	return strings.ToValidUTF8(strings.Clone(detail[:maxDetail]), "") + " ..."
}

func sent(changes []change) []change {
	return slices.DeleteFunc(slices.Clone(changes), func(c change) bool { return c.ver <= wire.Absent })
}

func (st *stream) requeue(sub *subscription, changes []change) {
	for _, c := range changes {
		if e := sub.find(c.id); e != nil {
			e.flags |= force
			sub.queue(e)
		}
	}
}

// refuse records the refusal of each of blamed; named says that the client named them.
func (st *stream) refuse(t resource.Type, sub *subscription, blamed []change, names []string, named bool, detail string, now time.Time) []status.Refusal {
	reports := make([]status.Refusal, 0, len(blamed))
	for k, c := range blamed {
		report := status.Refusal{
			At: now, NodeID: st.node.GetId(), Scope: st.group.feed.Scope, Type: t, Name: names[k],
			Version: c.ver.String(), Detail: detail,
		}
		// Only a refusal that is clearly this resource's counts against it.
		if len(blamed) == 1 || named {
			res, quarantined := st.group.refuse(t, c.id, c.ver)
			report.Quarantined = quarantined
			if res != nil {
				report.Version, report.Origins = res.Version, res.Origins
			}
		}
		if sub.refusals == nil {
			sub.refusals = map[id]refusal{}
		}
		if sub.find(c.id) != nil {
			sub.refusals[c.id] = refusal{ver: c.ver, at: now, detail: detail, quarantined: report.Quarantined}
		}
		reports = append(reports, report)
	}
	return reports
}

// mentions says that text contains name as a whole: a longer name that begins or ends
// with it does not count.
func mentions(text, name string) bool {
	for from := 0; name != ""; {
		i := strings.Index(text[from:], name)
		if i < 0 {
			return false
		}
		start, end := from+i, from+i+len(name)
		if (start == 0 || !nameByte(text[start-1])) && !continues(text[end:]) {
			return true
		}
		from = start + 1
	}
	return false
}

func nameByte(b byte) bool {
	return b == '_' || b == '-' || b == '|' || b == '.' || b == ':' || b == '/' || b == '@' || b >= 0x80 ||
		b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// continues says that a name goes on in rest. A full stop or colon at the end of a word
// is punctuation.
func continues(rest string) bool {
	for rest != "" && (rest[0] == '.' || rest[0] == ':') {
		rest = rest[1:]
		if rest == "" || !nameByte(rest[0]) {
			return false
		}
	}
	return rest != "" && nameByte(rest[0])
}

// internAll returns the ids of names; each gets a reference that insertAll's do not
// include and unref gives back. The group's lock is held for writing.
func (tab *table) internAll(names []string) []id {
	ids := make([]id, len(names))
	for k, name := range names {
		ids[k] = tab.intern(name)
		tab.slots[ids[k]].refs.Add(1)
	}
	return ids
}

func (tab *table) unref(ids []id) {
	for _, i := range ids {
		tab.slots[i].refs.Add(-1)
		tab.release(i)
	}
}
