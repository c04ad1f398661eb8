package codec

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// Dialer opens connections to hosts for one downstream connection.
type Dialer func(addr netip.AddrPort, timeout time.Duration) (net.Conn, error)

// NewDialer returns a dialer whose dials end with ctx.
func NewDialer(ctx context.Context) Dialer {
	return func(addr netip.AddrPort, timeout time.Duration) (net.Conn, error) {
		dialer := net.Dialer{Timeout: timeout}
		// Multipath TCP would keep splice, sockmap and SO_ORIGINAL_DST from working.
		dialer.SetMultipathTCP(false)
		return dialer.DialContext(ctx, "tcp", addr.String())
	}
}

// Connect opens a connection to the step's host on behalf of client: within the
// cluster's limit, counted, and released when it is closed. It blocks for the
// cluster's connect time-out or until the step's time is up.
func (d Dialer) Connect(client *conn.Conn, step *Step) (*pool.Conn, Failure) {
	cluster, shard := step.Cluster, client.Shard()
	if !cluster.AcquireConnection() && !cluster.AcquireEvicting() {
		cluster.Stats.ConnectionOverflow.Add(shard, 1)
		return nil, ConnectOverflow
	}
	limit, cause := step.Settings.ConnectTimeout, ConnectTimeout
	now := client.Now()
	if by := clock.Earlier(step.By, step.TryBy); by != 0 && by.Sub(now) < limit {
		limit, cause = max(by.Sub(now), time.Millisecond), TryTimeout
		if by == step.By {
			cause = Timeout
		}
	}
	nc, err := d(step.Host.Addr, limit)
	if err != nil {
		cluster.ReleaseConnection()
		cluster.Stats.ConnectFailures.Add(shard, 1)
		if cause != Timeout && step.Host.Refused(client.Now()) {
			cluster.Stats.FailureEject.Add(shard, 1)
		}
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return nil, cause
		}
		return nil, ConnectRefused
	}
	c, err := conn.New(nc, client.Wheel(), shard)
	if err != nil {
		_ = nc.Close() // it was not used yet
		cluster.ReleaseConnection()
		return nil, ConnectRefused
	}
	step.Host.Answered()
	cluster.Stats.ConnectionTotal.Add(shard, 1)
	cluster.Stats.ConnectionActive.Add(shard, 1)
	up := pool.NewConn(c, func() {
		cluster.ReleaseConnection()
		cluster.Stats.ConnectionActive.Add(shard, -1)
	})
	up.Expiry = step.Settings.IdleTimeout
	return up, None
}
