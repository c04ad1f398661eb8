package http1

import (
	"errors"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

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
	resend := k.freeze()
	k.step = k.exchange.Answered(r, resend, k.first)
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
	case r.status == 204:
		for i := range r.fields {
			if r.fields[i].kind == fieldContentLength {
				r.fields[i].drop = true
			}
		}
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

func (k *call) send(p []byte) bool {
	err := k.d.c.Write(p)
	switch {
	case err == nil:
		return false
	case errors.Is(err, conn.ErrStalled):
		return k.fail(codec.DownstreamStalled)
	}
	return k.fail(codec.DownstreamGone)
}
