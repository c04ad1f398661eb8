package stream_test

import (
	"net/http"
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
