package http1

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// upload is a request whose body did not come along with its head. The
// connection's goroutine goes on reading it and sends it upstream; a second
// goroutine reads the response, so that neither waits for the other.
type upload struct {
	running  bool          // written by the connection's goroutine, while the other does not run
	received chan struct{} // capacity 1: the second goroutine has ended
	finished atomic.Bool   // as received, to be asked without taking
	complete atomic.Bool   // the body was sent whole
	broken   bool          // the upstream takes no more
	refused  *malformed    // what is wrong with the body
	out      []byte
	err      error // of the second goroutine's loop
	panicked error // what the second goroutine panicked with

	mu     sync.Mutex
	kept   bool // all of the body so far is in the buffer
	frozen bool // it must stay there: it will be sent again
}

// continueLine tells a client that waits for it to send the body.
var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// startUpload begins to carry out a request whose body is still coming.
func (d *downstream) startUpload(k *call) bool {
	k.upload.kept, k.upload.frozen = true, false
	for {
		switch k.step.Action {
		case codec.Answer:
			return d.answer(k)
		case codec.Abort:
			k.finishExchange(0, codec.None, d.c.Now())
			d.closing = true
			return false
		}
		if k.step.Wait > 0 {
			d.sleep(k.step.Wait)
		}
		if d.beginUpload(k, false) {
			d.mode = modeUpload
			return false
		}
		if over, next := d.judge(k, k.upload.kept); over {
			return next
		}
	}
}

// beginUpload sends the head, over a new connection if fresh is set, and starts
// the second goroutine. false: it failed.
func (d *downstream) beginUpload(k *call, fresh bool) bool {
	u := &k.upload
	for ; ; fresh = true {
		if f := k.connect(fresh); f != codec.None {
			k.phase, k.failure = phaseFailed, f
			return false
		}
		k.begin()
		k.rewindBody(d.cfg.MaxHeadBytes)
		k.requestBytes = 0
		k.out = k.appendRequest(k.out[:0])
		err := k.sendUp()
		if err == nil {
			break
		}
		if errors.Is(err, conn.ErrLate) {
			k.late()
		} else {
			k.fail(codec.Reset)
		}
		if again := k.closeAttempt(nil); !again || fresh {
			return false
		}
	}
	if k.req.expect {
		k.req.expect = false
		if k.req.minor == 1 {
			if err := d.c.Write(continueLine); err != nil {
				k.fail(codec.DownstreamGone)
				k.up.Close()
				return false
			}
		}
	}
	if u.received == nil {
		u.received = make(chan struct{}, 1)
	}
	u.running, u.broken, u.refused, u.err = true, false, nil, nil
	u.finished.Store(false)
	u.complete.Store(false)
	u.frozen = false
	k.phase = phaseHead
	k.sent = d.c.Now()
	k.active.Store(int64(k.sent))
	go k.receive()
	return true
}

// receive is the second goroutine.
func (k *call) receive() {
	u := &k.upload
	k.receiveAll()
	c, complete := k.d.c, u.complete.Load()
	if !complete {
		k.up.Abort() // the connection's goroutine may be writing to it
	}
	u.finished.Store(true)
	u.received <- struct{}{}
	if !complete {
		c.Kick() // it may be waiting for more of the body
	}
}

// receiveAll reads the response. A panic is kept for the connection's goroutine,
// whose connection it is to end, and no other.
func (k *call) receiveAll() {
	u := &k.upload
	defer func() {
		if p := recover(); p != nil {
			u.panicked = fmt.Errorf("%v, while the response was read:\n%s", p, debug.Stack())
		}
	}()
	k.watch(k.up.Conn, k.sent)
	u.err = k.up.Loop((*exchange)(k))
}

// judgeHead asks the exchange about the response head. Meanwhile the other
// goroutine cannot give up keeping the body, and if it is to be sent again it
// stays. The lock is held over the call, which does not block.
func (k *call) judgeHead() {
	u := &k.upload
	if !u.running {
		k.step = k.exchange.Answered(&k.resp, true, k.first)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	k.step = k.exchange.Answered(&k.resp, u.kept, k.first)
	u.frozen = u.kept && k.step.Action == codec.Send
}

// drop gives up keeping the body, if it may.
func (u *upload) drop() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.frozen {
		u.kept = false
	}
	return !u.kept
}

// pumpUpload sends the body on as it comes. It returns false to wait for more,
// and true when the exchange has ended; mode and closing say what comes then.
func (d *downstream) pumpUpload() bool {
	k := d.call
	for d.mode == modeUpload {
		failure, wait := d.pump(k)
		if wait {
			return false
		}
		if failure != codec.None {
			d.failUpload(k, failure)
		} else {
			d.settleUpload(k)
		}
	}
	return true
}

