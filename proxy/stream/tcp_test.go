package stream_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestTCPCarriesBothWaysAndHalfCloses(t *testing.T) {
	// The server answers only after the client has said all.
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		all, err := io.ReadAll(r)
		if err == nil {
			_, _ = c.Write(all)
		}
	})
	b := newBed(t, nil, s.addr()).serveTCP(0)
	sent := make([]byte, 4<<20)
	_, _ = rand.Read(sent)
	for _, size := range []int{0, 1, 1000, len(sent)} {
		c := b.dial()
		go func() {
			_, _ = c.Write(sent[:size])
			_ = c.Conn.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c.r)
		if err != nil || !bytes.Equal(got, sent[:size]) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
	}
	eventually(t, "all connections are over", func() bool {
		return b.http.Stats.ConnectionActive.Value() == 0 && b.clusters["origin"].Stats.ConnectionActive.Value() == 0
	})
}

func TestTCPServerMaySpeakFirst(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, "hello\n")
		line, _ := r.ReadString('\n')
		_, _ = io.WriteString(c, line)
	})
	b := newBed(t, nil, s.addr()).serveTCP(0)
	c := b.dial()
	if line, err := c.r.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	c.send("bye\n")
	if line, err := c.r.ReadString('\n'); err != nil || line != "bye\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	c.ended()
}

func TestTCPTriesAnotherHost(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, _ *bufio.Reader) { _, _ = io.WriteString(c, "here") })
	b := newBed(t, nil, refusing(t), s.addr()).serveTCP(0)
	for range 8 {
		c := b.dial()
		if got, err := io.ReadAll(c.r); err != nil || string(got) != "here" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestTCPWithoutAHostIsReset(t *testing.T) {
	b := newBed(t, nil).serveTCP(0)
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		return // so early that connecting noticed
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestTCPIdleTimeout(t *testing.T) {
	s := newScript(t, func(_ int64, _ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	b := newBed(t, nil, s.addr()).serveTCP(100 * time.Millisecond)
	c := b.dial()
	c.send("x")
	c.ended()
}
