package stream_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(599)
		return
	}
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Uri", r.RequestURI)
	w.Header().Set("X-Host", r.Host)
	fmt.Fprintf(w, "%d:%s", len(body), body)
}

func TestRequestsReachTheOriginAndComeBack(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	tests := []struct{ name, send, method, want string }{
		{"get", "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "0:"},
		{"post with length", "POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "POST", "5:hello"},
		{"post in chunks", "POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", "POST", "5:hello"},
		{"chunks with a trailer", "POST /p HTTP/1.1\r\nHost: x\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nT: 1\r\n\r\n", "POST", "5:hello"},
		{"head", "HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", ""},
		{"absolute target", "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "0:"},
		{"empty line first", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "0:"},
	}
	c := b.dial()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.send(tt.send)
			resp, body := c.answer(tt.method)
			if resp.StatusCode != 200 || body != tt.want {
				t.Errorf("whole: got %d %q, want 200 %q", resp.StatusCode, body, tt.want)
			}
			// The same byte by byte.
			for i := range tt.send {
				c.send(tt.send[i : i+1])
			}
			resp, body = c.answer(tt.method)
			if resp.StatusCode != 200 || body != tt.want {
				t.Errorf("byte by byte: got %d %q, want 200 %q", resp.StatusCode, body, tt.want)
			}
		})
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	c := b.dial()
	var all strings.Builder
	for i := range 200 {
		fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n%03d", i, i)
	}
	c.send(all.String())
	for i := range 200 {
		resp, body := c.answer("POST")
		if want := fmt.Sprintf("3:%03d", i); body != want || resp.Header.Get("X-Uri") != fmt.Sprintf("/%d", i) {
			t.Fatalf("answer %d: got %q", i, body)
		}
	}
}

func TestLargeBodiesFlowBothWays(t *testing.T) {
	const size = 8 << 20
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("length") {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(w, r.Body)
	})
	b := newBed(t, nil, addr).serve()
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	for _, query := range []string{"", "?length"} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = bytes.NewReader(sent)
			if chunked {
				body = io.MultiReader(body) // hides its length
			}
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+b.addr+"/"+query, body)
			if err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
				t.Errorf("query %q, chunked %v: got %d bytes and error %v, want the same %d", query, chunked, len(got), err, size)
			}
		}
	}
}

func TestResponsesPassAsTheyAre(t *testing.T) {
	tests := []struct{ name, request, response, method, want, wantHead string }{
		{"no content", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", "GET", "", "204"},
		{"not modified keeps its length", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", "GET", "", "304"},
		{"head keeps its length", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HEAD", "", "200"},
		{"until close", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", "GET", "abc", "200"},
		{"http/1.0 answer", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nabc", "GET", "abc", "200"},
		{"chunks with trailer", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n", "GET", "abc", "200"},
		{"own reason", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 299 Very Own\r\nContent-Length: 0\r\n\r\n", "GET", "", "299 Very Own"},
		{"interim", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "GET", "ok", "200"},
		{"hop-by-hop fields go", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\r\n", "GET", "", "200"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
				if _, err := head(r); err != nil {
					return
				}
				for i := range tt.response { // byte by byte
					if _, err := io.WriteString(c, tt.response[i:i+1]); err != nil {
						return
					}
				}
			})
			b := newBed(t, nil, s.addr()).serve()
			c := b.dial()
			c.send(tt.request)
			resp, body := c.answer(tt.method)
			if body != tt.want || !strings.HasPrefix(resp.Status, tt.wantHead) {
				t.Errorf("got %s %q, want %s %q", resp.Status, body, tt.wantHead, tt.want)
			}
			for _, name := range []string{"X-Hop", "Keep-Alive"} {
				if v := resp.Header.Get(name); v != "" {
					t.Errorf("%s: %s passed", name, v)
				}
			}
			if strings.Contains(tt.response, "T: 1") && resp.Trailer.Get("T") != "1" {
				t.Errorf("trailer: got %v, want T: 1", resp.Trailer)
			}
		})
	}
}

func TestWhatTheOriginGets(t *testing.T) {
	tests := []struct{ name, send, want string }{
		{"fields stay, hop-by-hop go",
			"GET /p HTTP/1.1\r\nHost: x\r\nA: 1\r\nConnection: keep-alive, B\r\nB: 2\r\nKeep-Alive: 1\r\nProxy-Connection: x\r\nTE: gzip\r\nC: 3\r\n\r\n",
			"GET /p HTTP/1.1\r\nHost: x\r\nA: 1\r\nC: 3\r\nx-forwarded-proto: http\r\n\r\n"},
		{"connection cannot drop host",
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: host\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nx-forwarded-proto: http\r\n\r\n"},
		{"absolute target wins over Host",
			"GET http://y:80/p?q HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET /p?q HTTP/1.1\r\nhost: y:80\r\nx-forwarded-proto: http\r\n\r\n"},
		{"te trailers stays",
			"GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE\r\nX-Forwarded-Proto: https\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\nte: trailers\r\nconnection: te\r\n\r\n"},
		{"h2c upgrade is ignored",
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nx-forwarded-proto: http\r\n\r\n"},
		{"http/1.0", "GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost: \r\nx-forwarded-proto: http\r\n\r\n"},
	}
	got := make(chan string, 1)
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		for {
			h, err := head(r)
			if err != nil {
				return
			}
			got <- h
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
				return
			}
		}
	})
	b := newBed(t, nil, s.addr()).serve()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := b.dial()
			c.send(tt.send)
			if g := <-got; g != tt.want {
				t.Errorf("origin got\n%q\nwant\n%q", g, tt.want)
			}
			c.answer("GET")
		})
	}
}

