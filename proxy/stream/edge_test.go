package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

// trailing answers with the size of the body and the trailer it got.
func trailing(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	_, _ = fmt.Fprintf(w, "%d %q %q %v", n, r.Trailer.Get("x-long"), r.Trailer.Get("y"), err)
}

// large is a chunked request that outgrows what is kept of a body.
func large(trailer string) string {
	const chunk = 10 << 10
	one := fmt.Sprintf("%x;e=1\r\n%s\r\n", chunk, strings.Repeat("d", chunk))
	return "POST / HTTP/1.1\r\nHost: x\r\nTrailer: x-long, y\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat(one, 7) + "0\r\n" + trailer + "\r\n"
}

func TestLargeChunkedRequestInPieces(t *testing.T) {
	b := newBed(t, nil, origin(t, trailing)).serve()
	send := large("x-long: aaaaaaaaaaaaaaaaaaaaaaaa\r\ny: b\r\n")
	const want = `71680 "aaaaaaaaaaaaaaaaaaaaaaaa" "b" <nil>`
	check := func(t *testing.T, c *client) {
		t.Helper()
		if resp, body := c.answer("POST"); resp.StatusCode != 200 || body != want {
			t.Errorf("got %d %s, want 200 %s", resp.StatusCode, body, want)
		}
	}
	pause := func() { <-time.After(2 * time.Millisecond) } // lets the proxy read what there is
	for cut := len(send) - 70; cut < len(send); cut++ {
		c := b.dial()
		c.send(send[:cut])
		pause()
		c.send(send[cut:])
		check(t, c)
		_ = c.Close()
	}
	// Byte by byte from the last chunk's end, twice on one connection.
	c := b.dial()
	for range 2 {
		c.send(send[:len(send)-70])
		for i := len(send) - 70; i < len(send); i++ {
			pause()
			c.send(send[i : i+1])
		}
		check(t, c)
	}
}

func TestTrailerLargerThanABufferIsRefused(t *testing.T) {
	release := make(chan struct{})
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		_, _ = io.Copy(io.Discard, r)
		<-release
	})
	defer close(release)
	b := newBed(t, nil, s.addr()).serve()
	c := b.dial()
	// The head and the trailer fit neither alone nor together.
	head := "POST / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 20<<10) + "\r\nTransfer-Encoding: chunked\r\n\r\n"
	c.send(head + fmt.Sprintf("%x\r\n%s\r\n0\r\n", 70<<10, strings.Repeat("d", 70<<10)))
	c.send("x-long: " + strings.Repeat("b", 50<<10))
	if resp, _ := c.answer("POST"); resp.StatusCode != 431 || !resp.Close {
		t.Errorf("got %d, close %v, want 431, true", resp.StatusCode, resp.Close)
	}
}

// A head may be allowed to be larger than a buffer is; it must not make the
// connection spin.
func TestHeadLargerThanABuffer(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("a", 70<<10))
			_, _ = io.Copy(io.Discard, r)
		}
	})
	b := newBed(t, nil, s.addr())
	b.http.MaxHeaderBytes = 96 << 10
	b.serve()
	c := b.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 70<<10))
	if resp, _ := c.answer("GET"); resp.StatusCode != 431 {
		t.Errorf("request: got %d, want 431", resp.StatusCode)
	}
	c = b.dial()
	c.send(getRoot)
	if resp, _ := c.answer("GET"); resp.StatusCode != 502 {
		t.Errorf("response: got %d, want 502", resp.StatusCode)
	}
}

// Only an orderly end of the connection ends a body that has no other end.
func TestResetDoesNotEndABody(t *testing.T) {
	for _, reset := range []bool{false, true} {
		passed := make(chan struct{})
		s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
			if _, err := head(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\npartial")
			<-passed
			if reset {
				_ = c.(*net.TCPConn).SetLinger(0)
			}
		})
		b := newBed(t, nil, s.addr()).serve()
		c := b.dial()
		c.send(getRoot)
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("partial"))
		if _, err := io.ReadFull(resp.Body, got); err != nil {
			t.Fatal(err)
		}
		close(passed)
		if rest, err := io.ReadAll(resp.Body); (err != nil) != reset || len(rest) > 0 {
			t.Errorf("reset %v: got %q, %v", reset, rest, err)
		}
	}
}

// What the upgraded connection carries begins behind the request's body.
func TestUpgradeWithABody(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		h, err := head(r)
		body := make([]byte, 4)
		if _, berr := io.ReadFull(r, body); err != nil || berr != nil || string(body) != "body" {
			t.Errorf("got %q, %q, %v, %v", h, body, err, berr)
			return
		}
		if !strings.Contains(h, "upgrade: websocket") {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 3\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, r)
	})
	b := newBed(t, nil, s.addr()).serve()
	const ask = "POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\n"
	c := b.dial()
	c.send(ask + "bodyearly")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Content-Length") != "" {
		t.Fatalf("got %v, %v", resp, err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "early" {
		t.Errorf("got %q, %v, want early", got, err)
	}
	// A body that is still coming makes it an ordinary request.
	c = b.dial()
	c.send(ask + "bo")
	eventually(t, "the request is under way", func() bool { return s.conns.Load() == 2 })
	c.send("dy")
	if resp, _ := c.answer("POST"); resp.StatusCode != 200 {
		t.Errorf("got %d, want 200", resp.StatusCode)
	}
}

