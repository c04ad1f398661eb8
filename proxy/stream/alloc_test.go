package stream_test

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

type sink struct{}

func (sink) Write(p []byte) (int, error) { return len(p), nil }
func (sink) Close() error                { return nil }

// fixedServer answers every request that comes as one segment with 1 KiB, and
// does not allocate.
func fixedServer(t testing.TB) string {
	answer := []byte("HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + string(make([]byte, 1024)))
	s := newScript(t, func(_ int64, c net.Conn, _ *bufio.Reader) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
	return s.addr()
}

// keepAlive returns a function that makes one request over b and does not allocate.
func keepAlive(t testing.TB, b *bed) func() { return keepAliveAt(t, b.addr) }

func keepAliveAt(t testing.TB, addr string) func() {
	c := dial(t, addr)
	request := []byte("GET /v1/orders/4711 HTTP/1.1\r\nHost: orders.default.svc.cluster.local\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nX-A: b\r\n\r\n")
	buf := make([]byte, 8192)
	one := func() int {
		if _, err := c.Conn.Write(request); err != nil {
			t.Fatal(err)
		}
		n := 0
		for n < 1024+len("\r\n\r\n") {
			m, err := c.Conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		return n
	}
	size := one()
	return func() {
		if n := one(); n != size {
			t.Fatalf("got %d bytes, want %d", n, size)
		}
	}
}

// The whole way of a request over kept connections, with statistics, access log
// and request ID, allocates nothing. AllocsPerRun counts all goroutines.
func TestKeepAliveRequestDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	b := newBed(t, nil, fixedServer(t))
	b.http.RequestID = true
	b.http.Log = accessLog(t)
	b.serve()
	one := keepAlive(t, b)
	for range 100 {
		one()
	}
	if n := testing.AllocsPerRun(2000, one); n > 0 {
		t.Errorf("got %v allocations a request, want 0", n)
	}
}

func accessLog(t testing.TB) *telemetry.AccessLog {
	l, err := telemetry.NewAccessLog(telemetry.AccessLogConfig{Open: func() (io.WriteCloser, error) { return sink{}, nil },
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func BenchmarkKeepAlive(b *testing.B) {
	bed := newBed(b, nil, fixedServer(b))
	bed.serve()
	one := keepAlive(b, bed)
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}

// The same when the connection rests after every request, as it does among many.
func BenchmarkKeepAliveAtRest(b *testing.B) {
	bed := newBed(b, nil, fixedServer(b))
	bed.crowded = true
	bed.serve()
	one := keepAlive(b, bed)
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}
