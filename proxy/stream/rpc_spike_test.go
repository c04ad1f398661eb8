package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// This shows that the contracts of conn and codec carry an RPC protocol with many
// calls under way: a codec whose clients share one connection to a host. Frames
// are a length, an id and a payload, four bytes each of the first two; ids are
// patched in place. Figures: ../RATIONALE.md, "Codecs".

// outbox gathers what several goroutines send over one connection. Whoever
// flushes first writes for all who come meanwhile.
type outbox struct {
	c *conn.Conn

	mu       sync.Mutex
	room     sync.Cond // signalled when buf was taken
	buf      []byte
	spare    []byte
	flushing bool
	err      error
}

// outboxLimit bounds what waits; who wants to add more waits, and so reads no more.
const outboxLimit = 1 << 20

func newOutbox(c *conn.Conn) *outbox {
	o := &outbox{c: c}
	o.room.L = &o.mu
	return o
}

func (o *outbox) add(p []byte) {
	o.mu.Lock()
	for len(o.buf) > outboxLimit && o.flushing && o.err == nil {
		o.room.Wait()
	}
	if o.err == nil {
		o.buf = append(o.buf, p...)
	}
	o.mu.Unlock()
}

func (o *outbox) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.flushing {
		return
	}
	o.flushing = true
	for len(o.buf) > 0 && o.err == nil {
		out := o.buf
		o.buf = o.spare[:0]
		o.room.Broadcast()
		o.mu.Unlock()
		err := o.c.Write(out)
		o.mu.Lock()
		o.spare, o.err = out, err
	}
	o.flushing = false
	o.room.Broadcast()
}

// frames calls f for every whole frame in b.
func frames(b *conn.Buffer, f func(frame []byte)) {
	for {
		p := b.Bytes()
		if len(p) < 8 {
			return
		}
		n := 4 + int(binary.BigEndian.Uint32(p))
		if len(p) < n {
			return
		}
		f(p[:n])
		b.Skip(n)
	}
}

// readAll reads until nothing is there; false: the stream has ended.
func readAll(c *conn.Conn, b *conn.Buffer, f func(frame []byte)) bool {
	for {
		room := b.Room()
		n, err := c.TryRead(room)
		if err != nil {
			return errors.Is(err, conn.ErrWouldBlock)
		}
		b.Filled(n)
		frames(b, f)
		if n < len(room) {
			return true
		}
	}
}

// rpcCall is a slot of a shared connection. The generation tells a late reply to
// an earlier call in the slot from the reply that is waited for.
type rpcCall struct {
	generation uint16
	dead       bool // nobody waits, but the reply may still come
	id         uint32
	client     *rpcClient
	exchange   codec.Exchange
	next       uint32 // of the free list
}

type rpcUpstream struct {
	*pool.Conn
	out     *outbox
	in      conn.Buffer
	touched []*rpcClient

	mu    sync.Mutex
	slots []rpcCall
	free  uint32 // index+1; 0: none
}

func (u *rpcUpstream) take(client *rpcClient, id uint32, x codec.Exchange) uint32 {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := u.free
	if i == 0 {
		u.slots = append(u.slots, rpcCall{})
		i = uint32(len(u.slots))
	} else {
		u.free = u.slots[i-1].next
	}
	s := &u.slots[i-1]
	s.client, s.id, s.exchange, s.dead = client, id, x, false
	return (i - 1) | uint32(s.generation)<<16
}

// release frees the slot of a reply and returns what waited for it.
func (u *rpcUpstream) release(wire uint32) (call rpcCall, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := wire & 0xffff
	if int(i) >= len(u.slots) || u.slots[i].generation != uint16(wire>>16) {
		return call, false
	}
	s := &u.slots[i]
	call = *s
	s.generation++
	s.client, s.exchange = nil, nil
	s.next, u.free = u.free, i+1
	return call, !call.dead
}

// forget leaves tombstones in the slots of a client that is gone.
func (u *rpcUpstream) forget(client *rpcClient) (ended []codec.Exchange) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.slots {
		if s := &u.slots[i]; s.client == client && !s.dead {
			s.dead = true
			ended = append(ended, s.exchange)
		}
	}
	return ended
}

func (u *rpcUpstream) Ready(c *conn.Conn) bool {
	now := c.Now()
	alive := readAll(c, &u.in, func(frame []byte) {
		call, ok := u.release(binary.BigEndian.Uint32(frame[4:]))
		if !ok {
			return
		}
		binary.BigEndian.PutUint32(frame[4:], call.id)
		call.exchange.Answered(rpcResponse{}, true, now)
		call.client.out.add(frame)
		call.exchange.End(&codec.End{At: now, Sent: now, First: now, Status: 200})
		if !call.client.touched {
			call.client.touched = true
			u.touched = append(u.touched, call.client)
		}
	})
	for i, client := range u.touched {
		client.touched = false
		client.out.flush()
		u.touched[i] = nil
	}
	u.touched = u.touched[:0]
	return !alive
}