func TestHTTP10KeepsTheConnectionOnlyWhenAsked(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	c := b.dial()
	c.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	if resp, _ := c.answer("GET"); resp.Header.Get("Connection") != "keep-alive" {
		t.Errorf("got Connection %q, want keep-alive", resp.Header.Get("Connection"))
	}
	c.send("GET / HTTP/1.0\r\n\r\n")
	c.answer("GET")
	c.ended()
}

func TestExpectContinue(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	c := b.dial()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	line, err := c.r.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if _, err := c.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	c.send("hello")
	if _, body := c.answer("POST"); body != "5:hello" {
		t.Errorf("got %q", body)
	}
}

func TestEarlyAnswerToAnUnfinishedRequest(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
		_, _ = io.Copy(io.Discard, r)
	})
	b := newBed(t, nil, s.addr()).serve()
	c := b.dial()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nsome")
	resp, body := c.answer("POST")
	if resp.StatusCode != 413 || body != "big" || !resp.Close {
		t.Errorf("got %d %q, close %v; want 413, big, true", resp.StatusCode, body, resp.Close)
	}
	c.ended()
}

func TestEventsAreFlushedAtOnce(t *testing.T) {
	next := make(chan struct{})
	b := newBed(t, nil, origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-next
		}
	})).serve()
	c := b.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	events := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := events.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("got %q, %v", line, err)
		}
		if _, err := events.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		next <- struct{}{}
	}
}

func TestUpgradeBecomesATunnel(t *testing.T) {
	s := newScript(t, func(_ int64, c net.Conn, r *bufio.Reader) {
		h, err := head(r)
		if err != nil || !strings.Contains(h, "upgrade: websocket") {
			t.Errorf("head %q, %v", h, err)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
		_, _ = io.Copy(c, r)
	})
	b := newBed(t, nil, s.addr()).serve()
	c := b.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %v, %v", resp, err)
	}
	want := "firstearly"
	for i := range 100 {
		msg := fmt.Sprintf("message %d;", i)
		want += msg
		c.send(msg)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	eventually(t, "one connection active", func() bool { return b.http.Stats.ConnectionActive.Value() == 1 })
	_ = c.Close()
	eventually(t, "tunnel over", func() bool { return b.http.Stats.ConnectionActive.Value() == 0 })
}

func TestConnectAndUnknownUpgradesAreForbidden(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	for _, send := range []string{
		"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n",
	} {
		c := b.dial()
		c.send(send)
		if resp, _ := c.answer("GET"); resp.StatusCode != 403 {
			t.Errorf("%q: got %d, want 403", send, resp.StatusCode)
		}
		c.ended()
	}
}

func TestDrainEndsIdleConnectionsAtOnceAndBusyOnesAfterTheirAnswer(t *testing.T) {
	begun, answer := make(chan struct{}), make(chan struct{})
	b := newBed(t, nil, origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-answer
		}
	})).serve()
	idle, busy := b.dial(), b.dial()
	idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	idle.answer("GET")
	busy.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-begun
	b.drain()
	idle.ended()
	close(answer)
	if resp, _ := busy.answer("GET"); !resp.Close {
		t.Error("the busy connection's answer does not say close")
	}
	busy.ended()
}

func TestHalfClosedClientWithBytesIsNoticed(t *testing.T) {
	b := newBed(t, nil, origin(t, echo)).serve()
	c := b.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.answer("GET")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.ended()
}

func TestSlowHeadTimesOut(t *testing.T) {
	b := newBed(t, nil, origin(t, echo))
	b.http.HeaderTimeout = 100 * time.Millisecond
	b.serve()
	c := b.dial()
	c.send("GET / HTTP/1.1\r\nHos")
	if resp, _ := c.answer("GET"); resp.StatusCode != 408 {
		t.Errorf("got %d, want 408", resp.StatusCode)
	}
	c.ended()
}

func TestIdleConnectionTimesOut(t *testing.T) {
	b := newBed(t, nil, origin(t, echo))
	b.http.IdleTimeout = 100 * time.Millisecond
	b.serve()
	c := b.dial()
	c.ended()
}
