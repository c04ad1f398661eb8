// Package catalog merges what all sources report into one versioned view.
//
// Each source writes through its own Handle; readers take a View, which never
// changes, or a Subscription, which tells what changed between the views they
// took. All methods may be called from any goroutine.
//
// How conflicting reports merge and how endpoints join workloads: RATIONALE.md.
package catalog

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Config is what a Catalog is made from.
type Config struct {
	// Priority lists source names, the most trusted first. Sources that are
	// not listed follow, by name.
	Priority []string
	Log      *slog.Logger // required
}

// Catalog is the merged state of all sources. Make one with New.
type Catalog struct {
	log      *slog.Logger   // immutable after New
	priority map[string]int // immutable after New

	view atomic.Pointer[View] // read without mu

	mu      sync.Mutex // serialises writers; guards the fields below
	sources map[string]*source
	// holders lists, for a host, the sources that hold a part of it.
	holders map[model.Host][]*source
	// joins finds the workloads that serve an application address.
	joins map[netip.AddrPort][]join
	// hostsAt lists, for a registered address, the hosts with an endpoint
	// there: nearly always one.
	hostsAt map[netip.AddrPort][]model.Host
	subs    map[*Subscription]struct{}
}

// source is what one source holds.
type source struct {
	name      string
	services  map[model.Host]*model.Service
	workloads map[string]*model.Workload
}

// New returns an empty catalog.
func New(cfg Config) *Catalog {
	c := &Catalog{
		log:      cfg.Log,
		priority: map[string]int{},
		sources:  map[string]*source{},
		holders:  map[model.Host][]*source{},
		joins:    map[netip.AddrPort][]join{},
		hostsAt:  map[netip.AddrPort][]model.Host{},
		subs:     map[*Subscription]struct{}{},
	}
	for i, name := range cfg.Priority {
		if _, twice := c.priority[name]; !twice {
			c.priority[name] = i - len(cfg.Priority) // negative: before the unlisted
		}
	}
	c.view.Store(&View{})
	return c
}

// View is the newest view; never nil.
func (c *Catalog) View() *View { return c.view.Load() }

// Handle is one source's way into the catalog; it is the source's Sink.
type Handle struct {
	catalog *Catalog
	source  string
}

// Source returns the handle through which the named source writes. Two handles
// of one name write to the same source.
func (c *Catalog) Source(name string) *Handle { return &Handle{c, name} }

// Report records the state of the source.
func (h *Handle) Report(s model.SourceStatus) {
	h.catalog.mu.Lock()
	defer h.catalog.mu.Unlock()
	s.Source = h.source
	v := h.catalog.view.Load().next()
	i, found := slices.BinarySearchFunc(v.statuses, s.Source, func(a model.SourceStatus, name string) int {
		return strings.Compare(a.Source, name)
	})
	v.statuses = slices.Clone(v.statuses)
	if found {
		v.statuses[i] = s
	} else {
		v.statuses = slices.Insert(v.statuses, i, s)
	}
	h.catalog.view.Store(v)
}

// Apply takes one step of the source into the view. Subscribers are woken when
// the merged services or the workloads differ from before.
func (h *Handle) Apply(u model.Update) {
	c := h.catalog
	c.mu.Lock()
	src := c.sources[h.source]
	if src == nil {
		src = &source{h.source, map[model.Host]*model.Service{}, map[string]*model.Workload{}}
		c.sources[h.source] = src
	}
	if u.Full {
		u = completeRemovals(src, u)
	}
	touched := map[model.Host]struct{}{}
	v := c.view.Load().next()
	c.applyWorkloads(src, u, v, touched)
	for _, host := range u.Removed {
		c.setService(src, host, nil, touched)
	}
	for _, s := range u.Services {
		c.setService(src, s.Host, ordered(s), touched)
	}
	changes := map[model.Host]Change{}
	for host := range touched {
		old := v.Service(host)
		merged := c.merge(host)
		change := diff(old, merged)
		if change == 0 {
			continue
		}
		changes[host] = change
		if merged == nil {
			v.services = v.services.Delete(string(host))
		} else {
			v.services = v.services.Set(string(host), merged)
		}
	}
	c.view.Store(v)
	if len(changes) > 0 {
		for sub := range c.subs {
			sub.add(changes)
		}
	}
	c.mu.Unlock()
}

