package upstream

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// Host is one endpoint of a cluster, the same value for as long as its address is
// among the cluster's endpoints.
type Host struct {
	Addr netip.AddrPort
	// Idle holds the host's idle HTTP/1 connections.
	Idle pool.Idle
	// Active counts requests (HTTP) or connections (TCP) under way.
	Active atomic.Int64

	// rest is until when the host is passed over because it refused
	// connections; 0: it is not. refusals counts those in a row.
	rest     atomic.Int64
	refusals atomic.Uint32

	gone atomic.Bool
	meta atomic.Pointer[Endpoint]
}

// A host that refuses a connection rests: minRest, doubled with each further
// refusal in a row up to maxRest. Without it a dead host attracts traffic, since
// nobody has fewer requests under way than who refuses them all.
const (
	minRest = 500 * time.Millisecond
	maxRest = 10 * time.Second
)

// Refused says that the host did not take a connection, and lets it rest. It
// reports whether that took the host out of rotation.
func (h *Host) Refused(now clock.Instant) (ejected bool) {
	n := h.refusals.Add(1)
	wait := maxRest
	if n <= 5 {
		wait = min(minRest<<(n-1), maxRest)
	}
	return clock.Instant(h.rest.Swap(int64(now.Add(wait)))) <= now
}

// Answered says that the host is alive. It ends a rest.
func (h *Host) Answered() {
	if h.refusals.Load() != 0 {
		h.refusals.Store(0)
		h.rest.Store(0)
	}
}

// Resting reports whether the host is passed over while others are there.
func (h *Host) Resting(now clock.Instant) bool {
	until := h.rest.Load()
	return until != 0 && clock.Instant(until) > now
}

// Endpoint is what the configuration says of a host; it may change while the
// host stays.
type Endpoint struct {
	Addr     netip.AddrPort
	Weight   uint32 // at least 1
	Health   Health
	Priority uint32 // 0 is served first
	// Workload is the peer's workload name for logs; may be empty.
	Workload string
	Locality string // "region/zone/subzone"; may be empty
}

// Health says whether a host takes traffic.
type Health uint8

// States of health.
const (
	Healthy   Health = iota
	Degraded         // takes traffic when healthy ones do not suffice
	Unhealthy        // takes none, unless too many are
)

// String is the text that /clusters shows.
func (h Health) String() string {
	switch h {
	case Healthy:
		return "healthy"
	case Degraded:
		return "degraded"
	}
	return "unhealthy"
}

// Endpoint returns what the configuration last said of the host; read-only.
func (h *Host) Endpoint() *Endpoint { return h.meta.Load() }

// Workload is the peer's workload name; may be empty.
func (h *Host) Workload() string { return h.meta.Load().Workload }

// Gone reports that the host left its cluster: a connection to it is closed
// after the exchange under way instead of being kept.
func (h *Host) Gone() bool { return h.gone.Load() }
