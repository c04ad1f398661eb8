package watch

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// host is one host in a session: the services that make it up, of several data
// centres or of names that differ in case only.
type host struct {
	watches map[*watch]struct{}
	applied *model.Service // last reported; nil when the source has none
	// left is what an earlier Run read of services that this one could not read
	// yet.
	left []model.Endpoint
}

func (s *session) hostOf(name model.Host) *host {
	h := s.hosts[name]
	if h == nil {
		h = &host{watches: map[*watch]struct{}{}}
		s.hosts[name] = h
	}
	return h
}

// take replaces what w contributes.
func (s *session) take(w *watch, p *part, now time.Time) {
	var before, after []model.Rejected
	if w.part != nil {
		before = w.part.rejected
	}
	if p != nil {
		after = p.rejected
		p.keep(w.part)
	}
	s.news = s.news || !slices.Equal(before, after)
	w.known, w.part = true, p
	s.rebuild(w.host, s.hostOf(w.host), now)
}

// rebuild merges the parts of a host and reports it if it changed.
func (s *session) rebuild(name model.Host, h *host, now time.Time) {
	if len(h.watches) == 0 {
		delete(s.hosts, name)
	}
	if !s.complete {
		return
	}
	before := h.applied
	next := s.merge(name, h)
	switch {
	case next == nil && before == nil:
	case next == nil:
		h.applied = nil
		s.sink.Apply(model.Update{Removed: []model.Host{name}})
	default:
		if before != nil && sameService(before, next) {
			return
		}
		stamp(next, before, now)
		h.applied = next
		s.sink.Apply(model.Update{Services: []*model.Service{next}})
	}
}

// full reports everything at once. Services that could not be read are named as
// the mesh still holds them from an earlier Run.
func (s *session) full(now time.Time) {
	held, _ := s.sink.(bridges.Holder)
	u := model.Update{Full: true}
	for name, h := range s.hosts {
		var before *model.Service
		if held != nil {
			before = held.Held(name)
		}
		if before != nil {
			h.left = s.leftover(h, before)
		}
		if h.applied = s.merge(name, h); h.applied == nil {
			continue
		}
		if len(h.left) > 0 {
			h.applied.Ports = unionPorts(h.applied.Ports, before.Ports)
		}
		if before != nil {
			stamp(h.applied, before, now)
		}
		u.Services = append(u.Services, h.applied)
	}
	slices.SortFunc(u.Services, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	s.sink.Apply(u)
}

// leftover picks of what the mesh holds the endpoints in the data centres of
// those services that could not be read.
func (s *session) leftover(h *host, before *model.Service) []model.Endpoint {
	var out []model.Endpoint
	for w := range h.watches {
		if w.known {
			continue
		}
		for _, ep := range before.Endpoints {
			if dc, ok := ep.Labels.Get("dc"); !ok || w.center.name == "" || dc == w.center.name {
				out = append(out, ep)
			}
		}
	}
	return distinct(out)
}

// merge joins the parts of a host; nil when there is none. While some service was
// never read, what an earlier Run left stays beside the others.
func (s *session) merge(name model.Host, h *host) *model.Service {
	out := &model.Service{Host: name, Name: string(name), Namespace: s.f.cfg.Rules.Namespace}
	watches := slices.SortedFunc(maps.Keys(h.watches), order)
	if !slices.ContainsFunc(watches, func(w *watch) bool { return !w.known }) {
		h.left = nil
	}
	found := false
	for _, w := range watches {
		if p := w.part; p != nil {
			if !found {
				out.Name = p.name
			}
			out.Endpoints = union(out.Endpoints, p.endpoints)
			out.Ports = unionPorts(out.Ports, p.ports)
			found = true
		}
	}
	if len(h.left) > 0 {
		out.Endpoints = union(out.Endpoints, h.left)
		if h.applied != nil {
			out.Ports = unionPorts(out.Ports, h.applied.Ports)
		}
		found = true
	}
	if !found {
		return nil
	}
	return out
}

func order(a, b *watch) int {
	return cmp.Or(cmp.Compare(a.center.name, b.center.name), cmp.Compare(a.service, b.service))
}

// union adds to a what only b has. Both ascend by address and port, and so does
// the result, which is a itself when b adds nothing.
func union(a, b []model.Endpoint) []model.Endpoint {
	if len(a) == 0 {
		return b
	}
	var missing []model.Endpoint
	for i := range b {
		if _, ok := slices.BinarySearchFunc(a, b[i], func(x, y model.Endpoint) int { return compare(&x, &y) }); !ok {
			missing = append(missing, b[i])
		}
	}
	if len(missing) == 0 {
		return a
	}
	out := append(slices.Clone(a), missing...)
	slices.SortFunc(out, func(x, y model.Endpoint) int { return compare(&x, &y) })
	return out
}

func unionPorts(a, b []model.Port) []model.Port {
	out := a
	for _, p := range b {
		if _, ok := find(out, p.Number); !ok {
			out = append(slices.Clone(out), p)
		}
	}
	slices.SortFunc(out, func(x, y model.Port) int { return cmp.Compare(x.Number, y.Number) })
	return out
}

// stamp dates the endpoints of next: those that before has alike keep their date,
// others are of now; before may be nil. In a Full update a host of which nothing
// is held gets no date: when it changed is unknown, and a date would make this
// source win over one that was read earlier.
func stamp(next, before *model.Service, now time.Time) {
	next.Endpoints = slices.Clone(next.Endpoints)
	if before == nil {
		before = &model.Service{}
	}
	for i := range next.Endpoints {
		ep := &next.Endpoints[i]
		at, ok := slices.BinarySearchFunc(before.Endpoints, *ep, func(x, y model.Endpoint) int { return compare(&x, &y) })
		if ok && sameEndpoint(&before.Endpoints[at], ep) {
			ep.Changed = before.Endpoints[at].Changed
		} else {
			ep.Changed = now
		}
	}
}

// sameService compares what this source reports, dates aside.
func sameService(a, b *model.Service) bool {
	return a.Name == b.Name && a.Namespace == b.Namespace && slices.Equal(a.Ports, b.Ports) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, func(x, y model.Endpoint) bool { return sameEndpoint(&x, &y) })
}

func sameEndpoint(a, b *model.Endpoint) bool {
	return a.Address == b.Address && a.Port == b.Port && a.Weight == b.Weight && a.Health == b.Health &&
		a.Labels == b.Labels && a.Locality == b.Locality
}
