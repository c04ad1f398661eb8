package stream

import (
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// exchange is one HTTP request and its answer. It is pooled; reset clears what
// one request leaves behind.
type exchange struct {
	h *HTTP
	c *conn.Conn

	request  router.Request
	start    clock.Instant
	route    *router.Route
	cluster  *upstream.Cluster
	host     *upstream.Host // of the attempt under way, or the last one
	choice   upstream.Choice
	tried    [maxTried]*upstream.Host
	attempts int
	trying   bool // an attempt is counted as active
	inUse    bool // a request slot of the cluster is held
	retrying bool // a retry slot of the cluster is held
	flags    telemetry.Flags
	step     codec.Step
	location []byte
	entry    telemetry.Entry
}

// maxTried is how many tried hosts are remembered for a request; more attempts
// than that may meet a host again.
const maxTried = 8

// Begin implements codec.Exchange.
func (x *exchange) Begin(r router.Request, at clock.Instant) *codec.Step {
	stats, shard := x.h.Stats, x.c.Shard()
	stats.RequestTotal.Add(shard, 1)
	stats.RequestActive.Add(shard, 1)
	x.request, x.start = r, at
	s := &x.step
	s.RequestID = x.h.RequestID
	table := x.h.Routes.Load()
	if table == nil {
		return x.answer(503, telemetry.NoRouteFound, "")
	}
	route := table.Match(r, random())
	if route == nil {
		return x.answer(404, telemetry.NoRouteFound, "")
	}
	x.route, s.Route = route, route
	switch {
	case route.Direct != nil:
		x.answer(route.Direct.Status, 0, "")
		s.Reply.Body, s.Reply.Response, s.Reply.ContentType = route.Direct.Body, &route.Direct.Response, textPlain
		return s
	case route.Redirect != nil:
		x.answer(route.Redirect.Status, 0, "")
		x.location = route.AppendLocation(x.location[:0], r, "http")
		s.Reply.Location, s.Reply.Response = x.location, &route.Redirect.Response
		return s
	}
	d := route.Pick(random())
	if d == nil {
		return x.answer(503, telemetry.NoClusterFound, "")
	}
	x.cluster, s.Cluster = d.Cluster, d.Cluster
	s.Request, s.Response, s.HostRewrite = &d.Request, &d.Response, route.HostRewrite
	if !d.Cluster.Known() {
		return x.answer(503, telemetry.NoClusterFound, "")
	}
	s.Settings = d.Cluster.Settings()
	if !d.Cluster.AcquireRequest() {
		d.Cluster.Stats.RequestOverflow.Add(shard, 1)
		x.answer(503, telemetry.UpstreamOverflow, bodyOverflow)
		s.Reply.Response = &overloaded
		return s
	}
	x.inUse = true
	if route.Timeout > 0 {
		s.By = at.Add(route.Timeout)
	}
	s.Idle = route.IdleTimeout
	x.choice = upstream.Choice{Random: random()}
	x.choice.Hash, x.choice.HasHash = route.Hash(r)
	return x.try(at)
}

// try picks a host for the next attempt.
func (x *exchange) try(at clock.Instant) *codec.Step {
	shard := x.c.Shard()
	x.choice.Now = at
	host := x.cluster.Pick(&x.choice)
	if host == nil {
		x.cluster.Stats.NoHost.Add(shard, 1)
		return x.answer(503, telemetry.NoHealthyUpstream, bodyNoHost)
	}
	x.host, x.trying = host, true
	host.Active.Add(1)
	if x.attempts < maxTried {
		x.tried[x.attempts] = host
	}
	x.attempts++
	x.cluster.Stats.RequestTotal.Add(shard, 1)
	x.cluster.Stats.RequestActive.Add(shard, 1)
	s := &x.step
	s.Action, s.Host, s.Attempt, s.TryBy, s.Wait = codec.Send, host, x.attempts, 0, 0
	if retry := x.route.Retry; retry != nil && retry.PerTryTimeout > 0 {
		s.TryBy = at.Add(retry.PerTryTimeout)
	}
	return s
}

// endTry ends the attempt under way.
func (x *exchange) endTry(failed bool) {
	if !x.trying {
		return
	}
	x.trying = false
	x.host.Active.Add(-1)
	shard := x.c.Shard()
	x.cluster.Stats.RequestActive.Add(shard, -1)
	if failed {
		x.cluster.Stats.RequestFailed.Add(shard, 1)
	}
	if x.retrying {
		x.retrying = false
		x.cluster.ReleaseRetry()
	}
}

// Answered implements codec.Exchange.
func (x *exchange) Answered(r codec.Response, resend bool, at clock.Instant) *codec.Step {
	s := &x.step
	s.Action = codec.Relay
	unsent := isUnprocessed(r)
	if unsent {
		x.dropMark()
		// Only a sidecar may say so: what an application claims of itself is
		// not passed on, and nobody outside the mesh hears of it.
		unsent = !x.h.Inbound
	}
	retry := x.route.Retry
	if retry == nil || !resend || !x.inTime(at) {
		return s
	}
	if !wantsRetry(retry, r) && (!unsent || retry.On&router.RefusedStream == 0) {
		return s
	}
	if !x.mayRetry(retry) {
		return s
	}
	x.endTry(true)
	return x.again(retry, at, !unsent)
}

// dropMark takes unprocessedHeader off the answer that is relayed. It allocates;
// only answers of sidecars whose application is dead carry the mark.
func (x *exchange) dropMark() {
	var ops router.HeaderOps
	if x.step.Response != nil {
		ops = *x.step.Response
	}
	ops.Remove = append(slices.Clip(ops.Remove), unprocessedHeader)
	x.step.Response = &ops
}

// Failed implements codec.Exchange.
func (x *exchange) Failed(f codec.Failure, resend bool, at clock.Instant) *codec.Step {
	s := &x.step
	if f == codec.DownstreamGone || f == codec.DownstreamStalled {
		x.flags |= telemetry.DownstreamConnectionEnd
		s.Action = codec.Abort
		return s
	}
	if f == codec.ConnectOverflow {
		x.endTry(true)
		x.answer(503, telemetry.UpstreamOverflow, bodyOverflow)
		s.Reply.Response = &overloaded
		return s
	}
	retry := x.route.Retry
	if retry != nil && retry.On&retriedAfter(f) != 0 && resend && x.inTime(at) {
		if x.mayRetry(retry) {
			x.endTry(true)
			return x.again(retry, at, false)
		}
	}
	x.endTry(f != codec.DownstreamBroken)
	a := answers[f]
	x.answer(a.status, a.flag, a.body)
	if x.h.Inbound && (f == codec.ConnectRefused || f == codec.ConnectTimeout) {
		s.Reply.Response = &unprocessed
	}
	return s
}

// inTime reports whether the request's time is not up.
func (x *exchange) inTime(at clock.Instant) bool { return x.step.By == 0 || at < x.step.By }

// mayRetry reports whether another attempt is allowed, and takes a retry slot.
func (x *exchange) mayRetry(retry *router.Retry) bool {
	if x.attempts > retry.Attempts {
		x.flags |= telemetry.RetryLimitExceeded
		return false
	}
	// The slot of an earlier retry is given back first: a request holds one.
	if x.retrying {
		x.retrying = false
		x.cluster.ReleaseRetry()
	}
	if !x.cluster.AcquireRetry() {
		x.cluster.Stats.RetryOverflow.Add(x.c.Shard(), 1)
		x.flags |= telemetry.UpstreamOverflow
		return false
	}
	x.cluster.Stats.Retries.Add(x.c.Shard(), 1)
	return true
}

// again makes the next attempt. It waits first when the host answered and asked
// for it by its answer, or when no other host is there; a host that died says
// nothing about the next one.
func (x *exchange) again(retry *router.Retry, at clock.Instant, answered bool) *codec.Step {
	x.retrying = true
	tried := x.tried[:min(x.attempts, maxTried)]
	if retry.AvoidTried {
		x.choice.Tried = tried
	}
	x.choice.Random = random()
	wait := backoff(retry, x.attempts)
	s := x.try(at)
	if s.Action != codec.Send || !answered && !slices.Contains(tried, s.Host) {
		return s
	}
	if s.By != 0 {
		wait = min(wait, s.By.Sub(at))
	}
	s.Wait = wait
	if s.TryBy != 0 {
		s.TryBy = s.TryBy.Add(wait)
	}
	return s
}

// End implements codec.Exchange.
func (x *exchange) End(e *codec.End) {
	shard := x.c.Shard()
	failed := e.Status >= 500 || e.Status == 0 || e.Failure != codec.None
	x.endTry(failed && x.trying)
	duration := e.At.Sub(x.start)
	var waited time.Duration
	if e.Sent != 0 && e.First != 0 {
		waited = e.First.Sub(e.Sent)
	}
	if x.cluster != nil && e.Sent != 0 {
		took := e.At.Sub(e.Sent)
		x.cluster.Stats.DurationTotal.Add(shard, int64(took))
		x.cluster.Stats.Duration.Observe(shard, took)
	}
	if x.inUse {
		x.cluster.ReleaseRequest()
	}
	if x.retrying { // no host was found for it
		x.cluster.ReleaseRetry()
	}
	stats := x.h.Stats
	stats.RequestActive.Add(shard, -1)
	stats.RequestTimeTotal.Add(shard, int64(duration))
	stats.ProcessTimeTotal.Add(shard, int64(duration-waited))
	stats.Duration.Observe(shard, duration)
	if failed {
		stats.RequestFailed.Add(shard, 1)
	}
	if x.h.Log != nil {
		x.record(e, duration, waited)
		x.h.Log.Log(shard, &x.entry)
	}
	h := x.h
	x.reset()
	h.exchanges.Put(x)
}

func (x *exchange) reset() {
	location := x.location[:0]
	x.h, x.c, x.request, x.route, x.cluster, x.host = nil, nil, nil, nil, nil, nil
	clear(x.tried[:min(x.attempts, maxTried)])
	x.choice = upstream.Choice{}
	x.attempts, x.flags = 0, 0
	x.trying, x.inUse, x.retrying = false, false, false
	x.step = codec.Step{}
	x.location = location
}
