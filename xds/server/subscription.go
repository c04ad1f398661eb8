package server

import (
	"cmp"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
)

// entry is what a stream knows about one name: 16 bytes without a pointer, since ten
// thousand streams have hundreds each.
type entry struct {
	ver   wire.Version // what the client holds, or will when it acknowledges
	id    id
	flags flags
}

type flags uint8

const (
	explicit flags = 1 << iota // the client names it
	force                      // to be sent even if the client holds this version
	queued                     // listed in pending
	flight                     // part of the response that awaits its acknowledgement
	here                       // sent on this stream, so the client's copy is new
)

func (e *entry) has(f flags) bool { return e.flags&f != 0 }
func (e *entry) held() bool       { return e.ver > wire.Absent }

// change is one resource of a response: the version sent, and the one before.
type change struct {
	id        id
	ver, prev wire.Version
}

// refusal is a version that the client refused. It is not sent again.
type refusal struct {
	ver         wire.Version
	at          time.Time
	detail      string
	quarantined bool
}

// subscription is a stream's state for one type. stream.mu guards it.
type subscription struct {
	wildcard bool
	named    bool // SotW: names were given once, so an empty list means none
	reply    bool // an answer is due even if it says nothing new
	full     bool // everything must be compared; else the log from cursor on
	awaiting bool // a response is not answered yet

	cursor  uint64
	entries []entry // by id
	names   int     // entries that are explicit
	nameSum uint64  // sum of mixes of their ids
	pending []id    // queued entries, each once
	limit   int     // largest number of resources a response; 0: no limit

	nonce    string // of the newest response
	inflight []change
	refusals map[id]refusal
	set      uint64 // hash over names and versions held
	sentSet  uint64 // set as the newest response left it
	acked    uint64 // sentSet of the newest response that was acknowledged
	sentAt   time.Time
	ackedAt  time.Time // zero before the first acknowledgement
	grant    *grant    // of the response in flight, if it was large
}

// find returns the entry of i, or nil. The pointer is good until entries are added or
// removed.
func (sub *subscription) find(i id) *entry {
	at, ok := slices.BinarySearchFunc(sub.entries, i, func(e entry, i id) int { return cmp.Compare(e.id, i) })
	if !ok {
		return nil
	}
	return &sub.entries[at]
}

// insert returns the entry of i and makes it if there is none. The group's lock is
// held, for reading at least, and i is not free.
func (sub *subscription) insert(tab *table, i id) *entry {
	at, ok := slices.BinarySearchFunc(sub.entries, i, func(e entry, i id) int { return cmp.Compare(e.id, i) })
	if !ok {
		tab.slots[i].refs.Add(1)
		sub.entries = slices.Insert(sub.entries, at, entry{id: i})
	}
	return &sub.entries[at]
}

// insertAll makes the missing entries of ids, which it sorts.
func (sub *subscription) insertAll(tab *table, ids []id) {
	slices.Sort(ids)
	fresh := 0
	for k, i := range ids {
		if (k == 0 || ids[k-1] != i) && sub.find(i) == nil {
			fresh++
		}
	}
	if fresh == 0 {
		return
	}
	merged := make([]entry, 0, len(sub.entries)+fresh)
	old := sub.entries
	for k, i := range ids {
		for len(old) > 0 && old[0].id < i {
			merged = append(merged, old[0])
			old = old[1:]
		}
		if k > 0 && ids[k-1] == i || len(old) > 0 && old[0].id == i {
			continue
		}
		tab.slots[i].refs.Add(1)
		merged = append(merged, entry{id: i})
	}
	sub.entries = append(merged, old...)
}

// setVer notes what the client holds of e.
func (sub *subscription) setVer(tab *table, e *entry, ver wire.Version) {
	h := tab.slots[e.id].nameHash
	if e.held() {
		sub.set -= mix(h, e.ver)
	}
	if e.ver = ver; e.held() {
		sub.set += mix(h, e.ver)
	}
}

// mix hashes a name and version so that sums of mixes tell sets apart.
func mix(name uint64, ver wire.Version) uint64 {
	h := name ^ uint64(ver)*0x9e3779b97f4a7c15
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	return h ^ h>>32
}

