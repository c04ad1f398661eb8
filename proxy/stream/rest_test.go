package stream_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// In a crowded lot a connection rests after every request. Nothing of that may be
// seen from outside.
func TestConnectionsThatRestAfterEveryRequest(t *testing.T) {
	b := newBed(t, nil, origin(t, echo))
	b.crowded = true
	b.serve()
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	body := strings.Repeat("0123456789", 20<<10)
	var wg sync.WaitGroup
	for range 8 {
		c := b.dial()
		wg.Go(func() {
			for i := range 30 {
				c.send(get)
				c.answer("GET")
				c.send(get + get) // the second waits in the buffer
				c.answer("GET")
				c.answer("GET")
				if i%10 == 0 {
					c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(body)))
					c.send(body[:len(body)/2])
					c.send(body[len(body)/2:])
					if _, got := c.answer("POST"); !strings.Contains(got, body) {
						t.Errorf("got %d bytes back, want %d", len(got), len(body))
					}
				}
				c.send(get[:10]) // a head that begins and goes on later
				c.send(get[10:])
				c.answer("GET")
			}
			_ = c.Close()
		})
	}
	wg.Wait()
	eventually(t, "all connections end", func() bool { return b.http.Stats.ConnectionActive.Value() == 0 })
	if got := b.http.Stats.ConnectionTotal.Value(); got != 8 {
		t.Errorf("got %d connections, want 8: one that wakes is no new one", got)
	}
	if got, want := b.http.Stats.RequestTotal.Value(), int64(8*(30*4+3)); got != want {
		t.Errorf("got %d requests, want %d", got, want)
	}
}

func TestConnectionsAtRestEndAsOthersDo(t *testing.T) {
	ends := map[string]func(b *bed, c *client) error{
		"drain":             func(b *bed, _ *client) error { b.drain(); return nil },
		"half-closed":       func(_ *bed, c *client) error { return c.Conn.(*net.TCPConn).CloseWrite() },
		"idle for too long": func(*bed, *client) error { return nil },
		"malformed": func(_ *bed, c *client) error {
			c.send("nonsense\r\n\r\n")
			if resp, _ := c.answer("GET"); resp.StatusCode != http.StatusBadRequest {
				return fmt.Errorf("got %s", resp.Status)
			}
			return nil
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, nil, origin(t, echo))
			b.crowded = true
			if name == "idle for too long" {
				b.http.IdleTimeout = 50 * time.Millisecond
			}
			b.serve()
			c := b.dial()
			c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			c.answer("GET")
			if err := end(b, c); err != nil {
				t.Fatal(err)
			}
			c.ended()
			eventually(t, "it is counted", func() bool { return b.http.Stats.ConnectionActive.Value() == 0 })
		})
	}
}
