package faultproxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/testenv/faultproxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bound is how long a test waits for what must happen.
const bound = 10 * time.Second

// pause is how long a test watches that something does not happen.
const pause = 50 * time.Millisecond

// serve starts a server that gives each connection to handle and closes it
// afterwards. It ends with the test.
func serve(t *testing.T, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer func() { _ = conn.Close() }()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		tasks.Wait()
	})
	return listener.Addr().String()
}

// echo returns what it is sent, then EOF.
func echo(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) }

func dial(t *testing.T, p *faultproxy.Proxy) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(bound)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// receive wants exactly this text next.
func receive(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v; want %q", got[:n], err, want)
	}
}

// silent wants nothing for a while.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(pause)); err != nil {
		t.Fatal(err)
	}
	var netErr net.Error
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Fatalf("read %d bytes, %v; want nothing at all", n, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(bound)); err != nil {
		t.Fatal(err)
	}
}

// reset wants the connection reset.
func reset(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

func refused(t *testing.T, p *faultproxy.Proxy) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err == nil {
		_ = conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: got %v, want refused", err)
	}
}

func TestForwardsAndHalfCloses(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	conn := dial(t, p)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, more than the buffers
	var sender sync.WaitGroup
	sender.Go(func() {
		_, err := conn.Write(big)
		if err := errors.Join(err, conn.CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(conn)
	sender.Wait()
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("got %d bytes back, %v; want the same %d", len(got), err, len(big))
	}
	if got := p.Accepted(); got != 1 {
		t.Errorf("accepted %d connections, want 1", got)
	}
}

func TestForwardsResets(t *testing.T) {
	p := faultproxy.Start(t, serve(t, func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0) // closing resets
	}))
	conn := dial(t, p)
	send(t, conn, "x")
	reset(t, conn)
}

func TestResetsWhatItCannotForward(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	p := faultproxy.Start(t, target)
	conn, err := net.Dial("tcp", p.Addr())
	if err == nil {
		defer func() { _ = conn.Close() }()
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestCutEndsAllAndResumeBringsNewOnes(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	first := dial(t, p)
	send(t, first, "a")
	receive(t, first, "a")
	p.Cut()
	reset(t, first)
	refused(t, p)
	if got := p.Open(); got != 0 {
		t.Errorf("%d connections are open, want 0", got)
	}
	p.Resume()
	p.Resume() // of nothing
	second := dial(t, p)
	send(t, second, "b")
	receive(t, second, "b")
}

func TestRefuseLeavesOldConnections(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	conn := dial(t, p)
	send(t, conn, "a")
	receive(t, conn, "a")
	p.Refuse()
	refused(t, p)
	send(t, conn, "b")
	receive(t, conn, "b")
}

func TestDelayHoldsEveryByteBackForItsTime(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	conn := dial(t, p)
	p.Delay(40 * time.Millisecond)
	start := time.Now()
	send(t, conn, "a")
	receive(t, conn, "a")
	if took := time.Since(start); took < 80*time.Millisecond {
		t.Errorf("there and back took %v, want at least twice 40ms", took)
	}
	p.Delay(time.Hour)
	send(t, conn, "b")
	silent(t, conn)
	p.Resume()
	receive(t, conn, "b")
}

func TestBlackholeHoldsOldAndNewConnections(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	old := dial(t, p)
	send(t, old, "a")
	receive(t, old, "a")
	p.Blackhole()
	fresh := dial(t, p)
	send(t, old, "b")
	send(t, fresh, "c")
	silent(t, old)
	silent(t, fresh)
	p.Resume()
	receive(t, old, "b")
	receive(t, fresh, "c")
}

func TestBlackholeEndsWithTheTest(t *testing.T) {
	t.Run("inner", func(t *testing.T) {
		p := faultproxy.Start(t, serve(t, echo))
		p.Blackhole()
		send(t, dial(t, p), "x")
	}) // the leak check finds what stayed
}

func TestResetAfterCountsAnswersOfEachConnection(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	old := dial(t, p)
	send(t, old, "123456")
	receive(t, old, "123456") // does not count
	p.ResetAfter(4)
	for _, conn := range []net.Conn{old, dial(t, p)} {
		send(t, conn, "abc")
		receive(t, conn, "abc")
		send(t, conn, "def")
		receive(t, conn, "d")
		reset(t, conn)
	}
}

func TestResetAfterNothingCutsTheFirstAnswer(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	p.ResetAfter(0)
	conn := dial(t, p)
	send(t, conn, "abc")
	reset(t, conn)
}

func TestSlowDripGivesAFewBytesAtATime(t *testing.T) {
	p := faultproxy.Start(t, serve(t, echo))
	conn := dial(t, p)
	p.SlowDrip(2, time.Hour)
	send(t, conn, "abcdef")
	receive(t, conn, "ab")
	silent(t, conn)
	p.SlowDrip(1, time.Millisecond)
	receive(t, conn, "cd")
	p.Resume()
	receive(t, conn, "ef")
}
