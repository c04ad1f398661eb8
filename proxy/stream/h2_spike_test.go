package stream_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// This shows that the contracts of conn and codec carry HTTP/2: many streams on
// one downstream connection, each an exchange of its own, all over one upstream
// connection, one write for each batch of frames read. It does as little of
// HTTP/2 as real peers need for small messages; flow control is left out.
// Figures: ../RATIONALE.md, "Codecs".

// h2Conn is what both ends have in common.
type h2Conn struct {
	out *outbox
	in  conn.Buffer
	dec *hpack.Decoder

	mu   sync.Mutex // headers must be added in the order they were compressed
	enc  *hpack.Encoder
	encd bytes.Buffer
}

func (h *h2Conn) init(c *conn.Conn) {
	h.out = newOutbox(c)
	h.dec = hpack.NewDecoder(4096, nil)
	h.enc = hpack.NewEncoder(&h.encd)
}

func frameHeader(dst []byte, length int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(dst, stream)
}

func (h *h2Conn) headers(stream uint32, end bool, fields []hpack.HeaderField) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.encd.Reset()
	for _, f := range fields {
		_ = h.enc.WriteField(f) // writes to memory
	}
	flags := http2.FlagHeadersEndHeaders
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	h.out.add(append(frameHeader(nil, h.encd.Len(), http2.FrameHeaders, flags, stream), h.encd.Bytes()...))
}

// read calls f for every whole frame that is there; false: the stream has ended.
func (h *h2Conn) read(c *conn.Conn, f func(kind http2.FrameType, flags http2.Flags, stream uint32, frame []byte)) bool {
	for {
		room := h.in.Room()
		n, err := c.TryRead(room)
		if err != nil {
			return errors.Is(err, conn.ErrWouldBlock)
		}
		h.in.Filled(n)
		for {
			p := h.in.Bytes()
			if len(p) < 9 {
				break
			}
			size := 9 + (int(p[0])<<16 | int(p[1])<<8 | int(p[2]))
			if len(p) < size {
				break
			}
			h.frame(p[:size], f)
			h.in.Skip(size)
		}
		if n < len(room) {
			return true
		}
	}
}

func (h *h2Conn) frame(p []byte, f func(http2.FrameType, http2.Flags, uint32, []byte)) {
	kind, flags := http2.FrameType(p[3]), http2.Flags(p[4])
	switch kind {
	case http2.FrameSettings, http2.FramePing:
		if flags&http2.FlagSettingsAck == 0 {
			body := p[9:]
			if kind == http2.FrameSettings {
				body = nil
			}
			h.out.add(append(frameHeader(nil, len(body), kind, http2.FlagSettingsAck, 0), body...))
		}
	case http2.FrameHeaders, http2.FrameData:
		f(kind, flags, binary.BigEndian.Uint32(p[5:9]), p)
	}
}

// h2Stream is a request under way.
type h2Stream struct {
	client   *h2Client
	id       uint32 // the client's
	exchange codec.Exchange
}

type h2Upstream struct {
	h2Conn
	*pool.Conn
	touched []*h2Client

	streams sync.Mutex // guards the fields below, and the order of new streams
	next    uint32
	open    map[uint32]h2Stream
}

func (u *h2Upstream) Ready(c *conn.Conn) bool {
	alive := u.read(c, func(kind http2.FrameType, flags http2.Flags, id uint32, frame []byte) {
		end := flags&http2.FlagDataEndStream != 0
		u.streams.Lock()
		s, ok := u.open[id]
		if end {
			delete(u.open, id)
		}
		u.streams.Unlock()
		if !ok {
			return
		}
		if kind == http2.FrameHeaders {
			fields, err := u.dec.DecodeFull(frame[9:])
			if err != nil {
				return
			}
			s.exchange.Answered(rpcResponse{}, false, c.Now())
			s.client.headers(s.id, end, fields)
		} else {
			binary.BigEndian.PutUint32(frame[5:], s.id)
			s.client.out.add(frame)
		}
		if end {
			now := c.Now()
			s.exchange.End(&codec.End{At: now, Sent: now, First: now, Status: 200})
		}
		if !s.client.touched {
			s.client.touched = true
			u.touched = append(u.touched, s.client)
		}
	})
	for i, client := range u.touched {
		client.touched = false
		client.out.flush()
		u.touched[i] = nil
	}
	u.touched = u.touched[:0]
	u.out.flush()
	return !alive
}

type h2Client struct {
	h2Conn
	codec   *h2Codec
	session codec.Session
	dial    codec.Dialer
	c       *conn.Conn
	preface int
	up      *h2Upstream
	ids     map[uint32]uint32 // of requests whose body still comes
	touched bool              // the upstream goroutine's
}

func (d *h2Client) Ready(c *conn.Conn) bool {
	for d.preface < len(http2.ClientPreface) {
		var b [len(http2.ClientPreface)]byte
		n, err := c.TryRead(b[d.preface:])
		if err != nil {
			return !errors.Is(err, conn.ErrWouldBlock)
		}
		d.preface += n
	}
	alive := d.read(c, func(kind http2.FrameType, flags http2.Flags, id uint32, frame []byte) {
		end := flags&http2.FlagDataEndStream != 0
		if kind == http2.FrameHeaders {
			d.begin(c, id, end, frame[9:])
			return
		}
		binary.BigEndian.PutUint32(frame[5:], d.ids[id])
		d.up.out.add(frame)
		if end {
			delete(d.ids, id)
		}
	})
	if d.up != nil {
		d.up.out.flush()
	}
	d.out.flush()
	return !alive
}

