package stream_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
)

// malformed are requests that are refused; each ends where a sound one would.
var malformed = []struct {
	name, send string
	want       int
}{
	{"bare LF after the request line", "GET / HTTP/1.1\nHost: x\r\n\r\n", 400},
	{"bare LF after a field", "GET / HTTP/1.1\r\nHost: x\n\r\n", 400},
	{"bare LF at the end", "GET / HTTP/1.1\r\nHost: x\r\n\n", 400},
	{"bare CR in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400},
	{"DEL in a value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x7fc\r\n\r\n", 400},
	{"conflicting lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 400},
	{"the same length twice", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 400},
	{"list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\na", 400},
	{"signed length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400},
	{"negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\na", 400},
	{"hex length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\na", 400},
	{"empty length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", 400},
	{"huge length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999999999\r\n\r\n", 400},
	{"length and coding", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"coding and length", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", 400},
	{"xchunked", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
	{"chunked with a tail", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400},
	{"quoted chunked", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400},
	{"vertical tab before chunked", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400},
	{"chunked not last", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400},
	{"chunked twice", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400},
	{"chunked in two fields", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"empty coding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\r\n", 400},
	{"identity", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", 400},
	{"unknown coding under chunked", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
	{"coding in 1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	{"folded field", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400},
	{"folded first field", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
	{"space before colon", "GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
	{"tab before colon", "GET / HTTP/1.1\r\nHost: x\r\nA\t: x\r\n\r\n", 400},
	{"space in a name", "GET / HTTP/1.1\r\nHost: x\r\nA B: x\r\n\r\n", 400},
	{"empty name", "GET / HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n", 400},
	{"no colon", "GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400},
	{"control in a name", "GET / HTTP/1.1\r\nHost: x\r\nA\x01: x\r\n\r\n", 400},
	{"non-ASCII name", "GET / HTTP/1.1\r\nHost: x\r\n\xc3\xa9: x\r\n\r\n", 400},
	{"no host", "GET / HTTP/1.1\r\nA: x\r\n\r\n", 400},
	{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
	{"host with a path", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400},
	{"host with a space", "GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400},
	{"host with user", "GET / HTTP/1.1\r\nHost: a@x\r\n\r\n", 400},
	{"no method", " / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"method is no token", "GE(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"no target", "GET HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"tab for a space", "GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"relative target", "GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"other scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"user in the target", "GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"asterisk", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"control in the target", "GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"non-ASCII target", "GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"no version", "GET /\r\nHost: x\r\n\r\n", 400},
	{"lower-case version", "GET / http/1.1\r\nHost: x\r\n\r\n", 400},
	{"short version", "GET / HTTP/1\r\nHost: x\r\n\r\n", 400},
	{"long version", "GET / HTTP/1.10\r\nHost: x\r\n\r\n", 400},
	{"version 2.0", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
	{"version 1.2", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505},
	{"space after the version", "GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400},
	{"two empty lines", "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
	{"chunk size is no number", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", 400},
	{"chunk size is empty", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n", 400},
	{"chunk size too large", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", 400},
	{"chunk size with a sign", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n", 400},
	{"chunk size with 0x", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400},
	{"chunk size with a space", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", 400},
	{"bare LF after a chunk size", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", 400},
	{"bare LF in an extension", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n", 400},
	{"chunk longer than its size", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400},
	{"bare LF after a chunk", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n", 400},
	{"length in a trailer", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n", 400},
	{"folded trailer", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: 1\r\n b\r\n\r\n", 400},
	{"101 fields", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 100) + "\r\n", 431},
	{"large field", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 62<<10) + "\r\n\r\n", 431},
	{"long target", "GET /" + strings.Repeat("b", 62<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
}

func TestMalformedRequestsAreRefusedAndNotForwarded(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		for {
			h, err := head(r)
			if err != nil {
				return
			}
			if !strings.Contains(h, "chunked") { // a streamed body may be broken after its head went
				t.Errorf("forwarded: %q", h)
			}
		}
	})
	b := newBed(t, nil, s.addr()).serve()
	for _, tt := range malformed {
		for _, bytewise := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bytewise=%v", tt.name, bytewise), func(t *testing.T) {
				before, failed := s.conns.Load(), b.http.Stats.RequestFailed.Value()
				c := dial(t, b.addr)
				if bytewise && len(tt.send) < 1000 {
					for i := range tt.send {
						if _, err := io.WriteString(c.Conn, tt.send[i:i+1]); err != nil {
							break // refused already
						}
					}
				} else if _, err := io.WriteString(c.Conn, tt.send); err != nil {
					t.Logf("send: %v", err)
				}
				resp, _ := c.answer("POST")
				if resp.StatusCode != tt.want || !resp.Close {
					t.Errorf("got %d, close %v, want %d, true", resp.StatusCode, resp.Close, tt.want)
				}
				c.ended()
				if tt.want >= 500 && b.http.Stats.RequestFailed.Value() != failed+1 {
					t.Error("a 5xx is not counted as failed")
				}
				if !bytewise && s.conns.Load() != before {
					t.Error("a connection to the origin was opened")
				}
			})
		}
	}
	if got := b.http.Stats.RequestMalformed.Value(); got == 0 {
		t.Error("malformed requests are not counted")
	}
}

func TestMalformedResponsesAreNotPassedOn(t *testing.T) {
	for _, response := range []string{
		"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nA: b\x00\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 2x0 OK\r\n\r\n",
		"HTTP/1.1 099 OK\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n",
		"ICY 200 OK\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 101) + "\r\n",
	} {
		s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
			if _, err := head(r); err == nil {
				_, _ = io.WriteString(c, response)
			}
		})
		b := newBed(t, nil, s.addr()).serve()
		c := b.dial()
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if resp, _ := c.answer("GET"); resp.StatusCode != 502 {
			t.Errorf("%.60q: got %d, want 502", response, resp.StatusCode)
		}
	}
}

// Bytes after a response must never become the answer to another request.
func TestSurplusResponseBytesEndTheConnection(t *testing.T) {
	s := newScript(t, func(n int64, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := head(r); err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%dHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", n)
		}
	})
	b := newBed(t, nil, s.addr()).serve()
	c := b.dial()
	for i := 1; i <= 3; i++ {
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, body := c.answer("GET"); body != fmt.Sprint(i) {
			t.Fatalf("request %d: got %q, want its own connection's answer", i, body)
		}
	}
}

// A response that ends early must not look complete.
func TestCutResponseIsCutForTheClient(t *testing.T) {
	for _, response := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
	} {
		s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
			if _, err := head(r); err == nil {
				_, _ = io.WriteString(c, response)
			}
		})
		b := newBed(t, nil, s.addr()).serve()
		c := b.dial()
		c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		got, err := io.ReadAll(c.r)
		if strings.HasSuffix(string(got), "0\r\n\r\n") || (err == nil && len(got) == 0) {
			t.Errorf("%q: got %q, which looks complete", response, got)
		}
	}
}

// The examples of the codec's README do what they show.
func TestReadmeExamples(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	text, err := os.ReadFile("../codec/http1/README.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`(?m)^\$ printf '(.*)' \| nc .*\n(.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(examples) == 0 {
		t.Fatal("the README has no example")
	}
	for _, e := range examples {
		c := b.dial()
		c.send(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(e[1]))
		if line, err := c.r.ReadString('\n'); err != nil || strings.TrimSpace(line) != e[2] {
			t.Errorf("%s: got %q, %v, want %q", e[1], line, err, e[2])
		}
	}
}