// pump sends on what is there until more is to be waited for, or the attempt has
// failed or needs nothing more from us.
func (d *downstream) pump(k *call) (failure codec.Failure, wait bool) {
	u := &k.upload
	for !u.finished.Load() {
		if err := d.forward(k); err != nil {
			u.refused = err
			return codec.DownstreamBroken, false
		}
		if k.reqBody.done || u.broken {
			u.complete.Store(k.reqBody.done && !u.broken)
			return codec.None, false
		}
		room := k.in.Room()
		k.req.buf = k.in.Bytes()
		if len(room) == 0 || !u.kept {
			if !u.drop() {
				return codec.None, false // it will be sent again
			}
			k.dropSent()
			room = k.in.Room()
			k.req.buf = k.in.Bytes()
			if len(room) == 0 { // head and trailer together
				u.refused = errTooLarge
				return codec.DownstreamBroken, false
			}
		}
		n, err := d.c.TryRead(room)
		switch {
		case errors.Is(err, conn.ErrWouldBlock):
			return codec.None, true
		case err != nil:
			return codec.DownstreamGone, false
		}
		k.in.Filled(n)
		k.active.Store(int64(d.c.Now()))
	}
	return codec.None, false
}

// dropSent makes room in the buffer for more: the head stays, and what is unread of
// the body moves up to it.
func (k *call) dropSent() {
	b := k.in.Bytes()
	k.in.Truncate(k.req.size + copy(b[k.req.size:], b[k.bodyAt:]))
	k.bodyAt = k.req.size
}

// forward sends on the body that is in the buffer.
func (d *downstream) forward(k *call) *malformed {
	u := &k.upload
	var err *malformed
	if k.reqBody.framing == lengthBody {
		// Straight from the buffer.
		used, data, _ := k.reqBody.next(k.in.Bytes()[k.bodyAt:])
		k.bodyAt += used
		k.requestBytes += int64(used)
		u.broken = k.up.Write(data) != nil
		return nil
	}
	u.out, err = k.appendBody(u.out[:0])
	if err == nil && len(u.out) > 0 {
		u.broken = k.up.Write(u.out) != nil
	}
	return err
}

// failUpload ends an attempt whose client failed.
func (d *downstream) failUpload(k *call, f codec.Failure) {
	k.up.Abort()
	d.join(k)
	if k.phase != phaseDone {
		k.phase, k.failure = phaseFailed, f
	}
	k.rbuf.Release()
	k.up.Close()
	d.settled(k, false)
}

// settleUpload ends an attempt that needs nothing more from us.
func (d *downstream) settleUpload(k *call) {
	d.join(k)
	d.idleSince = d.c.Now()
	if k.phase == phaseDone && !k.upload.complete.Load() {
		k.rbuf.Release()
		k.up.Close()
		d.settled(k, false)
		return
	}
	d.settled(k, k.closeAttempt(k.upload.err))
}

// join waits for the second goroutine.
func (d *downstream) join(k *call) {
	<-k.upload.received
	k.upload.running = false
	d.mode = modeRequest
	if p := k.upload.panicked; p != nil {
		k.upload.panicked = nil
		panic(p)
	}
}

// settled goes on after an attempt. again says that it died of an idle connection.
func (d *downstream) settled(k *call, again bool) {
	if again && k.upload.kept {
		if d.beginUpload(k, true) {
			d.mode = modeUpload
			return
		}
	}
	over, next := d.judge(k, k.upload.kept)
	if !over {
		if k.step.Action == codec.Answer && k.failure == codec.DownstreamBroken && k.upload.refused != nil {
			k.step.Reply.Status = k.upload.refused.status
		}
		if k.step.Action == codec.Send && !k.upload.kept {
			// The exchange was told that the request cannot be sent again; only a
			// broken one insists.
			k.step = k.exchange.Failed(codec.Reset, false, d.c.Now())
		}
		next = d.startUpload(k)
	}
	if !next && d.mode == modeRequest {
		d.closing = true
	}
}

// abandonUpload ends an upload at the end of its connection.
func (d *downstream) abandonUpload(k *call) {
	if k.upload.running {
		k.up.Abort()
		d.join(k)
		k.up.Close()
	}
}

// tunnel is a connection that was upgraded: both sides' bytes pass as they are.
type tunnel struct {
	relay *conn.Relay
	up    *pool.Conn
	done  chan struct{}
}

// startTunnel joins both connections after a 101 response.
func (d *downstream) startTunnel(k *call) {
	idle := max(k.idle(), time.Duration(0))
	t := &tunnel{relay: conn.NewRelay(d.c, k.up.Conn, idle, false), up: k.up, done: make(chan struct{})}
	d.tunnel, d.mode = t, modeTunnel
	k.up.WakeAt(0)
	errDown := t.relay.Down.Begin(k.rbuf.Bytes())
	errUp := t.relay.Up.Begin(k.in.Bytes()[k.bodyAt:])
	k.rbuf.Release()
	if errDown != nil || errUp != nil {
		d.c.Abort()
		t.up.Abort()
	}
	go func() {
		defer close(t.done)
		// What ended it is in the half, and the other half ends with it.
		if err := t.up.Loop(&t.relay.Down); err != nil {
			d.c.Abort()
		}
	}()
}

// endTunnel closes what startTunnel began.
func (d *downstream) endTunnel() {
	t := d.tunnel
	if t == nil {
		return
	}
	t.up.Abort()
	<-t.done
	t.up.Close()
	d.tunnel = nil
	k := d.call
	k.requestBytes, k.responseBytes = t.relay.Up.Bytes, t.relay.Down.Bytes
	k.finishExchange(101, codec.None, d.c.Now())
}
