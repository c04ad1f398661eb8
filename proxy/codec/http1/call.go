package http1

import (
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// call is what a connection needs while a request is under way. It is pooled:
// an idle connection has none.
type call struct {
	d *downstream

	in       conn.Buffer // request bytes; the head stays until the exchange ends
	req      request
	reqBody  body
	bodyAt   int // where unread body begins in in
	exchange codec.Exchange
	step     *codec.Step
	host     string // set by a rule
	keep     bool   // the downstream connection goes on after this
	websocket,
	began bool // the head of a response went downstream
	requestID [36]byte

	// One attempt's.
	up         *pool.Conn
	reused     bool
	unsent     bool // the request could not be written whole
	sentBefore uint64
	phase      phase
	failure    codec.Failure
	resp       response
	respBody   body
	chunkedOut bool
	rbuf       conn.Buffer
	out        []byte
	sent       clock.Instant
	first      clock.Instant

	requestBytes  int64
	responseBytes int64
	seenBytes     int64 // responseBytes when the watch last looked
	end           codec.End

	upload upload
	active atomic.Int64 // clock.Instant of the last byte in either direction
}

// phase is how far an attempt is.
type phase uint8

const (
	phaseSend phase = iota
	phaseHead
	phaseBody
	phaseDone  // the response went downstream whole
	phaseRetry // step says what is next
	phaseFailed
	phaseUpgraded
)

// maxScratch is the largest scratch buffer that is kept for the next request.
const maxScratch = 2 * conn.LargeBuffer

func (k *Codec) newCall(d *downstream) *call {
	c := k.calls.Get().(*call)
	c.d = d
	c.req.reset()
	return c
}

// release gives a call back. Its exchange has ended.
func (k *Codec) release(c *call) {
	c.in.Release()
	c.rbuf.Release()
	if cap(c.out) > maxScratch {
		c.out = nil
	}
	c.d, c.exchange, c.step, c.up = nil, nil, nil, nil
	c.req.buf, c.resp.buf, c.reqBody.trailer.buf, c.respBody.trailer.buf = nil, nil, nil, nil
	c.end = codec.End{}
	k.calls.Put(c)
}

// nextRequest makes c ready for the next request on the same connection.
func (c *call) nextRequest() {
	c.req.reset()
	c.exchange, c.step, c.up = nil, nil, nil
	c.began = false
}

// finishExchange ends the exchange with what is known.
func (c *call) finishExchange(status int, f codec.Failure, at clock.Instant) {
	e := &c.end
	*e = codec.End{
		At: at, Sent: c.sent, First: c.first, Status: status, Failure: f,
		RequestBytes: c.requestBytes, ResponseBytes: c.responseBytes, Request: &c.req,
		DownstreamProtocol: protocols[c.req.minor], UpstreamProtocol: protocols[1],
		Upgraded: c.phase == phaseUpgraded,
	}
	x := c.exchange
	c.exchange = nil
	x.End(e)
}

var protocols = [2]string{"HTTP/1.0", "HTTP/1.1"}
