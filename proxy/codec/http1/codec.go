// Package http1 is HTTP/1.0 and 1.1: it reads requests strictly, sends them to
// hosts over pooled connections and passes the answers back.
//
// The goroutine of the downstream connection reads a head, asks the exchange what
// to do, sends head and body in one write inside the upstream's poll loop and
// relays the response from there; nothing is handed to another goroutine. Only a
// body that did not come with its head gets a second goroutine, so that request
// and response may flow at the same time. A Codec may be used by any number of
// connections.
//
// What is refused, added and removed: README.md. What was weighed:
// ../../RATIONALE.md, "HTTP/1".
package http1

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// Codec serves HTTP/1. Make it with New.
type Codec struct {
	calls sync.Pool // of *call
	now   atomic.Pointer[dateLine]
}

// New returns a codec.
func New() *Codec {
	return &Codec{calls: sync.Pool{New: func() any { return new(call) }}}
}

// Name returns "http1".
func (*Codec) Name() string { return "http1" }

// maxMethod is the longest method Sniff believes in.
const maxMethod = 20

// Sniff looks for a method, a space and the beginning of a target. The preface of
// HTTP/2 looks like that too and is told apart by its target "*".
func (*Codec) Sniff(prefix []byte) codec.Verdict {
	for i, c := range prefix {
		switch {
		case c == ' ' && i > 0:
			return sniffTarget(prefix[:i], prefix[i+1:])
		case c < 'A' || c > 'Z' || i >= maxMethod:
			return codec.NoMatch
		}
	}
	return codec.NeedMore
}

func sniffTarget(method, target []byte) codec.Verdict {
	switch {
	case len(target) == 0:
		return codec.NeedMore
	case string(method) == "PRI":
		return codec.NoMatch
	case target[0] == '/' || target[0] == '*' || classes[target[0]]&isHost != 0:
		return codec.Match
	}
	return codec.NoMatch
}

// Serve implements codec.Codec.
func (k *Codec) Serve(ctx context.Context, c *conn.Conn, cfg codec.Config, s codec.Session) error {
	d := &downstream{codec: k, c: c, cfg: cfg.Defaults(), session: s, dial: codec.NewDialer(ctx),
		idleSince: c.IdleSince()}
	if d.idleSince == 0 {
		d.idleSince = c.Now()
	}
	d.sleep = func(wait time.Duration) {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	d.stop = context.AfterFunc(ctx, c.Abort)
	c.SetStall(d.cfg.StreamIdle)
	return d.run()
}

// run serves the connection until it ends, or rests if it may.
func (d *downstream) run() error {
	orderly := false
	defer func() {
		if !orderly {
			d.unwind()
		}
	}()
	for !d.expired() {
		d.work()
		if d.over {
			break
		}
		d.expect()
		if d.c.MayRest() {
			orderly = true
			d.stop()
			d.c.SetIdle(d.idleSince)
			return conn.ErrAtRest
		}
		if d.c.Watch() != nil {
			break
		}
	}
	orderly = true
	d.stop()
	d.c.Close()
	return d.err
}

// unwind runs while a panic passes: it ends what others count on. The call is in
// no state to be used again.
func (d *downstream) unwind() {
	d.stop()
	d.endTunnel()
	k := d.call
	if k == nil {
		return
	}
	d.abandonUpload(k)
	if k.up != nil {
		k.up.Close()
	}
	if k.exchange != nil {
		k.finishExchange(0, codec.Reset, d.c.Now())
	}
}

// work serves requests until the connection has been idle for a while or ends.
func (d *downstream) work() {
	d.over = true
	if err := d.c.Loop(d); err != nil {
		d.over = true
		d.err = fmt.Errorf("serve http1: %w", err)
	}
	if d.over {
		d.finish()
	}
}

// dateLine is a Date field good for one second.
type dateLine struct {
	second int64
	line   string
}

// date returns the current Date field line.
func (k *Codec) date(c *conn.Conn) string {
	t := c.Wheel().Time(c.Now())
	second := t.Unix()
	if d := k.now.Load(); d != nil && d.second == second {
		return d.line
	}
	d := &dateLine{second, "date: " + t.UTC().Format(http.TimeFormat) + "\r\n"}
	k.now.Store(d)
	return d.line
}

func statusText(status int) string {
	if s := http.StatusText(status); s != "" {
		return s
	}
	return "Unknown"
}

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
