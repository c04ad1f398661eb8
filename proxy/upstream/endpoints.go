package upstream

import (
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
)

// Choice is what a policy may look at when it picks a host.
type Choice struct {
	Hash    uint64 // of the route's hash policy
	HasHash bool
	Random  uint64
	Now     clock.Instant // which hosts rest
	// Tried are hosts to avoid while others are there.
	Tried []*Host
}

// Pick chooses a host, or returns nil when none takes traffic. It takes no lock
// and does not allocate.
func (c *Cluster) Pick(ch *Choice) *Host { return c.hosts.Load().pick(ch) }

// Hosts are all hosts, ascending by address; read-only.
func (c *Cluster) Hosts() []*Host { return c.hosts.Load().hosts }

// SetEndpoints replaces the endpoints. Hosts whose address stays keep pool and
// counters; those that go close their idle connections, and finish what is under
// way. Of endpoints with one address the first counts.
func (c *Cluster) SetEndpoints(endpoints []Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.hosts.Load()
	if old.same(endpoints) {
		return
	}
	before := make(map[netip.AddrPort]*Host, len(old.hosts))
	for _, h := range old.hosts {
		before[h.Addr] = h
	}
	hosts := make([]*Host, 0, len(endpoints))
	seen := make(map[netip.AddrPort]struct{}, len(endpoints))
	for i := range endpoints {
		e := endpoints[i]
		if _, twice := seen[e.Addr]; twice {
			continue
		}
		seen[e.Addr] = struct{}{}
		e.Weight = max(e.Weight, 1)
		h := before[e.Addr]
		if h == nil {
			h = &Host{Addr: e.Addr}
		}
		delete(before, e.Addr)
		if was := h.meta.Load(); was == nil || *was != e {
			h.meta.Store(new(e))
		}
		hosts = append(hosts, h)
	}
	c.hosts.Store(newHostSet(hosts, c.settings.Load()))
	for _, h := range before {
		h.gone.Store(true)
		h.Idle.Close()
	}
}

// same reports whether endpoints are those of h already, so that an update that
// changes nothing does not start rounds and rings anew.
func (h *hostSet) same(endpoints []Endpoint) bool {
	return len(h.hosts) > 0 && len(h.hosts) == len(endpoints) &&
		!slices.ContainsFunc(endpoints, func(e Endpoint) bool {
			e.Weight = max(e.Weight, 1)
			i, found := slices.BinarySearchFunc(h.hosts, e.Addr, func(h *Host, a netip.AddrPort) int { return h.Addr.Compare(a) })
			return !found || *h.hosts[i].meta.Load() != e
		})
}
