package server

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/pace"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
)

// id stands for a resource name of one type within a group. It belongs to that name
// as long as the name is in the snapshot or a stream has an entry for it.
type id uint32

// slot is what a group knows of one name.
type slot struct {
	name     string
	nameHash uint64
	item     *wire.Resource // the newest; nil: not in the snapshot
	// prev is the item before, until a stream has acknowledged the newest: its own
	// acknowledgement may still be under way, and a state-of-the-world response may
	// have to carry a deleted item once more until what refers to it is replaced.
	prev *wire.Resource
	// good is the newest item that a stream acknowledged. Nil: none yet.
	good     *wire.Resource
	onDemand bool
	// refused holds versions that a stream refused and none acknowledged.
	refused map[wire.Version]struct{}
	refs    atomic.Int32 // entries of streams; a slot is freed under group.mu alone
}

// keptRefused bounds slot.refused: a name whose content changes that often while
// refused starts afresh.
const keptRefused = 16

// quarantined says that the newest item must not be offered while there is a good one.
func (s *slot) quarantined() bool {
	if s.item == nil || len(s.refused) == 0 || s.good == nil {
		return false
	}
	_, bad := s.refused[s.item.Folded]
	return bad
}

// offer is what streams should hold of this name; nil: nothing.
func (s *slot) offer() *wire.Resource {
	if s.quarantined() {
		return s.good
	}
	return s.item
}

// logSize is how many changes of one type a stream may be behind before it compares
// everything that it holds instead: a comparison of that many costs about the same.
const logSize = 512

// table is one resource type of a group.
type table struct {
	index map[string]id
	slots []slot
	free  []id

	log      [logSize]id // changed ids, a ring
	head     uint64      // changes ever logged
	released uint64      // changes that streams may see: head, or less between waves
	live     int         // slots with an item
}

// group is a feed and the streams that read it. It watches the feed once for all of
// them: names become ids and resources are framed once a scope, not once a stream.
type group struct {
	feed    *resource.Feed
	metrics *metrics
	members int           // streams that joined; guarded by Server.mu
	ready   chan struct{} // closed once the group is filled

	mu      sync.RWMutex // guards all below; slot.refs also changes under RLock
	tables  [resource.NumTypes]table
	streams map[*stream]struct{}
	list    []*stream // the streams, copied on demand; nil when out of date
	pace    pace.Bucket
	timer   *time.Timer // set while a wave is due later
	closed  bool
}

func newGroup(feed *resource.Feed, m *metrics) *group {
	g := &group{feed: feed, metrics: m, streams: map[*stream]struct{}{}}
	for t := range g.tables {
		g.tables[t].index = map[string]id{}
	}
	return g
}

// open starts to watch the feed. What is published meanwhile either is in the
// snapshot read here or comes through Changed afterwards.
func (g *group) open() {
	g.feed.Watch(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	snap := g.feed.Snapshot()
	for t := range resource.Type(resource.NumTypes) {
		for name := range snap.Tables[t].All() {
			g.apply(snap, resource.Key{Type: t, Name: name})
		}
		g.tables[t].released = g.tables[t].head
	}
}

// close ends the watch.
func (g *group) close() {
	g.feed.Unwatch(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.timer != nil {
		g.timer.Stop()
	}
	for t := range g.tables {
		for i := range g.tables[t].slots {
			if g.tables[t].slots[i].quarantined() {
				g.metrics.quarantined.WithLabelValues(resource.Type(t).String()).Dec()
			}
		}
	}
}

func (g *group) add(st *stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.streams[st] = struct{}{}
	g.list = nil
}

func (g *group) remove(st *stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.streams, st)
	g.list = nil
}

// current returns the streams; the slice is shared and must not be changed.
func (g *group) current() []*stream {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streamsLocked()
}

func (g *group) streamsLocked() []*stream {
	if g.list == nil {
		g.list = make([]*stream, 0, len(g.streams))
		for st := range g.streams {
			g.list = append(g.list, st)
		}
	}
	return g.list
}

// Changed implements resource.Watcher. The first change wakes the streams at once;
// changes in quick succession share waves (package pace).
func (g *group) Changed(keys []resource.Key) {
	g.mu.Lock()
	// Read under the lock: of two calls at once, the later one must not store what
	// is older. Every key of a publication is thus at least as new as it.
	snap := g.feed.Snapshot()
	changed := false
	for _, k := range keys {
		changed = g.apply(snap, k) || changed
	}
	wake := g.waveLocked(changed)
	g.mu.Unlock()
	wakeAll(wake)
}

func wakeAll(streams []*stream) {
	for _, st := range streams {
		st.kick()
	}
}

// waveLocked starts a wave or schedules one, and returns the streams to wake.
func (g *group) waveLocked(changed bool) []*stream {
	if !changed || g.closed || g.timer != nil {
		return nil
	}
	if wait := g.pace.Next(time.Now(), len(g.streams)); wait > 0 {
		g.timer = time.AfterFunc(wait, g.late)
		return nil
	}
	return g.releaseLocked()
}

// late runs a wave that had to wait.
func (g *group) late() {
	g.mu.Lock()
	g.timer = nil
	var wake []*stream
	if !g.closed {
		g.pace.Started(time.Now())
		wake = g.releaseLocked()
	}
	g.mu.Unlock()
	wakeAll(wake)
}

func (g *group) releaseLocked() []*stream {
	for t := range g.tables {
		g.tables[t].released = g.tables[t].head
	}
	g.metrics.waves.Inc()
	return g.streamsLocked()
}

// apply brings the slot of k up to date and says whether streams have to look at it.
func (g *group) apply(snap *resource.Snapshot, k resource.Key) bool {
	tab := &g.tables[k.Type]
	r := snap.Get(k.Type, k.Name)
	i, known := tab.index[k.Name]
	if r == nil && !known {
		return false
	}
	if !known {
		i = tab.intern(r.Name)
	}
	s := &tab.slots[i]
	_, onDemand := snap.OnDemand[k.Type].Get(k.Name)
	was := s.quarantined()
	changed := true
	switch {
	case r == nil && s.item == nil:
		return false
	case r == nil:
		s.prev, s.item, s.good, s.refused, s.onDemand = s.item, nil, nil, nil, false
		tab.live--
	case s.item == nil:
		tab.live++
		s.item, s.prev, s.onDemand = wire.NewResource(r), nil, onDemand
	case s.item.Version != r.Version:
		s.prev, s.item, s.onDemand = s.item, wire.NewResource(r), onDemand
	default: // the same content, perhaps from other rules
		changed = s.onDemand != onDemand
		s.onDemand = onDemand
		if s.item.Resource != r {
			fresh := wire.NewResource(r)
			if s.good == s.item {
				s.good = fresh
			}
			s.item = fresh
		}
	}
	g.metrics.quarantineMoved(k.Type, was, s.quarantined())
	if changed {
		tab.log[tab.head%logSize] = i
		tab.head++
	}
	tab.release(i)
	return changed
}

// intern gives name an id. group.mu is held.
func (t *table) intern(name string) id {
	if i, ok := t.index[name]; ok {
		return i
	}
	var i id
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		i = id(len(t.slots))
		t.slots = append(t.slots, slot{})
	}
	t.slots[i] = slot{name: name, nameHash: xxhash.Sum64String(name)}
	t.index[name] = i
	return i
}

