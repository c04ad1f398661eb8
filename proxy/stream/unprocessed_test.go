package stream_test

import (
	"net/http"
	"sync/atomic"
	"testing"
)

// TestUnprocessedPostGoesElsewhere: the application behind one provider's sidecar
// is dead. Its sidecar says that nothing was delivered, so even a POST is sent to
// the other provider.
func TestUnprocessedPostGoesElsewhere(t *testing.T) {
	beside := func(app string) *bed {
		b := newBed(t, nil, app)
		b.http.Inbound = true
		return b.serve()
	}
	dead := beside(refusing(t))
	alive := beside(origin(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	b := newBed(t, routes(withRetries("connect-failure,refused-stream", 2, 0)), dead.addr, alive.addr).serve()
	c := b.dial()
	for range 20 {
		c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
		if resp, body := c.answer("POST"); resp.StatusCode != 204 {
			t.Fatalf("got %d %q, want 204", resp.StatusCode, body)
		}
	}
	if b.clusters["origin"].Stats.Retries.Value() == 0 {
		t.Error("no retry was counted: the dead provider was never asked")
	}
}

// TestApplicationCannotAskForRepetition: an application that sends the mark
// itself gets each POST once, and the mark stops at its sidecar.
func TestApplicationCannotAskForRepetition(t *testing.T) {
	var got atomic.Int64
	provider := newBed(t, nil, origin(t, func(w http.ResponseWriter, _ *http.Request) {
		got.Add(1)
		w.Header().Set("X-Mesh-Unprocessed", "true")
		w.WriteHeader(503)
	}))
	provider.http.Inbound = true
	provider.serve()
	b := newBed(t, routes(withRetries("connect-failure,refused-stream", 2, 0)), provider.addr).serve()
	c := b.dial()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
	resp, body := c.answer("POST")
	if resp.StatusCode != 503 || resp.Header.Get("X-Mesh-Unprocessed") != "" {
		t.Errorf("got %d %q with mark %q, want 503 without it", resp.StatusCode, body, resp.Header.Get("X-Mesh-Unprocessed"))
	}
	if got.Load() != 1 {
		t.Errorf("the application got the POST %d times, want once", got.Load())
	}
}

// TestMarkStopsAtTheCaller: with nobody left to ask, the caller sees a plain 503.
func TestMarkStopsAtTheCaller(t *testing.T) {
	dead := newBed(t, nil, refusing(t))
	dead.http.Inbound = true
	dead.serve()
	b := newBed(t, routes(withRetries("connect-failure,refused-stream", 1, 0)), dead.addr).serve()
	c := b.dial()
	c.send(getRoot)
	resp, _ := c.answer("GET")
	if resp.StatusCode != 503 || resp.Header.Get("X-Mesh-Unprocessed") != "" {
		t.Errorf("got %d with mark %q, want 503 without it", resp.StatusCode, resp.Header.Get("X-Mesh-Unprocessed"))
	}
}