// completeRemovals turns a full update into one that names what is gone.
func completeRemovals(src *source, u model.Update) model.Update {
	named := make(map[model.Host]struct{}, len(u.Services))
	for _, s := range u.Services {
		named[s.Host] = struct{}{}
	}
	u.Removed = slices.Clone(u.Removed)
	for host := range src.services {
		if _, ok := named[host]; !ok {
			u.Removed = append(u.Removed, host)
		}
	}
	running := make(map[string]struct{}, len(u.Workloads))
	for _, w := range u.Workloads {
		running[w.Name] = struct{}{}
	}
	u.RemovedWorkloads = slices.Clone(u.RemovedWorkloads)
	for name := range src.workloads {
		if _, ok := running[name]; !ok {
			u.RemovedWorkloads = append(u.RemovedWorkloads, name)
		}
	}
	return u
}

// setService replaces what src holds under host; nil removes it.
func (c *Catalog) setService(src *source, host model.Host, s *model.Service, touched map[model.Host]struct{}) {
	old := src.services[host]
	if old == nil && s == nil {
		return
	}
	touched[host] = struct{}{}
	switch {
	case s == nil:
		delete(src.services, host)
		rest := slices.DeleteFunc(slices.Clone(c.holders[host]), func(o *source) bool { return o == src })
		if len(rest) == 0 {
			delete(c.holders, host)
		} else {
			c.holders[host] = rest
		}
	default:
		src.services[host] = s
		if old == nil {
			c.holders[host] = append(c.holders[host], src)
			slices.SortFunc(c.holders[host], c.byPriority)
		}
	}
	c.reindex(host, old, s)
}

// ordered returns s with ports and endpoints in the order that model.Service
// promises; a source that kept the promise costs one comparison an endpoint.
func ordered(s *model.Service) *model.Service {
	byNumber := func(a, b model.Port) int { return int(a.Number) - int(b.Number) }
	if slices.IsSortedFunc(s.Endpoints, compareEndpoints) && slices.IsSortedFunc(s.Ports, byNumber) {
		return s
	}
	sorted := *s
	sorted.Ports = slices.SortedStableFunc(slices.Values(s.Ports), byNumber)
	sorted.Endpoints = slices.SortedStableFunc(slices.Values(s.Endpoints), compareEndpoints)
	return &sorted
}

// reindex keeps hostsAt in step when one source's part of host changes.
func (c *Catalog) reindex(host model.Host, old, next *model.Service) {
	if old != nil {
		for i := range old.Endpoints {
			addr := old.Endpoints[i].Address
			if c.reportedAt(host, addr) {
				continue
			}
			rest := slices.DeleteFunc(slices.Clone(c.hostsAt[addr]), func(h model.Host) bool { return h == host })
			if len(rest) == 0 {
				delete(c.hostsAt, addr)
			} else {
				c.hostsAt[addr] = rest
			}
		}
	}
	if next != nil {
		for i := range next.Endpoints {
			addr := next.Endpoints[i].Address
			if !slices.Contains(c.hostsAt[addr], host) {
				c.hostsAt[addr] = append(c.hostsAt[addr], host)
			}
		}
	}
}

// reportedAt reports whether any source still has an endpoint of host at addr.
func (c *Catalog) reportedAt(host model.Host, addr netip.AddrPort) bool {
	for _, src := range c.holders[host] {
		endpoints := src.services[host].Endpoints
		_, found := slices.BinarySearchFunc(endpoints, addr, func(e model.Endpoint, a netip.AddrPort) int {
			return e.Address.Compare(a)
		})
		if found {
			return true
		}
	}
	return false
}

func (c *Catalog) byPriority(a, b *source) int {
	if pa, pb := c.priority[a.name], c.priority[b.name]; pa != pb {
		return pa - pb
	}
	return strings.Compare(a.name, b.name)
}

// applyWorkloads updates src's workloads and marks the hosts whose endpoints
// they join, before and after.
func (c *Catalog) applyWorkloads(src *source, u model.Update, v *View, touched map[model.Host]struct{}) {
	set := func(name string, next *model.Workload) {
		old := src.workloads[name]
		if old == nil && next == nil {
			return
		}
		key := src.name + "/" + name
		if old != nil {
			c.unjoin(src, old, touched)
		}
		if next == nil {
			delete(src.workloads, name)
			v.workloads = v.workloads.Delete(key)
			return
		}
		src.workloads[name] = next
		v.workloads = v.workloads.Set(key, next)
		c.join(src, next, touched)
	}
	for _, name := range u.RemovedWorkloads {
		set(name, nil)
	}
	for _, w := range u.Workloads {
		set(w.Name, w)
	}
}

// Sources lists the names of sources that ever wrote, ascending.
func (c *Catalog) Sources() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.sources))
}
