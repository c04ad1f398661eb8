package conn_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// These show that crypto/tls runs on Loop: a shim that reads without blocking
// stands below tls.Conn, which keeps a half-read record over ErrWouldBlock since
// that is temporary. A handshake cannot be resumed so; it runs before Loop, when
// the shim still blocks. Figures: ../RATIONALE.md, "Connections".

// shim is what tls.Conn reads from and writes to.
type shim struct {
	net.Conn // for the handshake, and for the rest of the interface
	c        *conn.Conn
	out      []byte // records of one Ready, written at its end
	loop     bool
}

func (s *shim) Read(p []byte) (int, error) {
	if !s.loop {
		return s.Conn.Read(p)
	}
	return s.c.TryRead(p)
}

func (s *shim) Write(p []byte) (int, error) {
	if !s.loop {
		return s.Conn.Write(p)
	}
	s.out = append(s.out, p...)
	return len(p), nil
}

// tlsEcho sends back what it reads.
type tlsEcho struct {
	shim *shim
	tls  *tls.Conn
	buf  [16 << 10]byte
	err  error
}

func (e *tlsEcho) Ready(c *conn.Conn) bool {
	for {
		n, err := e.tls.Read(e.buf[:])
		if n > 0 {
			if _, err := e.tls.Write(e.buf[:n]); err != nil {
				e.err = err
				return true
			}
		}
		if err != nil {
			if len(e.shim.out) > 0 {
				if err := c.Write(e.shim.out); err != nil {
					e.err = err
					return true
				}
				e.shim.out = e.shim.out[:0]
			}
			if errors.Is(err, conn.ErrWouldBlock) {
				return false
			}
			if !errors.Is(err, io.EOF) {
				e.err = err
			}
			return true
		}
	}
}

func certificate(t testing.TB) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// tlsPair returns a client whose server echoes, on the loop or blocking.
func tlsPair(t testing.TB, loop bool) *tls.Conn {
	w := startWheel(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := certificate(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		c, err := conn.New(nc, w, 0)
		if err != nil {
			t.Error(err)
			return
		}
		s := &shim{Conn: nc, c: c}
		e := &tlsEcho{shim: s, tls: tls.Server(s, cfg)}
		if err := e.tls.HandshakeContext(t.Context()); err != nil {
			t.Errorf("handshake: %v", err)
			return
		}
		if !loop {
			for {
				n, err := e.tls.Read(e.buf[:])
				if err != nil {
					return
				}
				if _, err := e.tls.Write(e.buf[:n]); err != nil {
					return
				}
			}
		}
		s.loop = true
		if err := c.Loop(e); err != nil || e.err != nil {
			t.Errorf("loop: %v, %v", err, e.err)
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = l.Close()
		<-done
	})
	return c
}

func TestTLSRunsOnTheLoop(t *testing.T) {
	c := tlsPair(t, true)
	sent := make([]byte, 300<<10) // many records, cut anywhere by the kernel
	_, _ = rand.Read(sent)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 777)
			if _, err := c.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("got other bytes back, %v", err)
	}
}

// benchmarkEcho sends 1 KiB and waits for it to come back. Both ends are in this
// process: a side costs half of what TLS costs more than plain bytes.
func benchmarkEcho(b *testing.B, c net.Conn) {
	buf := make([]byte, 1024)
	b.ReportAllocs()
	before := usedCPU(b)
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((usedCPU(b)-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
}

// usedCPU is the time this process has run for.
func usedCPU(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkTLSOnTheLoop(b *testing.B) { benchmarkEcho(b, tlsPair(b, true)) }
func BenchmarkTLSBlocking(b *testing.B)  { benchmarkEcho(b, tlsPair(b, false)) }

func BenchmarkPlainOnTheLoop(b *testing.B) {
	c, peer := pair(b)
	var buf [16 << 10]byte
	done := loop(c, func(c *conn.Conn) bool {
		n, err := c.TryRead(buf[:])
		if err != nil {
			return !errors.Is(err, conn.ErrWouldBlock)
		}
		return c.Write(buf[:n]) != nil
	})
	benchmarkEcho(b, peer)
	_ = peer.Close()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
