package conn_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

func startLot(t *testing.T) *conn.Lot {
	l, err := conn.NewLot()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := await(t, "Run returns", done); err != nil {
			t.Error(err)
		}
	})
	return l
}

// admitted is a pair whose connection tells on the channel that it woke.
func admitted(t *testing.T, l *conn.Lot) (*conn.Conn, *net.TCPConn, chan struct{}) {
	c, peer := pair(t)
	woke := make(chan struct{}, 1)
	l.Admit(c, func() {
		select {
		case woke <- struct{}{}:
		default:
			t.Error("woken twice for one rest")
		}
	})
	return c, peer, woke
}

func TestWhatWakesAConnectionAtRest(t *testing.T) {
	l := startLot(t)
	causes := []struct {
		name string
		do   func(c *conn.Conn, peer *net.TCPConn) error
		want error // of Peek after it woke
	}{
		{"bytes", func(_ *conn.Conn, peer *net.TCPConn) error { _, err := peer.Write([]byte("x")); return err }, nil},
		{"end of stream", func(_ *conn.Conn, peer *net.TCPConn) error { return peer.Close() }, errEnd},
		{"abort", func(c *conn.Conn, _ *net.TCPConn) error { c.Abort(); return nil }, errEnd},
		{"kick", func(c *conn.Conn, _ *net.TCPConn) error { c.Kick(); return nil }, conn.ErrWouldBlock},
		{"drain", func(c *conn.Conn, _ *net.TCPConn) error { c.Drain(); return nil }, conn.ErrWouldBlock},
		{"timer", func(c *conn.Conn, _ *net.TCPConn) error { c.WakeAt(c.Now().Add(time.Millisecond)); return nil }, conn.ErrWouldBlock},
	}
	for _, cause := range causes {
		// What comes just before the rest must wake as what comes during it.
		for _, early := range []bool{true, false} {
			name := cause.name + " during the rest"
			if early {
				name = cause.name + " before the rest"
			}
			t.Run(name, func(t *testing.T) {
				c, peer, woke := admitted(t, l)
				if early {
					if err := cause.do(c, peer); err != nil {
						t.Fatal(err)
					}
				}
				c.Rest()
				if !early {
					if err := cause.do(c, peer); err != nil {
						t.Fatal(err)
					}
				}
				await(t, "the connection wakes", woke)
				if !c.Rested() {
					t.Error("it does not know that it has rested")
				}
				err := c.Peek()
				if err != nil && !errors.Is(err, conn.ErrWouldBlock) {
					err = errEnd
				}
				if !errors.Is(err, cause.want) {
					t.Errorf("got %v after it woke, want %v", err, cause.want)
				}
			})
		}
	}
}

// errEnd stands for whatever end.
var errEnd = errors.New("an end of the stream")

// A connection rests again and again, and serves in between what came.
func TestConnectionsRestBetweenMessages(t *testing.T) {
	l := startLot(t)
	const connections, rounds = 40, 50
	var wg sync.WaitGroup
	for range connections {
		c, peer := pair(t)
		serve := func() {
			ended := false
			err := c.Loop(handler(func(c *conn.Conn) bool {
				var b [16]byte
				for {
					n, err := c.TryRead(b[:])
					if err != nil {
						ended = !errors.Is(err, conn.ErrWouldBlock)
						return true
					}
					if err := c.Write(b[:n]); err != nil {
						ended = true
						return true
					}
				}
			}))
			if err != nil {
				t.Error(err)
			}
			if ended {
				c.Close()
				wg.Done()
				return
			}
			c.Rest()
		}
		l.Admit(c, serve)
		wg.Add(2)
		go serve()
		go func() {
			defer wg.Done()
			defer peer.Close()
			var b [1]byte
			for i := range rounds {
				if i%7 == 0 {
					c.Kick() // without a cause, at any moment
				}
				if _, err := peer.Write([]byte{byte(i)}); err != nil {
					t.Error(err)
					return
				}
				if _, err := peer.Read(b[:]); err != nil || b[0] != byte(i) {
					t.Errorf("got %d, %v, want %d", b[0], err, i)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func TestPatienceEndsWithTheNumberAwake(t *testing.T) {
	c, _ := pair(t)
	if got := c.Patience(); got != time.Second || c.MayRest() {
		t.Errorf("got %v without a lot, want 1s", got)
	}
	l := startLot(t)
	l.Admit(c, func() {})
	last := time.Hour
	var steps []time.Duration
	for range 5000 {
		if got := c.Patience(); got != last {
			last, steps = got, append(steps, got)
		}
		l.Admit(new(conn.Conn), func() {})
	}
	if len(steps) != 3 || steps[0] != time.Second || steps[1] != time.Second/10 || steps[2] != 0 {
		t.Errorf("got %v, want 1s, 100ms, 0s", steps)
	}
}

// Who comes to rest in a lot that is closed is cut off rather than forgotten.
func TestAClosedLotKeepsNobody(t *testing.T) {
	l, err := conn.NewLot()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := pair(t)
	woke := make(chan struct{})
	l.Admit(c, func() { close(woke) })
	l.Close()
	c.Rest()
	await(t, "the connection wakes", woke)
	if err := c.Peek(); err == nil || errors.Is(err, conn.ErrWouldBlock) {
		t.Errorf("got %v, want an end", err)
	}
}
