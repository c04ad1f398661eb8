package stream_test

import (
	"net"
	"runtime"
	"sync"
	"testing"
)

// idleConnections opens n connections, makes a request on each and checks that
// they are kept, cost little, and can still be used.
func idleConnections(t *testing.T, n int, maxBytes int64) {
	b := newBed(t, nil, fixedServer(t)).serve()
	inUse := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := inUse()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c
		defer c.Close()
	}
	buf := make([]byte, 8192)
	use := func() {
		for _, c := range conns {
			if _, err := c.Write([]byte(getRoot)); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < 1100; {
				m, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				got += m
			}
		}
	}
	use()
	eventually(t, "all connections are idle", func() bool { return b.http.Stats.RequestActive.Value() == 0 })
	if got := b.http.Stats.ConnectionActive.Value(); got != int64(n) {
		t.Errorf("got %d connections, want %d", got, n)
	}
	// The client's ends are in this process too: about 0.6 KiB each.
	var cost int64 // may be below 0: earlier tests leave memory behind
	eventually(t, "idle connections are at rest", func() bool {
		cost = (inUse() - before) / int64(n)
		return cost <= maxBytes
	})
	t.Logf("%d idle connections cost %d bytes each, both ends", n, cost)
	use()
}

// shortConnections opens n connections from several clients, a request on each.
func shortConnections(t *testing.T, n int) {
	b := newBed(t, nil, fixedServer(t)).serve()
	const clients = 8
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			buf := make([]byte, 8192)
			for range n / clients {
				c, err := net.Dial("tcp", b.addr)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = c.Write([]byte(getRoot))
				for got := 0; got < 1100 && err == nil; {
					var m int
					m, err = c.Read(buf)
					got += m
				}
				_ = c.(*net.TCPConn).SetLinger(0) // leaves no port behind
				_ = c.Close()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all connections are over", func() bool { return b.http.Stats.ConnectionActive.Value() == 0 })
	if got := b.http.Stats.RequestTotal.Value(); got != int64(n) {
		t.Errorf("got %d requests, want %d", got, n)
	}
	if got := b.clusters["origin"].Stats.ConnectionTotal.Value(); got > 64 {
		t.Errorf("got %d upstream connections for %d clients at once", got, clients)
	}
}

func TestIdleConnections(t *testing.T)  { idleConnections(t, 500, 3<<10) }
func TestShortConnections(t *testing.T) { shortConnections(t, 2000) }
