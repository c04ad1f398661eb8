package http1

import (
	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
)

// forbidden is the answer to CONNECT and to upgrades that are not carried, as
// Envoy's.
var forbidden = codec.Reply{Status: 403}

// serve carries out the request whose head is complete. It returns true when the
// next one may be read.
func (d *downstream) serve(k *call) bool {
	r := &k.req
	start := d.idleSince
	d.c.WakeAt(0)
	k.keep = r.persistent() && !d.c.Draining()
	k.sent, k.first, k.requestBytes, k.responseBytes = 0, 0, 0, 0
	k.host, k.began, k.phase = "", false, phaseSend

	var unknown bool
	if k.websocket, unknown = r.upgradeWanted(); unknown || string(r.Method()) == "CONNECT" {
		return d.forbid(k, start)
	}
	k.rewindBody(d.cfg.MaxHeadBytes)
	whole, err := k.bodyWhole()
	if err != nil {
		d.refuse(err, start)
		return false
	}
	k.rewindBody(d.cfg.MaxHeadBytes)
	k.exchange = d.session.Open()
	k.step = k.exchange.Begin(r, start)
	if k.step.Action == codec.Send {
		if k.step.RequestID && !r.hasID {
			k.newRequestID()
		}
		k.host = r.applyOps(k.step.Request)
	}
	if whole {
		return d.carryOut(k)
	}
	// Another protocol begins behind the body, so it cannot begin while that is
	// still coming. Any server may ignore the wish.
	k.websocket = false
	return d.startUpload(k)
}

func (d *downstream) forbid(k *call, now clock.Instant) bool {
	d.session.Malformed(forbidden.Status, now)
	k.keep = false
	k.out = k.appendReply(k.out[:0], &forbidden)
	d.last(d.c.Write(k.out))
	return false
}

// rewindBody makes the body be read from its beginning.
func (k *call) rewindBody(maxBytes int) {
	f := noBody
	switch {
	case k.req.chunked:
		f = chunkedBody
	case k.req.length >= 0:
		f = lengthBody
	}
	k.bodyAt = k.req.size
	k.reqBody.begin(f, max(k.req.length, 0), maxBytes)
}

// bodyWhole reports whether all of the body is in the buffer. It leaves bodyAt
// alone.
func (k *call) bodyWhole() (bool, *malformed) {
	for at := k.req.size; ; {
		used, _, err := k.reqBody.next(k.in.Bytes()[at:])
		if err != nil || used == 0 {
			return k.reqBody.done, err
		}
		at += used
	}
}

// appendBody appends the body that is in the buffer, framed for the upstream, and
// moves bodyAt behind it.
func (k *call) appendBody(dst []byte) ([]byte, *malformed) {
	b := &k.reqBody
	if b.done {
		return dst, nil
	}
	for !b.done {
		used, data, err := b.next(k.in.Bytes()[k.bodyAt:])
		if err != nil {
			return dst, err
		}
		if used == 0 {
			return dst, nil
		}
		k.bodyAt += used
		k.requestBytes += int64(len(data))
		if b.framing == chunkedBody {
			dst = appendChunk(dst, data)
		} else {
			dst = append(dst, data...)
		}
	}
	if b.framing == chunkedBody {
		dst = b.appendLastChunk(dst)
	}
	return dst, nil
}

// carryOut does what the exchange says, for a request that is here as a whole.
func (d *downstream) carryOut(k *call) bool {
	for {
		switch k.step.Action {
		case codec.Answer:
			k.bodyAt += d.bodyRest(k)
			return d.answer(k)
		case codec.Abort:
			k.finishExchange(0, codec.None, d.c.Now())
			d.closing = true
			return false
		}
		if k.step.Wait > 0 {
			d.sleep(k.step.Wait)
		}
		k.attempt()
		if over, next := d.judge(k, true); over {
			return next
		}
	}
}

// bodyRest is how many bytes of the body are still unread in the buffer.
func (d *downstream) bodyRest(k *call) (n int) {
	for {
		used, _, err := k.reqBody.next(k.in.Bytes()[k.bodyAt+n:])
		if err != nil || used == 0 {
			return n
		}
		n += used
	}
}

// judge looks at how an attempt went. over says that the exchange has ended, and
// next that another request may be read; otherwise step says what to do.
func (d *downstream) judge(k *call, resend bool) (over, next bool) {
	switch k.phase {
	case phaseDone:
		k.finishExchange(k.resp.status, codec.None, d.idleSince)
		return true, d.next(k)
	case phaseUpgraded:
		d.startTunnel(k)
		return true, false
	case phaseRetry:
		return false, false
	}
	now := d.c.Now()
	if k.began || k.failure == codec.DownstreamGone || k.failure == codec.DownstreamStalled {
		status := 0
		if k.began {
			status = k.resp.status
		}
		k.finishExchange(status, k.failure, now)
		if k.began {
			d.c.ResetOnClose() // an orderly end could pass for the end of the body
		}
		d.closing = true
		return true, false
	}
	k.step = k.exchange.Failed(k.failure, resend, now)
	return false, false
}

// next moves on to the next request, or ends the connection.
func (d *downstream) next(k *call) bool {
	if !k.reqBody.done {
		d.last(nil) // the answer came early; the rest of the request is not wanted
		return false
	}
	k.in.Skip(k.bodyAt)
	k.nextRequest()
	if k.keep {
		return true
	}
	d.closing = k.in.Len() == 0
	if !d.closing {
		d.last(nil)
	}
	return false
}

// answer sends the exchange's own reply.
func (d *downstream) answer(k *call) bool {
	reply := &k.step.Reply
	if !k.reqBody.done {
		k.keep = false
	}
	k.out = k.appendReply(k.out[:0], reply)
	if !k.req.isHead {
		k.responseBytes = int64(len(reply.Body))
	}
	status, failure := reply.Status, codec.None
	err := d.c.Write(k.out)
	if err != nil {
		failure = codec.DownstreamGone
	}
	d.idleSince = d.c.Now()
	k.finishExchange(status, failure, d.idleSince)
	if err != nil {
		d.closing = true
		return false
	}
	return d.next(k)
}

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
	k.unsent, k.chunkedOut = false, false
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
		k.up = nil
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