func (d *h2Client) begin(c *conn.Conn, id uint32, end bool, block []byte) {
	fields, err := d.dec.DecodeFull(block)
	if err != nil {
		return
	}
	x := d.session.Open()
	step := x.Begin(h2Request(fields), c.Now())
	if step.Action == codec.Send && d.up == nil {
		d.up = d.codec.upstream(d, step)
	}
	if d.up == nil {
		x.End(&codec.End{At: c.Now(), Failure: codec.ConnectRefused})
		return
	}
	u := d.up
	u.streams.Lock()
	defer u.streams.Unlock()
	u.next += 2
	u.open[u.next] = h2Stream{d, id, x}
	if !end {
		d.ids[id] = u.next
	}
	u.headers(u.next, end, fields)
}

type h2Request []hpack.HeaderField

func (r h2Request) field(name string) ([]byte, bool) {
	for _, f := range r {
		if f.Name == name {
			return []byte(f.Value), true
		}
	}
	return nil, false
}
func (r h2Request) Method() []byte    { v, _ := r.field(":method"); return v }
func (r h2Request) Path() []byte      { v, _ := r.field(":path"); return v }
func (r h2Request) Authority() []byte { v, _ := r.field(":authority"); return v }
func (r h2Request) Header(name string) ([]byte, bool) {
	return r.field(name)
}

type h2Codec struct {
	mu      sync.Mutex
	up      *h2Upstream
	running sync.WaitGroup
}

func (*h2Codec) Name() string               { return "http2" }
func (*h2Codec) Sniff([]byte) codec.Verdict { return codec.Match }

func (k *h2Codec) upstream(d *h2Client, step *codec.Step) *h2Upstream {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.up != nil {
		return k.up
	}
	c, failure := d.dial.Connect(d.c, step)
	if failure != codec.None {
		return nil
	}
	u := &h2Upstream{Conn: c, open: map[uint32]h2Stream{}}
	u.next = ^uint32(0) // the first stream is 1
	u.init(c.Conn)
	u.out.add([]byte(http2.ClientPreface))
	u.out.add(frameHeader(nil, 0, http2.FrameSettings, 0, 0))
	u.out.add(binary.BigEndian.AppendUint32(frameHeader(nil, 4, http2.FrameWindowUpdate, 0, 0), 1<<30))
	k.up = u
	k.running.Go(func() {
		_ = c.Loop(u)
		c.Close()
	})
	return u
}

func (k *h2Codec) Serve(ctx context.Context, c *conn.Conn, _ codec.Config, s codec.Session) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, c.Abort)
	defer stop()
	d := &h2Client{codec: k, session: s, dial: codec.NewDialer(context.WithoutCancel(ctx)), c: c, ids: map[uint32]uint32{}}
	d.init(c)
	d.out.add(frameHeader(nil, 0, http2.FrameSettings, 0, 0))
	d.out.add(binary.BigEndian.AppendUint32(frameHeader(nil, 4, http2.FrameWindowUpdate, 0, 0), 1<<30))
	return c.Loop(d)
}

func h2Bed(t testing.TB) *bed {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	payload := bytes.Repeat([]byte("x"), 1024)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = w.Write(payload)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	b := newBed(t, nil, l.Addr().String())
	h2Serve(t, b)
	return b
}

// h2Serve has b speak the protocol.
func h2Serve(t testing.TB, b *bed) {
	k := &h2Codec{}
	b.http.Codec = k
	b.serve()
	t.Cleanup(func() {
		if k.up != nil {
			k.up.Abort()
		}
		k.running.Wait()
	})
}

func h2Transport(t testing.TB) *http.Transport {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func h2Call(t testing.TB, tr http.RoundTripper, addr, body string) {
	method := "GET"
	if body != "" {
		method = "POST"
	}
	req, err := http.NewRequest(method, "http://"+addr+"/a", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return
	}
	got, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || (body != "" && string(got) != body) || (body == "" && len(got) != 1024) {
		t.Errorf("got %.40q, %v, want %.40q", got, err, body)
	}
}

func TestManyStreamsShareOneConnection(t *testing.T) {
	b := h2Bed(t)
	tr := h2Transport(t)
	h2Call(t, tr, b.addr, "") // later calls find its connection
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 20 {
				h2Call(t, tr, b.addr, "")
				h2Call(t, tr, b.addr, fmt.Sprintf("stream %d.%d", i, j))
			}
		})
	}
	wg.Wait()
	if n := b.http.Stats.ConnectionTotal.Value(); n != 1 {
		t.Errorf("got %d downstream connections, want 1", n)
	}
	if n := b.clusters["origin"].Stats.ConnectionTotal.Value(); n != 1 {
		t.Errorf("got %d upstream connections, want 1", n)
	}
	eventually(t, "all exchanges have ended", func() bool { return b.http.Stats.RequestActive.Value() == 0 })
}
