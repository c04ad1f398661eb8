package http1

import (
	"errors"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// watchEvery is how often a waiting exchange looks whether its client is still
// there and its time is not up.
const watchEvery = time.Second

// flushAt is how many bytes of a response are gathered into one write.
const flushAt = 16 << 10

// connect takes an idle connection, unless fresh is set, or opens one.
func (k *call) connect(fresh bool) codec.Failure {
	step, d := k.step, k.d
	now := d.c.Now()
	for !fresh {
		up := step.Host.Idle.Get(now)
		if up == nil {
			break
		}
		if up.Fresh() {
			k.up, k.reused = up, true
			return codec.None
		}
		up.Close()
	}
	var failure codec.Failure
	k.up, failure = d.dial.Connect(d.c, step)
	k.reused = false
	return failure
}

// begin prepares an attempt on the connection that connect found.
func (k *call) begin() {
	k.phase, k.failure = phaseSend, codec.None
	k.sentBefore = k.up.Sent()
	k.up.Requests++
	k.resp.reset()
	k.sent, k.first, k.seenBytes = 0, 0, 0
	k.unsent = false
}

// attempt sends a request that is here as a whole, and passes the answer on.
// phase tells the outcome.
func (k *call) attempt() {
	for fresh := false; ; fresh = true {
		if f := k.connect(fresh); f != codec.None {
			k.phase, k.failure = phaseFailed, f
			return
		}
		k.begin()
		k.rewindBody(k.d.cfg.MaxHeadBytes)
		k.requestBytes = 0
		k.out = k.appendRequest(k.out[:0])
		// The body was found well-formed before.
		k.out, _ = k.appendBody(k.out)
		err := k.up.Loop((*exchange)(k))
		if again := k.closeAttempt(err); !again || fresh {
			return
		}
	}
}

// closeAttempt keeps or closes the connection. It returns true when the attempt
// died of a connection that had been idle and may be made again at once.
func (k *call) closeAttempt(err error) (again bool) {
	up := k.up
	up.WakeAt(0)
	if err != nil && k.phase < phaseDone {
		k.fail(codec.Reset)
	}
	switch {
	case k.phase == phaseUpgraded:
		return false
	case k.phase == phaseDone && k.reusable():
		k.rbuf.Release()
		k.step.Host.Idle.Put(up, k.d.idleSince)
		return false
	}
	dead := k.phase == phaseFailed && (k.failure == codec.Reset || k.failure == codec.ResetBeforeSent) &&
		!k.began && k.first == 0
	if dead && k.failure == codec.Reset && up.Unseen(k.sentBefore) {
		k.failure = codec.ResetBeforeSent
	}
	k.rbuf.Release()
	up.Close()
	return dead && k.reused && (k.failure == codec.ResetBeforeSent || k.req.repeatable())
}

// reusable reports whether the upstream connection may carry another request.
func (k *call) reusable() bool {
	limit := k.step.Settings.MaxRequestsPerConnection
	return k.resp.persistent() && k.respBody.framing != closeBody && k.rbuf.Len() == 0 &&
		(limit == 0 || k.up.Requests < limit) && !k.step.Host.Gone()
}

func (k *call) fail(f codec.Failure) bool {
	k.phase, k.failure = phaseFailed, f
	return true
}

// exchange is a call as the handler of its upstream connection.
type exchange call

// Ready sends the request and reads the response.
func (x *exchange) Ready(c *conn.Conn) bool {
	k := (*call)(x)
	if k.phase == phaseSend {
		err := c.Write(k.out)
		k.sent = c.Now()
		k.active.Store(int64(k.sent))
		k.phase = phaseHead
		k.watch(c, k.sent)
		if err == nil {
			return false
		}
		k.unsent = true // it may have answered before it ended the connection
	}
	if c.Woken() && !k.check(c) {
		return true
	}
	for {
		// A response that is not complete is read until nothing is there, so that
		// an end of stream that came along with bytes is seen.
		room := k.rbuf.Room()
		n, err := c.TryRead(room)
		if err != nil {
			if errors.Is(err, conn.ErrWouldBlock) {
				if k.rbuf.Len() == 0 {
					k.rbuf.Release()
				}
				return k.unsent && k.fail(codec.Reset)
			}
			return k.ended()
		}
		if k.first == 0 {
			k.first = c.Now()
		}
		k.rbuf.Filled(n)
		if k.relay() {
			return true
		}
		if n == len(room) && k.rbuf.Len() == 0 {
			k.rbuf.Grow()
		}
	}
}

// watch arms the timer of a waiting exchange.
func (k *call) watch(c *conn.Conn, now clock.Instant) {
	at := clock.Earlier(now.Add(watchEvery), k.step.By)
	if k.phase == phaseHead {
		at = clock.Earlier(at, k.step.TryBy)
	}
	if idle := k.idle(); idle > 0 && idle < watchEvery {
		at = clock.Earlier(at, clock.Instant(k.active.Load()).Add(idle))
	}
	c.WakeAt(at)
}

func (k *call) idle() time.Duration {
	switch idle := k.step.Idle; {
	case idle == 0:
		return k.d.cfg.StreamIdle
	default:
		return idle
	}
}

// check looks at the time and at the client; false: the attempt is over.
func (k *call) check(c *conn.Conn) bool {
	now := c.Now()
	step := k.step
	idle := k.idle()
	if k.responseBytes != k.seenBytes { // bytes were passed on since the last look
		k.seenBytes = k.responseBytes
		k.active.Store(int64(now))
	}
	switch {
	case step.By != 0 && now >= step.By:
		k.fail(codec.Timeout)
	case k.phase == phaseHead && step.TryBy != 0 && now >= step.TryBy:
		k.fail(codec.TryTimeout)
	case idle > 0 && now.Sub(clock.Instant(k.active.Load())) >= idle:
		k.fail(codec.IdleTimeout)
		if k.upload.running && !k.upload.complete.Load() {
			k.failure = codec.RequestTimeout
		}
	case (!k.upload.running || k.upload.complete.Load()) && k.d.gone():
		k.fail(codec.DownstreamGone)
	default:
		k.watch(c, now)
		return true
	}
	return false
}

// ended is called when the upstream ended its stream.
func (k *call) ended() bool {
	if k.phase == phaseBody && k.respBody.framing == closeBody {
		k.respBody.done = true
		return k.relay()
	}
	return k.fail(codec.Reset)
}
