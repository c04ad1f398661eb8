package http1

import (
	"errors"
	"io"
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

// exchange is a call as the handler of its upstream connection.
type exchange call

// Ready sends the request and reads the response.
func (x *exchange) Ready(c *conn.Conn) bool {
	k := (*call)(x)
	if k.phase == phaseSend {
		err := k.sendUp()
		k.sent = c.Now()
		k.active.Store(int64(k.sent))
		k.phase = phaseHead
		k.watch(c, k.sent)
		switch {
		case err == nil:
			return false
		case errors.Is(err, conn.ErrLate):
			return k.late()
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
		if len(room) == 0 { // a head or trailer larger than any buffer
			return k.fail(codec.BadResponse)
		}
		n, err := c.TryRead(room)
		if err != nil {
			if errors.Is(err, conn.ErrWouldBlock) {
				if k.rbuf.Len() == 0 {
					k.rbuf.Release()
				}
				return k.unsent && k.fail(codec.Reset)
			}
			return k.ended(err)
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

// sendUp writes what was gathered for the upstream, as long as the attempt may take.
func (k *call) sendUp() error {
	return k.up.WriteBy(k.out, clock.Earlier(k.step.By, k.step.TryBy))
}

// late ends an attempt whose time was up while it was sent.
func (k *call) late() bool {
	if by := k.step.By; by != 0 && k.d.c.Now() >= by {
		return k.fail(codec.Timeout)
	}
	return k.fail(codec.TryTimeout)
}

// ended is called when the upstream ended its stream: in order, with io.EOF, or not.
func (k *call) ended(err error) bool {
	if errors.Is(err, io.EOF) && k.phase == phaseBody && k.respBody.framing == closeBody {
		k.respBody.done = true
		return k.relay()
	}
	return k.fail(codec.Reset)
}

// relay passes on what was read of the response; true: the attempt is over.
func (k *call) relay() bool {
	if k.phase == phaseHead {
		k.out = k.out[:0]
		for {
			done, err := k.resp.parse(k.rbuf.Bytes(), k.d.cfg.MaxHeadBytes)
			if err != nil {
				return k.fail(codec.BadResponse)
			}
			if !done {
				return k.flush()
			}
			if k.resp.status >= 200 || k.resp.status == 101 {
				break
			}
			k.interim()
		}
		if k.answered() {
			return true
		}
	}
	return k.relayBody()
}

// interim passes on a 1xx response. 100 Continue is ours to send.
func (k *call) interim() {
	if k.resp.status != 100 && k.req.minor == 1 {
		k.resp.dropLength()
		k.out = k.appendResponse(k.out)
	}
	k.rbuf.Skip(k.resp.size)
	k.resp.reset()
}

// answered handles a complete head; true: the attempt is over.
func (k *call) answered() bool {
	r := &k.resp
	if r.status == 101 && !k.websocket {
		return k.fail(codec.BadResponse) // nobody asked
	}
	k.judgeHead()
	if k.step.Action == codec.Send {
		k.phase = phaseRetry
		return true
	}
	k.phase = phaseBody
	k.frame()
	r.applyOps(k.step.Response)
	if k.upload.running && !k.upload.complete.Load() && r.status >= 300 && r.status != 101 {
		k.keep = false // the rest of the request will not be read
	}
	k.out = k.appendResponse(k.out)
	k.rbuf.Skip(r.size)
	k.began = true
	if r.status == 101 {
		if k.flush() {
			return true
		}
		k.phase = phaseUpgraded
		return true
	}
	return false
}

// frame decides how the body is framed on both sides.
func (k *call) frame() {
	r := &k.resp
	f := closeBody
	length := int64(0)
	switch {
	case r.bodyless(k.req.isHead):
		f = noBody
	case r.chunked:
		f = chunkedBody
	case r.length >= 0:
		f, length = lengthBody, r.length
	}
	k.respBody.begin(f, length, k.d.cfg.MaxHeadBytes)
	k.chunkedOut = false
	k.keep = k.keep && !k.d.c.Draining()
	switch {
	case f == chunkedBody || f == closeBody:
		if k.req.minor == 1 {
			k.chunkedOut = true
		} else {
			k.keep = false
		}
	case r.status == 204 || r.status < 200:
		r.dropLength()
	}
}

// relayBody passes on the body that is in the buffer.
func (k *call) relayBody() bool {
	b := &k.respBody
	for !b.done {
		used, data, err := b.next(k.rbuf.Bytes())
		if err != nil {
			return k.fail(codec.BadResponse)
		}
		if used == 0 {
			break
		}
		k.responseBytes += int64(len(data))
		switch {
		case k.chunkedOut:
			k.out = appendChunk(k.out, data)
		case len(k.out)+len(data) <= flushAt:
			k.out = append(k.out, data...)
		default:
			if k.flush() || k.send(data) {
				return true
			}
		}
		if b.done && k.chunkedOut {
			k.out = b.appendLastChunk(k.out) // its trailer lies in the read buffer
		}
		k.rbuf.Skip(used)
		if len(k.out) >= flushAt && k.flush() {
			return true
		}
	}
	if b.done && b.framing == closeBody && k.chunkedOut {
		k.out = append(k.out, "0\r\n\r\n"...)
	}
	if k.flush() {
		return true
	}
	if !b.done {
		return false
	}
	k.phase = phaseDone
	if !k.upload.running {
		k.d.idleSince = k.d.c.Now()
	}
	return true
}

// flush writes what was gathered; true: the client takes nothing any more.
func (k *call) flush() bool {
	if len(k.out) == 0 {
		return false
	}
	failed := k.send(k.out)
	k.out = k.out[:0]
	return failed
}

// send writes to the client. A slow one may take its time when the upstream has
// answered in full; before, it holds up the upstream, whose time is bounded.
func (k *call) send(p []byte) bool {
	by := k.step.By
	if k.respBody.done {
		by = 0
	}
	err := k.d.c.WriteBy(p, by)
	switch {
	case err == nil:
		return false
	case errors.Is(err, conn.ErrLate):
		return k.fail(codec.Timeout)
	case errors.Is(err, conn.ErrStalled):
		return k.fail(codec.DownstreamStalled)
	}
	return k.fail(codec.DownstreamGone)
}
