package watch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// impostor is a TCP server that plays answer on every connection.
func impostor(t *testing.T, answer func(net.Conn)) string {
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
			answer(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

// frame is a reply of that many bytes.
func frame(size int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(size)), make([]byte, min(size, 1<<20))...)
}

// greeting accepts a session of 2 s.
func greeting() []byte {
	body := binary.BigEndian.AppendUint32(nil, 0)    // protocol version
	body = binary.BigEndian.AppendUint32(body, 2000) // timeout, ms
	body = binary.BigEndian.AppendUint64(body, 77)   // session
	body = binary.BigEndian.AppendUint32(body, 16)   // password
	body = append(body, make([]byte, 16)...)         //
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func listen(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Read(make([]byte, 1024))
}

func runConfig(servers ...string) Config {
	return Config{Servers: servers, Roots: bothRoots, Namespace: "default", SessionTimeout: time.Second, Log: slog.New(slog.DiscardHandler)}
}

func TestRunAgainstServersThatAreNone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(net.Conn)
		want   string
	}{
		{"hangs up", func(net.Conn) {}, "connection closed"},
		{"speaks HTTP", func(c net.Conn) {
			listen(c)
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}, "reply of 1213486160 bytes, want 16 to 4096"},
		{"greets with too much", func(c net.Conn) {
			listen(c)
			_, _ = c.Write(frame(1 << 20))
		}, "reply of 1048576 bytes"},
		{"greets with nothing", func(c net.Conn) {
			listen(c)
			_, _ = c.Write(frame(0))
		}, "reply of 0 bytes"},
		{"is silent", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "connection closed"},
		{"is silent after its greeting", func(c net.Conn) {
			listen(c)
			_, _ = c.Write(greeting())
			_, _ = io.Copy(io.Discard, c)
		}, "sync with the leader"},
		{"answers with too much", func(c net.Conn) {
			listen(c)
			_, _ = c.Write(greeting())
			listen(c)
			_, _ = c.Write(frame(1 << 30))
		}, "reply of 1073741824 bytes, want 16 to 67108864"},
		{"answers with too little", func(c net.Conn) {
			listen(c)
			_, _ = c.Write(greeting())
			listen(c)
			_, _ = c.Write(frame(3))
		}, "reply of 3 bytes"},
		{"answers with noise", func(c net.Conn) {
			listen(c)
			_, _ = c.Write(greeting())
			listen(c)
			_, _ = c.Write(append(frame(16), bytes.Repeat([]byte{0, 0, 0, 16, 0xff}, 100)...))
		}, "sync with the leader"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := &mesh{}
			start := time.Now()
			err := Run(t.Context(), runConfig(impostor(t, tt.answer)), &Memory{}, m)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if len(m.updates) != 0 {
				t.Errorf("updates %+v", m.updates)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestRunNamesEveryServerThatRefused(t *testing.T) {
	var servers []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, l.Addr().String())
		_ = l.Close()
	}
	err := Run(t.Context(), runConfig(servers...), &Memory{}, &mesh{})
	for _, server := range servers {
		if err == nil || !strings.Contains(err.Error(), server+": connect: connection refused") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want one line that names %s", err, server)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){
		"before the greeting": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"after it": func(c net.Conn) {
			listen(c)
			_, _ = c.Write(greeting())
			_, _ = io.Copy(io.Discard, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := runConfig(impostor(t, answer))
			cfg.SessionTimeout = time.Minute
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			if err := Run(ctx, cfg, &Memory{}, &mesh{}); err != nil {
				t.Errorf("got %v, want nil: the context ended it", err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func FuzzGuard(f *testing.F) {
	f.Add(greeting(), 3)
	f.Add(append(greeting(), frame(16)...), 1)
	f.Add(append(greeting(), frame(1<<30)...), 7)
	f.Add([]byte("HTTP/1.1 200 OK\r\n"), 4)
	f.Fuzz(func(t *testing.T, stream []byte, step int) {
		step = max(step%64, 1)
		var whole, parts guard
		wholeErr := whole.follow(stream)
		var partsErr error
		for rest := stream; len(rest) > 0 && partsErr == nil; {
			n := min(step, len(rest))
			partsErr = parts.follow(rest[:n])
			rest = rest[n:]
		}
		if (wholeErr == nil) != (partsErr == nil) {
			t.Fatalf("at once %v, in parts of %d %v", wholeErr, step, partsErr)
		}
		// The oracle walks over the frames by itself.
		high, bad := int64(maxGreeting), false
		for rest := stream; len(rest) >= 4 && !bad; high = maxReply {
			size := int64(binary.BigEndian.Uint32(rest))
			bad = size < minReply || size > high
			rest = rest[min(int64(len(rest)), 4+size):]
		}
		if bad != (wholeErr != nil) {
			t.Errorf("got %v, want an error: %v", wholeErr, bad)
		}
	})
}

func BenchmarkGuard(b *testing.B) {
	stream := bytes.Repeat(frame(1000), 1000)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		g := guard{greeted: true}
		if err := g.follow(stream); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(errors.Join(errors.New("a"), errors.New("b"))); got != "a; b" {
		t.Errorf("got %q", got)
	}
	if got := oneLine(errors.New(strings.Repeat("ä", 1000))); len(got) > maxReason+3 {
		t.Errorf("%d bytes", len(got))
	}
	if got := where("/a\n" + strings.Repeat("x", 1000)); len(got) > maxWhere+10 || strings.Contains(got, "\n") {
		t.Errorf("got %q", got)
	}
}
