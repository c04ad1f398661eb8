//go:build integration

package conformance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// proxy is one of the two subjects.
type proxy struct {
	name   string
	client *http.Client
	// stream is the loopback address of stream.test.
	stream string
}

// subjects starts a mesh under the rules, a sidecar and an Envoy.
func subjects(t *testing.T) []proxy {
	t.Helper()
	rules, err := os.ReadFile("testdata/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(rules)
	for name, addr := range map[string]string{
		"V1": echotest.Start(t, echo.Config{ID: "e1", Version: "v1"}), "V2": echotest.Start(t, echo.Config{ID: "e2", Version: "v2"}),
		"T1": echotest.Start(t, echo.Config{ID: "t1", Version: "v1", TCP: true, Banner: true}), "T2": echotest.Start(t, echo.Config{ID: "t2", Version: "v2", TCP: true, Banner: true}),
		"FLAKY": flaky(t), "DEAD": fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t)),
	} {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "{{"+name+"}}", port)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "rules.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mesh := testenv.Start(t, testenv.Config{More: "rules: " + folder})

	const sidecarStream, envoyStream = "127.64.77.5", "127.64.77.6"
	sidecar := mesh.Sidecar(testenv.Workload{Name: "caller-1", App: "caller", Version: "caller", Egress: []string{"stream.test:3306@" + sidecarStream}})
	front := fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	boot := mesh.Ctl("bootstrap", "--for", "envoy", "--app", "caller", "--name", "caller-2", "--label", "version=caller", "--xds", mesh.XDS, "--http-proxy", front,
		"--egress", "host=stream.test,port=3306,protocol=tcp,address="+envoyStream)
	if err := os.WriteFile(file, []byte(boot), 0o600); err != nil {
		t.Fatal(err)
	}
	peers.StartEnvoy(t, file)
	out := []proxy{
		{"sidecar", through(t, sidecar.Proxy), sidecarStream + ":3306"},
		{"Envoy", through(t, front), envoyStream + ":3306"},
	}
	for _, p := range out {
		ready := row{url: "http://change.test/"}
		await(t, p.name+" serves the rules", func() bool { return ready.ask(t, p).Status == 200 }, func() string {
			state := row{url: "http://" + sidecar.Admin + "/ready"}
			return fmt.Sprintf("%+v; the sidecar says %s", ready.ask(t, p), state.ask(t, proxy{name: "admin", client: http.DefaultClient}).Body)
		})
		await(t, p.name+" serves TCP", func() bool { return banner(p.stream) != "" }, func() string { return "no connection to " + p.stream })
	}
	return out
}

func through(t *testing.T, addr string) *http.Client {
	t.Helper()
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: addr})}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// await polls until done; details say what there was instead.
func await(t *testing.T, what string, done func() bool, details func() string) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline.C:
			t.Fatalf("gave up waiting until %s: %s", what, details())
		case <-tick.C:
		}
	}
}

// flaky is an application that fails the first X-Fail requests with the same
// X-Key: with status X-Status, by a reset if that is "reset", by silence if it is
// "silence". Then it answers with the number of requests it took.
func flaky(t *testing.T) (addr string) {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]int{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Header.Get("X-Key")]++
		n := seen[r.Header.Get("X-Key")]
		mu.Unlock()
		w.Header().Set("X-Attempt", strconv.Itoa(n))
		fail, err := strconv.Atoi(r.Header.Get("X-Fail"))
		if err != nil || n > fail {
			return
		}
		switch status := r.Header.Get("X-Status"); status {
		case "reset":
			panic(http.ErrAbortHandler)
		case "silence":
			<-r.Context().Done()
		default:
			code, err := strconv.Atoi(status)
			if err != nil {
				code = http.StatusBadRequest
			}
			w.WriteHeader(code)
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return l.Addr().String()
}

// outcome is what a caller gets, and what the application got.
type outcome struct {
	Status                      int
	Headers                     map[string][]string // of the response
	Body                        string              // unless it is an echo's answer
	Version, Method, Path, Host string
	Received                    map[string][]string // headers of the request
	Sent                        string              // its body
}

// proxysOwn are headers in which the two may differ: dates, and what says which
// of them it was. (Envoy names itself only in answers of its own.)
var proxysOwn = []string{"Date", "Server", "X-Forwarded-Proto", "X-Request-Id", "X-Envoy-Expected-Rq-Timeout-Ms", "X-Envoy-Attempt-Count"}

func drop(h map[string][]string) map[string][]string {
	out := map[string][]string{}
	for k, v := range h {
		if !slices.Contains(proxysOwn, k) {
			out[k] = v
		}
	}
	return out
}

func (r *row) ask(t *testing.T, p proxy) outcome {
	t.Helper()
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(t.Context(), method, r.url, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range r.headers {
		req.Header.Set(k, v)
	}
	if r.headers["X-Fail"] != "" {
		req.Header.Set("X-Key", p.name+" "+r.name)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	out := outcome{Status: resp.StatusCode, Headers: drop(resp.Header)}
	var answer echo.Answer
	if !bytes.HasPrefix(body, []byte("{")) || json.Unmarshal(body, &answer) != nil {
		out.Body = string(body)
		if said := strings.Replace(out.Body, "retried and the latest reset reason", "reset reason", 1); said != out.Body {
			out.Body = said
			out.Headers["Content-Length"] = []string{strconv.Itoa(len(said))}
		}
		return out
	}
	delete(out.Headers, "Content-Length") // of the answer, which holds our own port
	out.Version, out.Method, out.Host, out.Sent = answer.Version, answer.Method, answer.Host, answer.Body
	out.Path = answer.Path
	if answer.Query != "" {
		out.Path += "?" + answer.Query
	}
	out.Received = drop(answer.Headers)
	return out
}

// banner connects and returns the version of the application it reached.
func banner(addr string) string {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	if c.SetDeadline(time.Now().Add(5*time.Second)) != nil {
		return ""
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err != nil {
		return ""
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(b[:n])), " ")
	return version
}
