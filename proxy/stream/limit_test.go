package stream_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// One request at a time needs one connection, however many hosts there are: idle
// ones of other hosts make room.
func TestIdleConnectionsDoNotHoldTheLimit(t *testing.T) {
	say := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }
	}
	b := newBed(t, nil, origin(t, say("a")), origin(t, say("b")))
	c := b.clusters["origin"]
	s := settings()
	s.Limits = upstream.Limits{Connections: 1}
	c.Configure(s)
	b.serve()
	client := b.dial()
	seen := map[string]int{}
	for range 8 {
		client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, body := client.answer(http.MethodGet)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d, want 200 from each host in turn", resp.StatusCode)
		}
		seen[body]++
	}
	if seen["a"] == 0 || seen["b"] == 0 {
		t.Errorf("answers by host: got %v, want both", seen)
	}
	if n := c.Stats.ConnectionOverflow.Value(); n != 0 {
		t.Errorf("connection overflows: got %d, want 0", n)
	}
	if n := c.Stats.ConnectionActive.Value(); n != 1 {
		t.Errorf("open connections: got %d, want 1", n)
	}
}