// release frees the id if nothing needs it any more. group.mu is held. An id still in
// the log may then come to stand for another name: who reads the log compares that
// name in vain, and no harm is done.
func (t *table) release(i id) {
	s := &t.slots[i]
	if s.item != nil || s.refs.Load() > 0 {
		return
	}
	delete(t.index, s.name)
	*s = slot{}
	t.free = append(t.free, i)
}

// since appends to ids the changes after cursor and returns the new cursor; whole
// means that the log does not reach back that far. group.mu is held for reading.
func (t *table) since(cursor uint64, ids []id) (_ []id, next uint64, whole bool) {
	if t.head-cursor > logSize {
		return ids, t.released, true
	}
	for ; cursor < t.released; cursor++ {
		ids = append(ids, t.log[cursor%logSize])
	}
	return ids, t.released, false
}

// accepted notes that a stream holds these versions: they are good, and no longer
// kept from others.
func (g *group) accepted(t resource.Type, held []change) {
	tab := &g.tables[t]
	g.mu.RLock()
	news := slices.ContainsFunc(held, func(c change) bool { return tab.slots[c.id].proves(c.ver) != nil })
	g.mu.RUnlock()
	if !news {
		return
	}
	g.mu.Lock()
	lifted := false
	for _, c := range held {
		s := &tab.slots[c.id]
		proven := s.proves(c.ver)
		if proven == nil {
			continue
		}
		was := s.quarantined()
		s.good = proven
		if proven == s.item {
			s.prev = nil
		}
		delete(s.refused, c.ver)
		g.metrics.quarantineMoved(t, was, s.quarantined())
		if was != s.quarantined() {
			tab.log[tab.head%logSize] = c.id
			tab.head++
			lifted = true
		}
	}
	wake := g.waveLocked(lifted)
	g.mu.Unlock()
	wakeAll(wake)
}

// proves returns the item that an acknowledgement of ver newly shows to be good, or
// nil.
func (s *slot) proves(ver wire.Version) *wire.Resource {
	switch {
	case s.item == nil || s.good == s.item:
		return nil
	case s.item.Folded == ver:
		return s.item
	case s.prev != nil && s.prev.Folded == ver && s.good != s.prev:
		return s.prev
	}
	return nil
}

// refuse notes that a stream refused ver of a name. Unless another stream of the
// scope has acknowledged the same bytes, they are kept from new streams.
func (g *group) refuse(t resource.Type, i id, ver wire.Version) (res *resource.Resource, quarantined bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &g.tables[t].slots[i]
	if s.item == nil || s.item.Folded != ver {
		return nil, false
	}
	if s.good == s.item {
		return s.item.Resource, false
	}
	was := s.quarantined()
	if s.refused == nil || len(s.refused) >= keptRefused {
		s.refused = map[wire.Version]struct{}{}
	}
	s.refused[ver] = struct{}{}
	g.metrics.quarantineMoved(t, was, s.quarantined())
	return s.item.Resource, s.quarantined()
}
