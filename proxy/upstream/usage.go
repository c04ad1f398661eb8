package upstream

import (
	"sync/atomic"
)

// usage counts what of a cluster's limits is in use. The fields are apart from
// each other by a cache line, for all connections of a cluster write them.
type usage struct {
	_           [64]byte
	requests    atomic.Int64
	_           [56]byte
	connections atomic.Int64
	_           [56]byte
	retries     atomic.Int64
	_           [56]byte
}

func acquire(n *atomic.Int64, limit uint32) bool {
	if n.Add(1) > int64(limit) {
		n.Add(-1)
		return false
	}
	return true
}

// AcquireRequest takes one of the cluster's requests; ReleaseRequest gives it
// back. False means that the limit is reached; who asked counts that.
func (c *Cluster) AcquireRequest() bool {
	return acquire(&c.limits.requests, c.settings.Load().Limits.Requests)
}

// ReleaseRequest gives back what AcquireRequest took.
func (c *Cluster) ReleaseRequest() { c.limits.requests.Add(-1) }

// AcquireConnection takes one of the cluster's connections, to be given back by
// ReleaseConnection when it closes. False means that the limit is reached; who
// asked counts that.
func (c *Cluster) AcquireConnection() bool {
	return acquire(&c.limits.connections, c.settings.Load().Limits.Connections)
}

// AcquireEvicting is AcquireConnection that makes room: it closes idle connections
// of the cluster's hosts, which would otherwise hold the limit against a host that
// has none. False means that all connections are at work.
func (c *Cluster) AcquireEvicting() bool {
	for _, h := range c.Hosts() {
		for h.Idle.Evict() {
			if c.AcquireConnection() {
				return true
			}
		}
	}
	return false
}

// ReleaseConnection gives back what AcquireConnection and AcquireEvicting took.
func (c *Cluster) ReleaseConnection() { c.limits.connections.Add(-1) }

// AcquireRetry takes one of the cluster's retries, by limit and by budget;
// ReleaseRetry gives it back when that attempt ends. False means that the
// limit is reached; who asked counts that.
func (c *Cluster) AcquireRetry() bool {
	l := &c.settings.Load().Limits
	budget := max(int64(l.RetryBudgetMin), c.limits.requests.Load()*int64(l.RetryBudgetPercent)/100)
	return acquire(&c.limits.retries, uint32(min(int64(l.Retries), budget)))
}

// ReleaseRetry gives back what AcquireRetry took.
func (c *Cluster) ReleaseRetry() { c.limits.retries.Add(-1) }
