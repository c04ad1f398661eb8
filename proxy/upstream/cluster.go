// Package upstream holds what outlives a configuration: clusters with their
// hosts, connection pools, limits and counters, and the choice of one host.
//
// A Cluster is made once a name and updated in place by proxy/snapshot, so that
// an unchanged host keeps its pool and counters over every update. Readers take
// no lock: hosts and settings are immutable values behind atomic pointers.
package upstream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance"
)

// Cluster is a named group of hosts. NewCluster makes one; any goroutine may call
// its methods.
type Cluster struct {
	Name  string
	Stats *telemetry.Upstream // resolved when the cluster is made

	known    atomic.Bool
	settings atomic.Pointer[Settings]
	hosts    atomic.Pointer[hostSet]
	limits   usage

	mu sync.Mutex // serialises Configure, SetEndpoints and Retire
}

// Settings is the part of a cluster's configuration that requests read. Configure
// fills in defaults.
type Settings struct {
	ConnectTimeout time.Duration // 0 means 5 s, as Envoy's
	IdleTimeout    time.Duration // of a pooled connection; 0 means 1 h, less than 0 no end
	Limits         Limits
	// MaxRequestsPerConnection closes a connection after so many; 0 means never.
	MaxRequestsPerConnection uint32
	// Policy chooses among hosts; nil means round robin.
	Policy balance.Policy
	// PanicPercent is the share of healthy hosts under which health is
	// disregarded, rather than sending everything to the few that are left.
	// nil means 50, as Envoy's; 0 switches it off.
	PanicPercent *float64
	// AppProtocol is what the hosts speak, for dumps and logs; "" is unknown.
	AppProtocol string
}

// Limits bound what a cluster may use at once; 0 means Envoy's defaults: 1024
// of each, but 3 retries.
type Limits struct {
	Connections, Requests, Retries uint32
	NoRetries                      bool // Retries is 0 on purpose
	// RetryBudgetPercent of active requests may be retries (never fewer than
	// RetryBudgetMin at once); it applies beside Retries. 0 means 20.
	RetryBudgetPercent uint32
	RetryBudgetMin     uint32 // 0 means 3
}

// Defaults of Settings and Limits, as Envoy documents them.
const (
	defaultConnectTimeout = 5 * time.Second
	defaultIdleTimeout    = time.Hour
	defaultLimit          = 1024
	defaultRetries        = 3
	defaultBudgetPercent  = 20
	defaultBudgetMin      = 3
	defaultPanicPercent   = 50
)

// NewCluster makes a cluster without hosts, which is unknown until Configure.
func NewCluster(name string, stats *telemetry.Upstream) *Cluster {
	c := &Cluster{Name: name, Stats: stats}
	c.settings.Store(withDefaults(Settings{}))
	c.hosts.Store(&hostSet{})
	return c
}

// Known reports whether the cluster's configuration has arrived and was not
// removed: requests for an unknown cluster answer 503 with flag NC.
func (c *Cluster) Known() bool { return c.known.Load() }

// Settings is never nil, and immutable.
func (c *Cluster) Settings() *Settings { return c.settings.Load() }

// Configure replaces the settings; hosts are rebalanced if the policy changed.
func (c *Cluster) Configure(s Settings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, next := c.settings.Load(), withDefaults(s)
	c.settings.Store(next)
	c.known.Store(true)
	if old.Policy != next.Policy || *old.PanicPercent != *next.PanicPercent {
		c.hosts.Store(c.hosts.Load().rebalance(next))
	}
}

// Retire forgets configuration and hosts; requests under way finish.
func (c *Cluster) Retire() {
	c.SetEndpoints(nil)
	c.known.Store(false)
}

func withDefaults(s Settings) *Settings {
	s.ConnectTimeout = or(s.ConnectTimeout, defaultConnectTimeout)
	s.IdleTimeout = or(s.IdleTimeout, defaultIdleTimeout)
	l := &s.Limits
	l.Connections, l.Requests = or(l.Connections, defaultLimit), or(l.Requests, defaultLimit)
	if l.Retries = or(l.Retries, defaultRetries); l.NoRetries {
		l.Retries = 0
	}
	l.RetryBudgetPercent = or(l.RetryBudgetPercent, defaultBudgetPercent)
	l.RetryBudgetMin = or(l.RetryBudgetMin, defaultBudgetMin)
	if s.Policy == nil {
		s.Policy = balance.RoundRobin{}
	}
	if s.PanicPercent == nil {
		s.PanicPercent = new(float64(defaultPanicPercent))
	}
	return &s
}

func or[T comparable](v, zero T) T {
	if v == *new(T) {
		return zero
	}
	return v
}
