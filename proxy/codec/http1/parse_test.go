package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const limit = 60 << 10

var sample = []byte("GET /v1/orders/4711?expand=lines HTTP/1.1\r\nHost: orders.default.svc.cluster.local:8080\r\n" +
	"User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Request-Id: 8f4d1a52-7a8f-4b53-9e55-8d1c2a7e1f6a\r\nCookie: session=abcdef0123456789\r\n" +
	"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nAccept-Encoding: gzip\r\n\r\n")

// captured are requests as clients send them.
func captured(t testing.TB) (all [][]byte) {
	t.Helper()
	names, err := filepath.Glob("testdata/*.http")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

func TestCapturedRequestsAreWhole(t *testing.T) {
	for _, b := range captured(t) {
		k := &call{in: bufferOf(b)}
		if done, err := parsePieces(&k.req, b, 7); !done || err != nil {
			t.Errorf("%.30q: %v, %v", b, done, err)
			continue
		}
		k.rewindBody(limit)
		if whole, err := k.bodyWhole(); !whole || err != nil {
			t.Errorf("%.30q: body %v, %v", b, whole, err)
		}
	}
}

// parsePieces parses b, of which step bytes more are there each time.
func parsePieces(r *request, b []byte, step int) (done bool, err *malformed) {
	r.reset()
	for n := step; ; n += step {
		n = min(n, len(b))
		// The buffer moves between reads.
		done, err = r.parse(append([]byte(nil), b[:n]...), limit)
		if done || err != nil || n == len(b) {
			return done, err
		}
	}
}

func TestParseIsTheSameInPieces(t *testing.T) {
	var whole, pieces request
	if done, err := parsePieces(&whole, sample, len(sample)); !done || err != nil {
		t.Fatal(done, err)
	}
	if done, err := parsePieces(&pieces, sample, 1); !done || err != nil {
		t.Fatal(done, err)
	}
	if len(whole.fields) != len(pieces.fields) || len(whole.fields) != 7 {
		t.Fatalf("got %d and %d fields, want 7", len(whole.fields), len(pieces.fields))
	}
	for i := range whole.fields {
		if whole.fields[i] != pieces.fields[i] {
			t.Errorf("field %d: %+v and %+v", i, whole.fields[i], pieces.fields[i])
		}
	}
	if v, ok := whole.Header("accept-encoding"); !ok || string(v) != "gzip" {
		t.Errorf("accept-encoding: got %q, %v", v, ok)
	}
	if string(whole.Authority()) != "orders.default.svc.cluster.local:8080" || string(whole.Path()) != "/v1/orders/4711?expand=lines" {
		t.Errorf("got authority %q, path %q", whole.Authority(), whole.Path())
	}
}

func TestRepeatedFieldsAreJoined(t *testing.T) {
	var r request
	if done, err := parsePieces(&r, []byte("GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: z\r\na: 2\r\nA: 3\r\n\r\n"), 1000); !done || err != nil {
		t.Fatal(done, err)
	}
	if v, _ := r.Header("a"); string(v) != "1,2,3" {
		t.Errorf("got %q, want 1,2,3", v)
	}
	if v, _ := r.Header("b"); string(v) != "z" {
		t.Errorf("got %q, want z", v)
	}
}

func TestParsingDoesNotAllocate(t *testing.T) {
	var r request
	r.reset()
	if n := testing.AllocsPerRun(100, func() {
		r.reset()
		if done, err := r.parse(sample, limit); !done || err != nil {
			t.Fatal(done, err)
		}
	}); n != 0 {
		t.Errorf("got %v allocations a request, want 0", n)
	}
}

// What we accept, net/http must read alike; and it must read what we make of it
// alike, head and body.
func FuzzRequest(f *testing.F) {
	f.Add(sample)
	for _, b := range captured(f) {
		f.Add(b)
	}
	for _, s := range []string{
		"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
		"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nT: 1\r\n\r\n",
		"GET http://y:80/p?q HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close, a\r\nA: 1\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k := &call{}
		r := &k.req
		done, err := parsePieces(r, b, 1+len(b)/3)
		if err != nil || !done {
			return
		}
		k.in = bufferOf(b)
		r.buf = k.in.Bytes()
		k.rewindBody(limit)
		if whole, err := k.bodyWhole(); err != nil || !whole {
			return
		}
		body := readBody(t, k)
		want, werr := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(b, []byte("\r\n")))))
		if werr != nil {
			if lenient(r, werr) {
				return
			}
			t.Fatalf("accepted what net/http refuses: %v", werr)
		}
		compare(t, r, body, want)
		if again, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(reencode(k)))); err != nil {
			t.Fatalf("net/http refuses what is sent upstream: %v", err)
		} else {
			compare(t, r, body, again)
		}
	})
}

// lenient says why net/http may refuse what we accept: it parses URLs, we do not.
func lenient(r *request, err error) bool {
	s := err.Error()
	return strings.Contains(s, "parse \"") || strings.Contains(s, "invalid URL") || string(r.Method()) == "CONNECT" || string(r.Method()) == "PRI" ||
		strings.Contains(s, "malformed Host")
}

func compare(t *testing.T, r *request, body string, want *http.Request) {
	t.Helper()
	if string(r.Method()) == "CONNECT" {
		return
	}
	got, err := io.ReadAll(want.Body)
	if err != nil || string(got) != body {
		t.Errorf("body: got %q, net/http %q, %v", body, got, err)
	}
	if string(r.Method()) != want.Method || (string(r.Authority()) != want.Host && r.hosts+len(r.Authority()) > 0) {
		t.Errorf("got %s to %q, net/http %s to %q", r.Method(), r.Authority(), want.Method, want.Host)
	}
	for name, values := range want.Header {
		if k := kindOf([]byte(strings.ToLower(name))); k != other || name == "Pragma" || name == "Cache-Control" {
			continue
		}
		if v, ok := r.Header(strings.ToLower(name)); !ok || string(v) != strings.Join(values, ",") {
			t.Errorf("%s: got %q, net/http %q", name, v, values)
		}
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: 1\r\n\r\n",
		"HTTP/1.0 404 Not Found\r\nA: 1\r\n\r\nx",
		"HTTP/1.1 204\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r response
		r.reset()
		done, err := r.parse(b, limit)
		if err != nil || !done {
			return
		}
		want, werr := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if werr != nil {
			t.Fatalf("accepted what net/http refuses: %v", werr)
		}
		if r.status != want.StatusCode {
			t.Errorf("got status %d, net/http %d", r.status, want.StatusCode)
		}
		if want.ContentLength >= 0 && !r.bodyless(false) && r.length != want.ContentLength {
			t.Errorf("got length %d, net/http %d", r.length, want.ContentLength)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(sample)))
	var r request
	for b.Loop() {
		r.reset()
		if done, err := r.parse(sample, limit); !done || err != nil {
			b.Fatal(err)
		}
	}
}