func (sub *subscription) setExplicit(e *entry, on bool) {
	if e.has(explicit) == on {
		return
	}
	e.flags ^= explicit
	if on {
		sub.names++
		sub.nameSum += mix(uint64(e.id), 0)
	} else {
		sub.names--
		sub.nameSum -= mix(uint64(e.id), 0)
	}
}

// queue lists e for the next response.
func (sub *subscription) queue(e *entry) {
	if !e.has(queued) {
		e.flags |= queued
		sub.pending = append(sub.pending, e.id)
	}
}

// deleteFunc removes the entries that drop accepts. The group's lock is held for
// writing.
func (sub *subscription) deleteFunc(tab *table, drop func(*entry) bool) {
	kept := sub.entries[:0]
	unqueued := false
	for k := range sub.entries {
		e := &sub.entries[k]
		if !drop(e) {
			kept = append(kept, *e)
			continue
		}
		unqueued = unqueued || e.has(queued)
		sub.setExplicit(e, false)
		sub.setVer(tab, e, wire.None)
		delete(sub.refusals, e.id)
		tab.slots[e.id].refs.Add(-1)
		tab.release(e.id)
	}
	sub.entries = kept
	if unqueued {
		sub.pending = slices.DeleteFunc(sub.pending, func(i id) bool { return sub.find(i) == nil })
	}
	// A set that shrank for good gives its memory back.
	if len(kept) < cap(kept)/4 {
		sub.entries = slices.Clone(kept)
	}
}

// idle says that nothing is known or wanted of e, so it need not be kept.
func (e *entry) idle() bool { return !e.held() && !e.has(explicit|flight|queued) }

// due says what has to be sent for an entry.
type due uint8

const (
	nothing due = iota
	addition
	notice  // the client named something that does not exist, and is to be told
	removal // what the client holds does not exist any more
)

// offered is what the client should hold: on-demand resources only by name.
func offered(e *entry, s *slot) *wire.Resource {
	if s.onDemand && !e.has(explicit) {
		return nil
	}
	return s.offer()
}

// due compares what the client holds with what it should hold.
func (sub *subscription) due(e *entry, s *slot) due {
	offer := offered(e, s)
	switch {
	case offer == nil && e.held():
		return removal
	case offer == nil && (e.has(force) || e.has(explicit) && e.ver == wire.None):
		return notice
	case offer == nil:
		return nothing
	case e.has(force):
		return addition
	case offer.Folded == e.ver:
		return nothing
	}
	if r, refused := sub.refusals[e.id]; refused && r.ver == offer.Folded {
		return nothing
	}
	return addition
}

// scan queues the entries that changed since the last time. The group's lock is held
// for reading.
func (sub *subscription) scan(tab *table) {
	if !sub.full && sub.cursor == tab.released {
		return
	}
	var buf [32]id
	ids, next, whole := tab.since(sub.cursor, buf[:0])
	sub.cursor = next
	if whole || sub.full {
		sub.full = false
		sub.compareAll(tab)
		return
	}
	for _, i := range ids {
		s := &tab.slots[i]
		e := sub.find(i)
		if e == nil && sub.wildcard && s.item != nil && !s.onDemand {
			e = sub.insert(tab, i)
		}
		if e != nil && sub.due(e, s) != nothing {
			sub.queue(e)
		}
	}
}

// compareAll queues every entry that differs; a wildcard gets an entry for all there is.
func (sub *subscription) compareAll(tab *table) {
	if sub.wildcard {
		fresh := make([]id, 0, tab.live)
		for i := range tab.slots {
			if s := &tab.slots[i]; s.item != nil && !s.onDemand {
				fresh = append(fresh, id(i))
			}
		}
		sub.insertAll(tab, fresh)
	}
	for k := range sub.entries {
		e := &sub.entries[k]
		if sub.due(e, &tab.slots[e.id]) != nothing {
			sub.queue(e)
		}
	}
}

// fullState says that a state-of-the-world response of this type carries all there is,
// so that what it lacks is deleted.
func fullState(t resource.Type) bool { return t == resource.Cluster || t == resource.Listener }
