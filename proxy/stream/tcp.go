package stream

import (
	"cmp"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// tcpSession is one downstream TCP connection and its only exchange.
type tcpSession struct {
	t *TCP
	c *conn.Conn

	start    clock.Instant
	cluster  *upstream.Cluster
	host     *upstream.Host
	tried    [MaxConnectAttempts]*upstream.Host
	attempts int
	trying   bool
	flags    telemetry.Flags
	step     codec.Step
}

// Open implements codec.Session; a TCP connection is one exchange.
func (x *tcpSession) Open() codec.Exchange { return x }

// Malformed implements codec.Session; bytes cannot be.
func (x *tcpSession) Malformed(int, clock.Instant) {}

// Begin implements codec.Exchange. There is no request to look at.
func (x *tcpSession) Begin(_ router.Request, at clock.Instant) *codec.Step {
	x.start = at
	x.cluster = x.t.pick(random())
	if x.cluster == nil || !x.cluster.Known() {
		return x.abort(telemetry.NoClusterFound)
	}
	x.step.Cluster, x.step.Settings = x.cluster, x.cluster.Settings()
	return x.try(at)
}

func (t *TCP) pick(random uint64) *upstream.Cluster {
	var total uint64
	for i := range t.Destinations {
		total += uint64(t.Destinations[i].Weight)
	}
	if total == 0 {
		return nil
	}
	n := random % total
	for i := range t.Destinations {
		d := &t.Destinations[i]
		if n < uint64(d.Weight) {
			return d.Cluster
		}
		n -= uint64(d.Weight)
	}
	return nil
}

func (x *tcpSession) try(at clock.Instant) *codec.Step {
	choice := upstream.Choice{Random: random(), Now: at, Tried: x.tried[:x.attempts]}
	host := x.cluster.Pick(&choice)
	if host == nil {
		x.cluster.Stats.NoHost.Add(x.c.Shard(), 1)
		return x.abort(telemetry.NoHealthyUpstream)
	}
	x.host, x.trying = host, true
	host.Active.Add(1)
	x.tried[x.attempts] = host
	x.attempts++
	x.step.Action, x.step.Host, x.step.Attempt = codec.Send, host, x.attempts
	return &x.step
}

func (x *tcpSession) endTry() {
	if x.trying {
		x.trying = false
		x.host.Active.Add(-1)
	}
}

func (x *tcpSession) abort(flag telemetry.Flags) *codec.Step {
	x.flags |= flag
	x.step.Action = codec.Abort
	return &x.step
}

// Answered implements codec.Exchange; TCP has no response head.
func (x *tcpSession) Answered(codec.Response, bool, clock.Instant) *codec.Step {
	x.step.Action = codec.Relay
	return &x.step
}

// Failed implements codec.Exchange: another host is tried as long as none took
// the connection.
func (x *tcpSession) Failed(f codec.Failure, resend bool, at clock.Instant) *codec.Step {
	x.endTry()
	connect := f == codec.ConnectRefused || f == codec.ConnectTimeout
	if connect && resend && x.attempts < min(cmp.Or(x.t.ConnectAttempts, 3), MaxConnectAttempts) {
		return x.try(at)
	}
	return x.abort(answers[f].flag)
}

// End implements codec.Exchange.
func (x *tcpSession) End(e *codec.End) {
	x.endTry()
	if x.t.Log == nil {
		return
	}
	l := &telemetry.Entry{
		Start: x.c.Wheel().Time(x.start), Duration: e.At.Sub(x.start),
		Flags:        x.flags | e.Flags | failureFlag(e.Failure),
		RequestBytes: e.RequestBytes, ResponseBytes: e.ResponseBytes, Attempts: x.attempts,
		DownstreamProtocol: e.DownstreamProtocol, UpstreamProtocol: e.UpstreamProtocol,
		DownstreamLocal: x.c.LocalAddr(), DownstreamRemote: x.c.RemoteAddr(),
	}
	if e.Sent != 0 {
		l.Process = time.Duration(e.Sent - x.start)
	}
	l.Failed = l.Flags != 0
	if x.cluster != nil {
		l.Cluster = x.cluster.Name
	}
	if x.host != nil {
		l.UpstreamHost, l.TargetApp = x.host.Addr, x.host.Workload()
	}
	x.t.Log.Log(x.c.Shard(), l)
}
