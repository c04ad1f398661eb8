package traffic_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/testenv/load/traffic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func loop(t *testing.T) *traffic.Loop {
	t.Helper()
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil {
		t.Fatal(err)
	}
	core := 0
	for !cores.IsSet(core) {
		core++
	}
	l, err := traffic.New(traffic.Config{Core: core, Application: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

func requests() [][]byte {
	return [][]byte{[]byte("GET /a HTTP/1.1\r\nHost: x\r\n\r\n"), []byte("GET /b HTTP/1.1\r\nHost: x\r\n\r\n")}
}

func TestSaturationIsMeasured(t *testing.T) {
	l := loop(t)
	began, ended := 0, 0
	res, err := l.Drive(t.Context(), traffic.Plan{
		Target: l.Application()[0], Requests: requests(), Connections: 4, Warm: 20 * time.Millisecond, Measure: 100 * time.Millisecond,
		Began: func() error { began++; return nil }, Ended: func() error { ended++; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Requests < 100 || res.Took < 100*time.Millisecond || res.RPS() <= 0 || began != 1 || ended != 1 {
		t.Errorf("%d requests in %v, begun %d and ended %d times", res.Requests, res.Took, began, ended)
	}
	if p50, p99 := res.Latency(0.5), res.Latency(0.99); p50 <= 0 || p99 < p50 {
		t.Errorf("p50 %v, p99 %v", p50, p99)
	}
	if l.Accepted() != 4 || l.Served() < res.Requests {
		t.Errorf("the application saw %d connections and %d requests of %d", l.Accepted(), l.Served(), res.Requests)
	}
}

func TestAFixedRateIsKept(t *testing.T) {
	l := loop(t)
	const rate, took = 1000, 500 * time.Millisecond
	res, err := l.Drive(t.Context(), traffic.Plan{Target: l.Application()[0], Requests: requests(), Connections: 8, Rate: rate, Measure: took})
	if err != nil {
		t.Fatal(err)
	}
	// A busy machine leaves some unanswered at the end; a closed loop would make
	// many times as many.
	if want := rate * res.Took.Seconds(); float64(res.Requests) < 0.3*want || float64(res.Requests) > 1.1*want+8 {
		t.Errorf("%d requests in %v, want about %.0f", res.Requests, res.Took, want)
	}
}

// TestLatencyCountsFromTheTimeARequestIsDue lets the server pause once: every
// request that became due meanwhile must count the pause.
func TestLatencyCountsFromTheTimeARequestIsDue(t *testing.T) {
	const pause = 300 * time.Millisecond
	paused := false
	at := server(t, func(c net.Conn) error {
		if !paused {
			paused = true
			select {
			case <-time.After(pause):
			case <-t.Context().Done():
			}
		}
		return answer(c, 200, traffic.BodyBytes)
	})
	res, err := loop(t).Drive(t.Context(), traffic.Plan{Target: at, Requests: requests(), Connections: 1, Rate: 1000, Measure: 2 * pause})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Latency(0.75); got < pause/4 {
		t.Errorf("75th percentile %v: the requests that waited for the pause are left out", got)
	}
}

// server answers each request, one connection after the other, until the test ends.
func server(t *testing.T, each func(net.Conn) error) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			for err == nil {
				if _, err = c.Read(buf); err == nil {
					err = each(c)
				}
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func answer(c net.Conn, status, bodyBytes int) error {
	body := strings.Repeat("0123456789abcdef", bodyBytes/16)
	_, err := fmt.Fprintf(c, "HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	return err
}

func TestWrongAnswersEndTheMeasurement(t *testing.T) {
	tests := []struct {
		name string
		each func(net.Conn) error
		want string
	}{
		{name: "status", each: func(c net.Conn) error { return answer(c, 503, traffic.BodyBytes) }, want: "want status 200"},
		{name: "length", each: func(c net.Conn) error { return answer(c, 200, 512) }, want: "Content-Length 512, want 1024"},
		{name: "other body", want: "another body", each: func(c net.Conn) error {
			_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n%s", strings.Repeat("x", 1024))
			return err
		}},
		{name: "no length", want: "without Content-Length", each: func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			return err
		}},
		{name: "closed", each: func(net.Conn) error { return io.EOF }, want: "closed by the subject"},
		{name: "announced close", want: "does not keep the connection alive", each: func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1024\r\n\r\n")
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := loop(t).Drive(t.Context(), traffic.Plan{Target: server(t, tt.each), Requests: requests(), Connections: 1, Measure: 10 * time.Second})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestHeldConnectionsStayAndAreDropped(t *testing.T) {
	l := loop(t)
	for range 2 {
		if err := l.Hold(t.Context(), l.Application()[0], requests(), 100); err != nil {
			t.Fatal(err)
		}
	}
	if l.Accepted() != 200 || l.Served() != 200 {
		t.Errorf("%d connections and %d requests, want 200 of each", l.Accepted(), l.Served())
	}
	if err := l.Drop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAHeldConnectionThatEndsIsReported(t *testing.T) {
	answered := make(chan struct{})
	at := server(t, func(c net.Conn) error {
		defer close(answered)
		if err := answer(c, 200, traffic.BodyBytes); err != nil {
			return err
		}
		return io.EOF
	})
	l := loop(t)
	if err := l.Hold(t.Context(), at, requests(), 1); err != nil {
		t.Fatal(err)
	}
	<-answered
	// A second connection is taken only when the first is closed, and its answer
	// comes after the loop has seen that.
	at2 := server(t, func(c net.Conn) error { return answer(c, 200, traffic.BodyBytes) })
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, err := l.Drive(t.Context(), traffic.Plan{Target: at2, Requests: requests(), Connections: 1, Measure: 20 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		err := l.Drop(t.Context())
		if err != nil {
			if !strings.Contains(err.Error(), "1 idle connections were closed") {
				t.Errorf("got %v", err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the lost connection was never reported")
		}
		if err := l.Hold(t.Context(), at2, requests(), 1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheSinkCountsLines(t *testing.T) {
	l := loop(t)
	c, err := net.Dial("tcp", l.Sink().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "one\ntwo\nthree\n"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); l.Lines() != 3; {
		if time.Now().After(deadline) {
			t.Fatalf("%d lines, want 3", l.Lines())
		}
		// Each call makes one round through the loop.
		if err := l.Drop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
