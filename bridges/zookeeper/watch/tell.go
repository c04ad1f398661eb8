package watch

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// tell hands on what is now known of host, once the whole was told.
func (f *follower) tell(host model.Host) {
	if !f.live {
		return
	}
	s := f.compose(host)
	old := f.told[host]
	switch {
	case s != nil:
		if old != nil && bridges.SameService(old, s) {
			return
		}
		f.told[host] = s
		f.sink.Apply(model.Update{Services: []*model.Service{s}})
	case old != nil:
		delete(f.told, host)
		f.sink.Apply(model.Update{Removed: []model.Host{host}})
	}
}

// tellAll hands on everything after the first complete read.
func (f *follower) tellAll(now time.Time) {
	update := model.Update{Full: true}
	for _, host := range slices.Sorted(maps.Keys(f.byHost)) {
		if s := f.compose(host); s != nil {
			f.told[host] = s
			update.Services = append(update.Services, s)
		}
	}
	f.live, f.read = true, now
	f.sink.Apply(update)
	f.sayStatus(now)
}

// compose makes the service of host from all roots that have it; nil when none
// has. A part that could not be read is taken from what the mesh holds.
func (f *follower) compose(host model.Host) *model.Service {
	units := f.byHost[host]
	if len(units) == 0 {
		return nil
	}
	before := f.told[host]
	if holder, ok := f.sink.(bridges.Holder); ok && before == nil {
		before = holder.Held(host)
	}
	m := newMerged()
	name := ""
	for _, k := range slices.SortedFunc(maps.Keys(units), compareKeys) {
		u := units[k]
		name = cmp.Or(name, u.service)
		for _, n := range u.shown {
			for _, r := range n.registrations {
				m.add(r)
			}
		}
		if !u.known {
			m.keep(before)
		}
	}
	m.keepPorts(before)
	return m.service(host, name, f.cfg.Namespace)
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.root, b.root), cmp.Compare(a.name, b.name))
}

// maxSkipped bounds the entries in a status.
const maxSkipped = 100

// skipList is what was left out, by unit; units without such entries are not in it.
type skipList map[key][]model.Rejected

// set replaces the entries of k and reports whether that changed anything.
func (l skipList) set(k key, entries []model.Rejected) bool {
	if slices.Equal(l[k], entries) {
		return false
	}
	if len(entries) == 0 {
		delete(l, k)
	} else {
		l[k] = entries
	}
	return true
}

// list returns the first entries in the order of their units, and how many more
// there are.
func (l skipList) list() []model.Rejected {
	var out []model.Rejected
	more := 0
	for _, k := range slices.SortedFunc(maps.Keys(l), compareKeys) {
		fits := min(len(l[k]), maxSkipped-len(out))
		out = append(out, l[k][:fits]...)
		more += len(l[k]) - fits
	}
	if more > 0 {
		out = append(out, model.Rejected{Where: "...", Reason: fmt.Sprintf("and %d more", more)})
	}
	return out
}
