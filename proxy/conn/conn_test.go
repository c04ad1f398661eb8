package conn_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startWheel(t testing.TB) *clock.Wheel {
	w := clock.NewWheel()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

// pair is a connection and its peer.
func pair(t testing.TB) (*conn.Conn, *net.TCPConn) {
	t.Helper()
	w := startWheel(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := conn.New(nc, w, 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		_ = peer.Close()
	})
	return c, peer.(*net.TCPConn)
}

// handler is a function as a handler.
type handler func(c *conn.Conn) bool

func (h handler) Ready(c *conn.Conn) bool { return h(c) }

// loop runs Loop and returns its result on a channel.
func loop(c *conn.Conn, h handler) chan error {
	done := make(chan error, 1)
	go func() { done <- c.Loop(h) }()
	return done
}

func await[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(15 * time.Second):
		t.Fatalf("never: %s", what)
	}
	return v
}

func TestLoopSeesEveryByteAfterAShortRead(t *testing.T) {
	c, peer := pair(t)
	got := make(chan byte, 1)
	done := loop(c, func(c *conn.Conn) bool {
		var buf [64]byte
		n, err := c.TryRead(buf[:])
		for _, b := range buf[:n] {
			got <- b
		}
		return errors.Is(err, io.EOF)
	})
	for i := range byte(200) {
		if _, err := peer.Write([]byte{i}); err != nil {
			t.Fatal(err)
		}
		if b := await(t, "the byte", got); b != i {
			t.Fatalf("got %d, want %d", b, i)
		}
	}
	_ = peer.CloseWrite()
	if err := await(t, "the end", done); err != nil {
		t.Error(err)
	}
}

func TestTimerWakesAParkedLoopAndLoopGoesOn(t *testing.T) {
	c, peer := pair(t)
	woken := make(chan bool, 100)
	c.WakeAt(c.Now().Add(20 * time.Millisecond))
	done := loop(c, func(c *conn.Conn) bool {
		var buf [8]byte
		n, _ := c.TryRead(buf[:])
		if n == 0 && c.Woken() {
			woken <- true
		}
		return n > 0
	})
	await(t, "the timer", woken)
	c.Kick()
	await(t, "the kick", woken)
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "the end", done); err != nil {
		t.Error(err)
	}
}

func TestAbortEndsReadAndWrite(t *testing.T) {
	c, _ := pair(t)
	big := make([]byte, 64<<20)
	wrote := make(chan error, 1)
	go func() { wrote <- c.Write(big) }()
	done := loop(c, func(c *conn.Conn) bool {
		_, err := c.TryRead(make([]byte, 1))
		return err != nil && !errors.Is(err, conn.ErrWouldBlock)
	})
	c.Abort()
	if err := await(t, "the reader's end", done); err != nil {
		t.Error(err)
	}
	if err := await(t, "the writer's end", wrote); err == nil {
		t.Error("64 MiB were written to nobody")
	}
}

func TestWriteWaitsForASlowPeerButNotForEver(t *testing.T) {
	c, peer := pair(t)
	const size = 16 << 20
	wrote := make(chan error, 1)
	go func() { wrote <- c.Write(make([]byte, size)) }()
	if n, err := io.CopyN(io.Discard, peer, size); err != nil || n != size {
		t.Fatal(n, err)
	}
	if err := await(t, "the write", wrote); err != nil {
		t.Error(err)
	}
	c.SetStall(100 * time.Millisecond)
	go func() { wrote <- c.Write(make([]byte, size)) }()
	if err := await(t, "the stall", wrote); !errors.Is(err, conn.ErrStalled) {
		t.Errorf("got %v, want ErrStalled", err)
	}
	c.SetStall(0)
	go func() { wrote <- c.WriteBy(make([]byte, size), c.Now().Add(100*time.Millisecond)) }()
	if err := await(t, "the given moment", wrote); !errors.Is(err, conn.ErrLate) {
		t.Errorf("got %v, want ErrLate", err)
	}
}

func TestUnseenTellsDeliveredFromUndelivered(t *testing.T) {
	c, peer := pair(t)
	before := c.Sent()
	if err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(peer, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if c.Unseen(before) {
		t.Error("bytes that the peer read count as unseen")
	}
	_ = peer.Close()
	for c.Fresh() {
		runtime.Gosched()
	}
	before = c.Sent()
	_ = c.Write([]byte("world")) // the peer's kernel answers with a reset
	if !c.Unseen(before) {
		t.Error("bytes that no kernel took count as seen")
	}
}

func TestFresh(t *testing.T) {
	c, peer := pair(t)
	if !c.Fresh() {
		t.Error("a new connection is not fresh")
	}
	_, _ = peer.Write([]byte("x"))
	for c.Fresh() {
		runtime.Gosched()
	}
	var b [4]byte
	if n, err := c.Sniff(b[:]); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := c.TryRead(b[:]); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	_ = peer.Close()
	for c.Fresh() {
		runtime.Gosched()
	}
	if err := c.Peek(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestBufferGrowsMovesAndReturns(t *testing.T) {
	var b conn.Buffer
	want := byte(0)
	next := byte(0)
	for total := 0; total < 3*conn.LargeBuffer; {
		room := b.Room()
		if len(room) == 0 {
			t.Fatal("no room in a buffer that is not full")
		}
		n := min(len(room), 999)
		for i := range n {
			room[i] = next
			next++
		}
		b.Filled(n)
		total += n
		used := min(b.Len(), 900)
		for _, got := range b.Bytes()[:used] {
			if got != want {
				t.Fatalf("got %d, want %d", got, want)
			}
			want++
		}
		b.Skip(used)
	}
	b.Release()
	if b.Len() != 0 {
		t.Error("a released buffer has bytes")
	}
	for range conn.LargeBuffer {
		b.Room()[0] = 1
		b.Filled(1)
	}
	if len(b.Room()) != 0 {
		t.Error("a full buffer has room")
	}
	b.Release()
}
