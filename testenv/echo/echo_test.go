package echo_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client leaves no connection behind.
func client(t *testing.T) *http.Client {
	transport := new(http.Transport)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// do returns the answer and its whole body.
func do(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestDescribesTheRequest(t *testing.T) {
	addr := echotest.Start(t, echo.Config{ID: "a", Version: "v2"})
	req := request(t, http.MethodPost, "http://"+addr+"/cart/7?x=1&status=201", strings.NewReader("hello"))
	req.Host = "cart"
	req.Header = http.Header{"X-User": {"ann", "bob"}, "User-Agent": {"test"}, "Accept-Encoding": {"identity"}}
	resp, body := do(t, req)
	if resp.StatusCode != http.StatusCreated || resp.Header.Get("X-Echo-Id") != "a" || resp.Header.Get("X-Echo-Version") != "v2" {
		t.Errorf("got %d from %q %q, want 201 from a v2", resp.StatusCode, resp.Header.Get("X-Echo-Id"), resp.Header.Get("X-Echo-Version"))
	}
	var got echo.Answer
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	got.Remote = ""
	want := echo.Answer{
		ID: "a", Version: "v2", Method: "POST", Path: "/cart/7", Query: "x=1&status=201", Host: "cart", Protocol: "HTTP/1.1",
		Headers: map[string][]string{
			"X-User": {"ann", "bob"}, "User-Agent": {"test"}, "Accept-Encoding": {"identity"}, "Content-Length": {"5"},
		},
		Body: "hello", BodyBytes: 5, BodySHA256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("answer (-want +got):\n%s", d)
	}
}

func TestAnswersAsTheQuerySays(t *testing.T) {
	base := "http://" + echotest.Start(t, echo.Config{ID: "a", Version: "v1"})
	tests := []struct {
		name, path string
		status     int
		body       string
		chunked    bool
	}{
		{name: "text gives the body back", path: "/?format=text", status: 200, body: "sent"},
		{name: "status", path: "/?format=text&status=503", status: 503, body: "sent"},
		{name: "bytes", path: "/bytes/12", status: 200, body: "0123456789ab"},
		{name: "no bytes", path: "/bytes/0", status: 200},
		{name: "chunks", path: "/chunks/3?size=4&every=1ms", status: 200, body: "0123456789ab", chunked: true},
		{name: "events", path: "/sse?count=2", status: 200, body: "id: 0\ndata: a v1\n\nid: 1\ndata: a v1\n\n", chunked: true},
		{name: "stream", path: "/stream?status=202", status: 202, body: "sent", chunked: true},
		{name: "trailers", path: "/trailers", status: 200, body: "sent", chunked: true},
		{name: "upgrade to nothing", path: "/upgrade", status: 426, body: "want Connection: Upgrade and an Upgrade header\n"},
		{name: "every mistake at once", path: "/bytes/x?status=99&delay=-1s", status: 400,
			body: "delay: \"-1s\", want a duration like 100ms\nstatus: \"99\", want 200 to 599\nbytes: \"x\", want 0 to 1073741824\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := do(t, request(t, http.MethodPost, base+tt.path, strings.NewReader("sent")))
			if resp.StatusCode != tt.status || body != tt.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
			}
			if chunked := len(resp.TransferEncoding) > 0; chunked != tt.chunked {
				t.Errorf("chunked is %v, want %v", chunked, tt.chunked)
			}
		})
	}
}

func TestRefusesABodyThatIsTooLarge(t *testing.T) {
	addr := echotest.Start(t, echo.Config{})
	resp, _ := do(t, request(t, http.MethodPost, "http://"+addr+"/", bytes.NewReader(make([]byte, 9<<20))))
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d, want 413", resp.StatusCode)
	}
}

func TestDelays(t *testing.T) {
	addr := echotest.Start(t, echo.Config{})
	start := time.Now()
	do(t, request(t, http.MethodGet, "http://"+addr+"/?delay=30ms", nil))
	if took := time.Since(start); took < 30*time.Millisecond {
		t.Errorf("took %v, want at least 30ms", took)
	}
}

func TestReturnsTrailers(t *testing.T) {
	addr := echotest.Start(t, echo.Config{})
	req := request(t, http.MethodPost, "http://"+addr+"/trailers", struct{ io.Reader }{strings.NewReader("hello")})
	req.Trailer = http.Header{"X-Sum": {"42"}}
	resp, _ := do(t, req)
	want := http.Header{
		"X-Sum": {"42"}, "X-Body-Bytes": {"5"},
		"X-Body-Sha256": {"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"},
	}
	if d := cmp.Diff(want, resp.Trailer); d != "" {
		t.Errorf("trailers (-want +got):\n%s", d)
	}
}

func TestStreamsWhileTheBodyStillComes(t *testing.T) {
	addr := echotest.Start(t, echo.Config{})
	body, pipe := io.Pipe()
	resp, err := client(t).Do(request(t, http.MethodPost, "http://"+addr+"/stream", body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for _, text := range []string{"one", "two"} {
		if _, err := io.WriteString(pipe, text); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v; want %q", got, err, text)
		}
	}
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUpgradesToAnyProtocol(t *testing.T) {
	conn := dial(t, echotest.Start(t, echo.Config{ID: "a", Version: "v1"}))
	const head = "GET /upgrade HTTP/1.1\r\nHost: echo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	if _, err := io.WriteString(conn, head+"early"); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %d to %q, want 101 to websocket", resp.StatusCode, resp.Header.Get("Upgrade"))
	}
	if _, err := io.WriteString(conn, " late"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("early late"))
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "early late" {
		t.Errorf("got %q, %v; want early late", got, err)
	}
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

func TestEchoesTCP(t *testing.T) {
	tests := []struct {
		name   string
		banner bool
		want   string
	}{
		{name: "plain", want: "hello"},
		{name: "after a banner", banner: true, want: "a v1\nhello"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := echotest.Start(t, echo.Config{ID: "a", Version: "v1", TCP: true, Banner: tt.banner})
			dial(t, addr) // stays open until the server ends it
			conn := dial(t, addr)
			if _, err := io.WriteString(conn, "hello"); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(conn); err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestRunFinishesOpenRequests(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, err := echo.New(echo.Config{Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()

	resp, err := client(t).Do(request(t, http.MethodGet, fmt.Sprintf("http://%s/chunks/5?size=10&every=20ms", listener.Addr()), nil))
	if err != nil {
		t.Fatal(err)
	}
	cancel() // while chunks are still to come
	body, err := io.ReadAll(resp.Body)
	if err != nil || len(body) != 50 {
		t.Errorf("got %d bytes, %v; want 50", len(body), err)
	}
	_ = resp.Body.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNewRefusesWhatMakesNoSense(t *testing.T) {
	if _, err := echo.New(echo.Config{}); err == nil {
		t.Error("no listener: want an error")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if _, err := echo.New(echo.Config{Listener: listener, Banner: true}); err == nil {
		t.Error("a banner for HTTP: want an error")
	}
}