type rpcClient struct {
	codec   *rpcCodec
	session codec.Session
	dial    codec.Dialer
	c       *conn.Conn
	out     *outbox
	in      conn.Buffer
	up      *rpcUpstream
	touched bool // the upstream goroutine's
	request rpcRequest
}

func (d *rpcClient) Ready(c *conn.Conn) bool {
	now := c.Now()
	alive := readAll(c, &d.in, func(frame []byte) {
		x := d.session.Open()
		step := x.Begin(&d.request, now)
		if step.Action == codec.Send && d.up == nil {
			d.up = d.codec.upstream(d, step)
		}
		if step.Action != codec.Send || d.up == nil {
			x.End(&codec.End{At: now, Failure: codec.ConnectRefused})
			return
		}
		wire := d.up.take(d, binary.BigEndian.Uint32(frame[4:]), x)
		binary.BigEndian.PutUint32(frame[4:], wire)
		d.up.out.add(frame)
	})
	if d.up != nil {
		d.up.out.flush() // one write for all frames of this read
	}
	return !alive
}

// rpcCodec has one upstream: enough for its purpose.
type rpcCodec struct {
	mu      sync.Mutex
	up      *rpcUpstream
	running sync.WaitGroup
}

func (*rpcCodec) Name() string               { return "rpc" }
func (*rpcCodec) Sniff([]byte) codec.Verdict { return codec.Match }

func (k *rpcCodec) upstream(d *rpcClient, step *codec.Step) *rpcUpstream {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.up == nil {
		c, failure := d.dial.Connect(d.c, step)
		if failure != codec.None {
			return nil
		}
		k.up = &rpcUpstream{Conn: c, out: newOutbox(c.Conn)}
		up := k.up
		k.running.Go(func() {
			_ = up.Loop(up)
			up.Close()
		})
	}
	return k.up
}

func (k *rpcCodec) Serve(ctx context.Context, c *conn.Conn, _ codec.Config, s codec.Session) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, c.Abort)
	defer stop()
	d := &rpcClient{codec: k, session: s, dial: codec.NewDialer(context.WithoutCancel(ctx)), c: c, out: newOutbox(c)}
	err := c.Loop(d)
	if d.up != nil {
		for _, x := range d.up.forget(d) {
			x.End(&codec.End{At: c.Now(), Failure: codec.DownstreamGone})
		}
	}
	return err
}

type rpcRequest struct{}

func (*rpcRequest) Method() []byte               { return []byte("POST") }
func (*rpcRequest) Path() []byte                 { return []byte("/service/method") }
func (*rpcRequest) Authority() []byte            { return []byte("service") }
func (*rpcRequest) Header(string) ([]byte, bool) { return nil, false }

type rpcResponse struct{}

func (rpcResponse) Status() int                  { return 200 }
func (rpcResponse) Header(string) ([]byte, bool) { return nil, false }

// rpcHost sends back what it gets.
func rpcHost(t testing.TB) *script {
	return newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		buf := make([]byte, 256<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
}

// rpcServe has b speak the protocol.
func rpcServe(t testing.TB, b *bed) {
	k := &rpcCodec{}
	b.http.Codec = k
	b.serve()
	t.Cleanup(func() {
		if k.up != nil {
			k.up.Abort()
		}
		k.running.Wait()
	})
}

// rpcClients runs calls over n connections, depth at a time on each, all with the
// same ids, and checks every reply. size is a payload's, a multiple of 4.
func rpcClients(t testing.TB, addr string, n, depth, calls, size int) {
	var wg sync.WaitGroup
	for i := range n {
		c := dial(t, addr)
		wg.Go(func() {
			payload := bytes.Repeat(fmt.Appendf(nil, "%04d", i), size/4)
			batch := make([]byte, 0, depth*(8+len(payload)))
			for id := range depth {
				batch = binary.BigEndian.AppendUint32(batch, uint32(4+len(payload)))
				batch = binary.BigEndian.AppendUint32(batch, uint32(id))
				batch = append(batch, payload...)
			}
			got := make([]byte, len(batch))
			for range calls / depth {
				if _, err := c.Write(batch); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(c.r, got); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, batch) {
					t.Errorf("client %d got another's reply", i)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestManyCallsShareOneUpstreamConnection(t *testing.T) {
	s := rpcHost(t)
	b := newBed(t, nil, s.addr())
	rpcServe(t, b)
	rpcClients(t, b.addr, 16, 8, 800, 1024)
	if n := s.conns.Load(); n != 1 {
		t.Errorf("got %d upstream connections, want 1", n)
	}
	eventually(t, "all exchanges have ended", func() bool { return b.http.Stats.RequestActive.Value() == 0 })
	if got := b.http.Stats.RequestTotal.Value(); got != 16*800 {
		t.Errorf("got %d requests, want %d", got, 16*800)
	}
}