// An interim response has no body, and no field that speaks of one.
func TestInterimResponsesAreNotFramed(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := head(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\n\r\n"+
				"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n"+
				"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
		}
	})
	b := newBed(t, nil, s.addr()).serve()
	c := b.dial()
	for range 2 {
		c.send(getRoot)
		for _, want := range []string{"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"} {
			if h, err := head(c.r); err != nil || h != want {
				t.Fatalf("got %q, %v, want %q", h, err, want)
			}
		}
		if _, body := c.answer("GET"); body != "hi" {
			t.Errorf("got %q", body)
		}
	}
}

// What is between the client and us ends here.
func TestFieldsForUsDoNotPass(t *testing.T) {
	got := make(chan string, 1)
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		h, err := head(r)
		last, _ := head(r)
		got <- h + last
		if err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	b := newBed(t, nil, s.addr())
	b.http.RequestID = true
	b.serve()
	c := b.dial()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eA==\r\nX-Request-Id: theirs\r\nConnection: X-Request-Id\r\n" +
		"Transfer-Encoding: chunked\r\n\r\n0\r\nExpect: x\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\n\r\n")
	h := strings.ToLower(<-got)
	if strings.Contains(h, "proxy-") || strings.Contains(h, "expect") || strings.Contains(h, "theirs") || strings.Count(h, "x-request-id: ") != 1 {
		t.Errorf("origin got %q", h)
	}
	c.answer("POST")
}

// crashing panics when a response has come.
type crashing struct{ codec.Codec }

type crashingSession struct{ codec.Session }

type crashingExchange struct{ codec.Exchange }

func (k crashing) Serve(ctx context.Context, c *conn.Conn, cfg codec.Config, s codec.Session) error {
	return k.Codec.Serve(ctx, c, cfg, crashingSession{s})
}

func (s crashingSession) Open() codec.Exchange { return crashingExchange{s.Session.Open()} }

func (crashingExchange) Answered(codec.Response, bool, clock.Instant) *codec.Step {
	panic("out of order")
}

// A panic is passed to whoever serves, and leaves nothing counted as under way.
func TestPanicEndsItsExchange(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			_, _ = io.Copy(io.Discard, r)
		}
	})
	b := newBed(t, nil, s.addr())
	b.http.Codec = crashing{b.http.Codec}
	caught := make(chan any, 1)
	b.serveBy(func(ctx context.Context, c *conn.Conn) error {
		defer func() {
			caught <- recover()
			c.Close()
		}()
		return b.http.Serve(ctx, c)
	})
	for _, send := range []string{getRoot, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel"} {
		c := b.dial()
		c.send(send)
		if got := fmt.Sprint(<-caught); !strings.HasPrefix(got, "out of order") {
			t.Errorf("%q: got %v", send, got)
		}
		c.ended()
		cluster := b.clusters["origin"]
		if n, m := b.http.Stats.RequestActive.Value(), b.http.Stats.ConnectionActive.Value(); n != 0 || m != 0 {
			t.Errorf("%q: %d requests and %d connections active, want 0", send, n, m)
		}
		if n := cluster.Stats.ConnectionActive.Value(); n != 0 {
			t.Errorf("%q: %d connections to the origin, want 0", send, n)
		}
	}
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (*lines) Close() error { return nil }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// One field of the log cannot be made up by means of another.
func TestRepeatedFieldsInTheAccessLog(t *testing.T) {
	out := new(lines)
	log, err := telemetry.NewAccessLog(telemetry.AccessLogConfig{Open: func() (io.WriteCloser, error) { return out, nil },
		Log: slog.New(slog.DiscardHandler), Delay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := log.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	b := newBed(t, nil, origin(t, echo))
	b.http.Log = log
	b.serve()
	c := b.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: agent1\r\nUser-Agent: agent2\r\nX-Forwarded-For:\r\nX-Forwarded-For: 192.0.2.1\r\n" +
		"X-Request-Id: id1\r\nX-Request-Id: id2\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.StatusCode != 200 {
		t.Errorf("got %d", resp.StatusCode)
	}
	eventually(t, "a line is written", func() bool { return strings.Contains(out.String(), "\n") })
	for _, want := range []string{`"agent1,agent2"`, `",192.0.2.1"`, `"id1,id2"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got %s, want it to have %s", out.String(), want)
		}
	}
}
