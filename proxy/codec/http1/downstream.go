package http1

import (
	"errors"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// downstream is a client's connection. It is the handler of its loop and small:
// thousands are idle.
type downstream struct {
	codec   *Codec
	c       *conn.Conn
	cfg     codec.Config
	session codec.Session
	dial    codec.Dialer
	sleep   func(time.Duration) // ends early with the context
	stop    func() bool         // lets go of the context
	over    bool                // the connection has ended, not only come to rest
	err     error               // why it ended

	call      *call // nil while idle
	mode      mode
	verified  bool          // a read since the last request found nothing
	heading   bool          // a head has begun to arrive
	idleSince clock.Instant // end of the last request; start of the head while heading
	discarded int
	closing   bool // the last answer is out and nothing is left to read
	tunnel    *tunnel
}

// mode is what arriving bytes are.
type mode uint8

const (
	modeRequest mode = iota // heads, with bodies that came along
	modeUpload              // the body of a request that is already under way
	modeTunnel              // another protocol
	modeLinger              // what a refused client still sends
)

const (
	// lingerTime and lingerBytes bound how long we listen to a client after the
	// last answer, so that a reset does not destroy it on its way.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// Ready is called by the loop.
func (d *downstream) Ready(c *conn.Conn) bool {
	switch d.mode {
	case modeUpload:
		if !d.pumpUpload() {
			return false
		}
		// The upload is over; what came behind it may be the next request.
		if d.mode != modeRequest || d.closing || !d.consume() {
			return d.leave()
		}
	case modeTunnel:
		return d.tunnel.relay.Up.Ready(c)
	case modeLinger:
		return d.discard()
	}
	return d.read()
}

// read reads and serves requests until there is nothing more.
func (d *downstream) read() bool {
	if d.call == nil {
		d.call = d.codec.newCall(d)
	}
	for {
		room := d.call.in.Room()
		if len(room) == 0 { // only where larger heads are allowed than a buffer holds
			d.refuse(errTooLarge, d.c.Now())
			return d.leave()
		}
		n, err := d.c.TryRead(room)
		if err != nil {
			if errors.Is(err, conn.ErrWouldBlock) {
				d.verified = true
				return d.park()
			}
			return true // the client ended the connection between requests, or within a head
		}
		d.call.in.Filled(n)
		if !d.consume() {
			return d.leave()
		}
		if n < len(room) {
			return d.park()
		}
	}
}

// leave says how the loop goes on when no more requests are read now.
func (d *downstream) leave() bool {
	for !d.closing {
		switch d.mode {
		case modeUpload:
			if !d.pumpUpload() {
				return false
			}
			if d.mode == modeRequest && !d.closing && d.consume() {
				return d.read()
			}
		case modeTunnel:
			return d.tunnel.relay.Up.Ready(d.c)
		case modeLinger:
			return d.discard()
		default:
			return true
		}
	}
	return true
}

// park prepares for waiting; it returns true when there is nothing to wait for.
func (d *downstream) park() bool {
	k := d.call
	if k.in.Len() > 0 {
		now := d.c.Now()
		if limit := d.cfg.HeadTimeout; limit > 0 {
			if now.Sub(d.idleSince) >= limit {
				d.refuse(errHeadTimeout, now)
				return d.leave()
			}
			d.c.WakeAt(d.idleSince.Add(limit))
		}
		return false
	}
	d.codec.release(k)
	d.call = nil
	if d.c.Draining() {
		return true
	}
	// What is idle for so long only waits from now on.
	rest := d.c.Patience()
	if limit := d.cfg.IdleTimeout; limit > 0 {
		rest = min(rest, limit)
	}
	if rest == 0 || d.verified && d.c.Now().Sub(d.idleSince) >= rest {
		d.over = false
		return true
	}
	d.c.WakeAt(d.idleSince.Add(rest))
	return false
}

// expect arms the timer of an idle connection.
func (d *downstream) expect() {
	if limit := d.cfg.IdleTimeout; limit > 0 {
		d.c.WakeAt(d.idleSince.Add(limit))
	} else {
		d.c.WakeAt(0)
	}
}

// expired reports whether a connection that was idle is to be closed rather than
// served. Bytes that have arrived are served in any case.
func (d *downstream) expired() bool {
	limit := d.cfg.IdleTimeout
	due := d.c.Draining() || limit > 0 && d.c.Now().Sub(d.idleSince) >= limit
	return due && d.c.Fresh()
}

// consume serves the requests that lie in the buffer. It returns false when no
// further ones are to be read now.
func (d *downstream) consume() bool {
	k := d.call
	for k.in.Len() > 0 {
		if !d.heading {
			d.heading, d.verified, d.idleSince = true, false, d.c.Now()
		}
		done, err := k.req.parse(k.in.Bytes(), d.cfg.MaxHeadBytes)
		if err != nil {
			d.refuse(err, d.c.Now())
			return false
		}
		if !done {
			return true
		}
		d.heading = false
		if !d.serve(k) {
			return false
		}
	}
	return true
}

// refuse answers a malformed request and ends the connection.
func (d *downstream) refuse(m *malformed, now clock.Instant) {
	k := d.call
	d.session.Malformed(m.status, now)
	k.keep = false
	k.req.isHead = false
	reply := codec.Reply{Status: m.status, Body: []byte(statusText(m.status)), ContentType: "text/plain"}
	k.out = k.appendReply(k.out[:0], &reply)
	d.last(d.c.Write(k.out))
}

// last is called after the last answer was written.
func (d *downstream) last(err error) {
	d.mode = modeLinger
	if err != nil || d.c.CloseWrite() != nil {
		d.discarded = lingerBytes // there is nobody to wait for
		return
	}
	d.idleSince = d.c.Now()
	d.discarded = 0
	d.c.WakeAt(d.idleSince.Add(lingerTime))
}

// discard reads and forgets.
func (d *downstream) discard() bool {
	if d.call == nil {
		d.call = d.codec.newCall(d)
	}
	b := &d.call.in
	for d.discarded < lingerBytes {
		b.Skip(b.Len())
		n, err := d.c.TryRead(b.Room())
		if err != nil {
			// Whatever else ends it: the client is gone.
			return !errors.Is(err, conn.ErrWouldBlock) || d.c.Now().Sub(d.idleSince) >= lingerTime
		}
		d.discarded += n
	}
	return true
}

// finish cleans up after the loop.
func (d *downstream) finish() {
	d.endTunnel()
	if k := d.call; k != nil {
		d.abandonUpload(k)
		if k.exchange != nil {
			k.finishExchange(0, codec.DownstreamGone, d.c.Now())
		}
		d.codec.release(k)
		d.call = nil
	}
}

// gone looks whether the client has ended its connection. Half of a connection is
// not enough to wait for an answer on, as with Envoy.
func (d *downstream) gone() bool {
	err := d.c.Peek()
	return err != nil && !errors.Is(err, conn.ErrWouldBlock)
}
