package bridges

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Holder is implemented by the Sink that a Supervisor hands to its Source. A
// source that could read all but some services asks it for those, so that its
// Full update names them as they were: a service that cannot be read is
// unknown, not gone.
type Holder interface {
	// Held returns what the mesh holds of this source under host, from an
	// earlier read of this or a former process; nil when it holds nothing. The
	// value must not be modified.
	Held(host model.Host) *model.Service
}

// held is all that the mesh holds of one source.
type held struct {
	mu        sync.RWMutex // guards the fields below
	services  map[model.Host]*model.Service
	workloads map[string]*model.Workload
	endpoints int
	// complete says that a source of this process read everything once; what
	// came from disk is then replaced and may be written again.
	complete bool
	read     time.Time // when it was last known to be complete; zero means never
}

func newHeld() *held {
	return &held{services: map[model.Host]*model.Service{}, workloads: map[string]*model.Workload{}}
}

// Held implements Holder.
func (h *held) Held(host model.Host) *model.Service {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.services[host]
}

// apply takes u over and returns it as it goes on to the sink: services that are
// equal to what is held keep their old pointer in a Full update, so that whoever
// compares need not look into them, and are left out of any other. changed is
// false when nothing is left.
func (h *held) apply(u model.Update, now time.Time) (out model.Update, changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if u.Full {
		return h.replace(u, now), true
	}
	out = u
	out.Services = nil
	for _, s := range u.Services {
		old := h.services[s.Host]
		if old != nil && SameService(old, s) {
			continue
		}
		h.put(s)
		out.Services = append(out.Services, s)
	}
	for _, w := range u.Workloads {
		h.workloads[w.Name] = w
	}
	for _, host := range u.Removed {
		if old := h.services[host]; old != nil {
			h.endpoints -= len(old.Endpoints)
			delete(h.services, host)
		}
	}
	for _, name := range u.RemovedWorkloads {
		delete(h.workloads, name)
	}
	changed = len(out.Services)+len(out.Removed)+len(out.Workloads)+len(out.RemovedWorkloads) > 0
	return out, changed
}

func (h *held) replace(u model.Update, now time.Time) model.Update {
	before := h.services
	h.services, h.endpoints = make(map[model.Host]*model.Service, len(u.Services)), 0
	out := u
	out.Services = make([]*model.Service, 0, len(u.Services))
	for _, s := range u.Services {
		if old := before[s.Host]; old != nil && SameService(old, s) {
			s = old
		}
		h.put(s)
		out.Services = append(out.Services, s)
	}
	h.workloads = make(map[string]*model.Workload, len(u.Workloads))
	for _, w := range u.Workloads {
		h.workloads[w.Name] = w
	}
	h.complete, h.read = true, now
	return out
}

func (h *held) put(s *model.Service) {
	if old := h.services[s.Host]; old != nil {
		h.endpoints -= len(old.Endpoints)
	}
	h.services[s.Host] = s
	h.endpoints += len(s.Endpoints)
}

// restore takes over what a former process kept.
func (h *held) restore(k kept) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range k.Services {
		h.put(s)
	}
	for _, w := range k.Workloads {
		h.workloads[w.Name] = w
	}
	h.read = k.Read
}

// confirm notes that what is held was complete at t.
func (h *held) confirm(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.After(h.read) {
		h.read = t
	}
}

// all copies the references out, services by host and workloads by name.
func (h *held) all() (k kept, complete bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	k.Read = h.read
	k.Services = slices.SortedFunc(maps.Values(h.services), func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	k.Workloads = slices.SortedFunc(maps.Values(h.workloads), func(a, b *model.Workload) int { return cmp.Compare(a.Name, b.Name) })
	return k, h.complete
}

// size returns the number of services and endpoints and the time of the last
// complete read.
func (h *held) size() (services, endpoints int, read time.Time) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.services), h.endpoints, h.read
}

// SameService reports whether two readings of a service say the same; fields that
// only the catalog sets are left aside.
func SameService(a, b *model.Service) bool {
	return a.Host == b.Host && a.Name == b.Name && a.Namespace == b.Namespace &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.Addresses, b.Addresses) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, equalEndpoint)
}

func equalEndpoint(a, b model.Endpoint) bool {
	return a.Address == b.Address && a.Port == b.Port && a.Weight == b.Weight && a.Health == b.Health &&
		a.Labels == b.Labels && a.Locality == b.Locality && a.Changed.Equal(b.Changed)
}
