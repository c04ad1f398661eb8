package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve starts a stand-in for an agent: one that answers what no real one would.
func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

// head writes what every answer of an agent has.
func head(w http.ResponseWriter, index string) {
	w.Header().Set("X-Consul-Index", index)
	w.Header().Set("X-Consul-KnownLeader", "true")
	w.Header().Set("X-Consul-LastContact", "0")
}

func TestRequestCarriesWhatTheSourceSaysAndNothingElse(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "from-environment")
	t.Setenv("CONSUL_NAMESPACE", "from-environment")
	t.Setenv("CONSUL_PARTITION", "from-environment")
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", "/does/not/exist")
	t.Setenv("CONSUL_HTTP_SSL", "true")
	t.Setenv("CONSUL_HTTP_AUTH", "user:password")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	tests := []struct {
		name        string
		cfg         ClientConfig
		query       Query
		token, want string
	}{
		{"bare", ClientConfig{}, Query{}, "", "/v1/health/service/cart?"},
		{"blocking", ClientConfig{Token: "secret"}, Query{Datacenter: "dc2", Index: 7, Wait: time.Minute}, "secret", "/v1/health/service/cart?dc=dc2&index=7&wait=60000ms"},
		{"waiting as long as the server does", ClientConfig{}, Query{Index: 7}, "", "/v1/health/service/cart?index=7&wait=300000ms"},
		{"enterprise", ClientConfig{Namespace: "ns1", Partition: "p1", Consistency: Stale}, Query{}, "", "/v1/health/service/cart?ns=ns1&partition=p1&stale="},
		{"consistent", ClientConfig{Consistency: Consistent}, Query{}, "", "/v1/health/service/cart?consistent="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got, token, auth atomic.Value
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				got.Store(r.URL.Path + "?" + r.URL.RawQuery)
				token.Store(r.Header.Get("X-Consul-Token"))
				auth.Store(r.Header.Get("Authorization"))
				head(w, "9")
				fmt.Fprint(w, "[]")
			})
			tt.cfg.URL = s.URL
			in, meta, err := client(t, tt.cfg).Health(t.Context(), "cart", tt.query)
			if err != nil || len(in.Entries) != 0 || meta.Index != 9 {
				t.Fatalf("%v, %+v, %v", in, meta, err)
			}
			if got.Load() != tt.want || token.Load() != tt.token || auth.Load() != "" {
				t.Errorf("asked %v with token %q and authorization %q, want %v, %q and none", got.Load(), token.Load(), auth.Load(), tt.want, tt.token)
			}
		})
	}
}

func TestFailuresAreToldApart(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, code) }
	}
	tests := []struct {
		name   string
		cfg    ClientConfig
		answer http.HandlerFunc
		kind   Kind
		text   string
	}{
		{"unknown token", ClientConfig{}, status(403, "ACL not found"), Denied, "403 ACL not found"},
		{"refusal passed on by an agent", ClientConfig{}, status(500, "rpc error making call: Permission denied"), Denied, "Permission denied"},
		{"too many connections", ClientConfig{}, status(429, "Your IP is issuing too many concurrent connections"), Overloaded, "429"},
		{"no leader", ClientConfig{}, status(500, "No cluster leader"), Failing, "500 No cluster leader"},
		{"a long page", ClientConfig{}, status(502, "a\x00b"+strings.Repeat("x", 5000)), Failing, "502 a b"},
		{"not JSON", ClientConfig{}, func(w http.ResponseWriter, _ *http.Request) { head(w, "1"); fmt.Fprint(w, "<html>") }, Malformed, "no JSON"},
		{"null", ClientConfig{}, func(w http.ResponseWriter, _ *http.Request) { head(w, "1"); fmt.Fprint(w, "null") }, Malformed, "null"},
		{"half an answer", ClientConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			head(w, "1")
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `[{"Node":`)
		}, Unavailable, "unexpected EOF"},
		{"closed in the middle", ClientConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			head(w, "1")
			fmt.Fprint(w, `[{"Node":`)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, Unavailable, "EOF"},
		{"an announced giant", ClientConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			head(w, "1")
			w.Header().Set("Content-Length", strconv.Itoa(maxAnswer+1))
		}, Malformed, "larger than 128 MiB"},
		{"a redirect", ClientConfig{}, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusMovedPermanently)
		}, Malformed, "redirect (301)"},
		{"stale of a server without a leader", ClientConfig{Consistency: Stale}, func(w http.ResponseWriter, _ *http.Request) {
			head(w, "1")
			w.Header().Set("X-Consul-KnownLeader", "false")
			fmt.Fprint(w, "[]")
		}, Unavailable, "leader"},
		{"stale of a server that lost its leader", ClientConfig{Consistency: Stale}, func(w http.ResponseWriter, _ *http.Request) {
			head(w, "1")
			w.Header().Set("X-Consul-LastContact", "60000")
			fmt.Fprint(w, "[]")
		}, Unavailable, "leader 1m0s ago"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.answer)
			s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			tt.cfg.URL, tt.cfg.Token = s.URL, "top-secret"
			_, _, err := client(t, tt.cfg).Health(t.Context(), "cart", Query{})
			if err == nil || KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("kind %v, %v; want %v, %q", KindOf(err), err, tt.kind, tt.text)
			}
			if err != nil && (len(err.Error()) > 500 || strings.Contains(err.Error(), "top-secret")) {
				t.Errorf("error of %d bytes: %v", len(err.Error()), err)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	_, _, err := client(t, ClientConfig{URL: s.URL}).Services(t.Context(), Query{})
	if KindOf(err) != Unavailable || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}

func TestPing(t *testing.T) {
	leader := `"10.0.0.1:8300"`
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, leader) })
	c := client(t, ClientConfig{URL: s.URL})
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	leader = `""`
	if err := c.Ping(t.Context()); err == nil || KindOf(err) != Unavailable {
		t.Errorf("without a leader: %v", err)
	}
}

func TestCancelledQueryReturnsAtOnce(t *testing.T) {
	asked := make(chan struct{})
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	c := client(t, ClientConfig{URL: s.URL})
	done := make(chan error, 1)
	go func() {
		_, _, err := c.Services(ctx, Query{Index: 1, Wait: 10 * time.Minute})
		done <- err
	}()
	<-asked
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the query goes on")
	}
}

func TestQueriesShareConnectionsOverTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		head(w, "1")
		fmt.Fprint(w, "{}")
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	var http2 atomic.Int32
	c := client(t, ClientConfig{URL: s.URL, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, HTTP2: func() { http2.Add(1) }})
	if _, _, err := c.Services(t.Context(), Query{}); err != nil || http2.Load() != 1 {
		t.Errorf("%d answers over HTTP/2, %v", http2.Load(), err)
	}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	_, _, err := client(t, ClientConfig{URL: s.URL}).Services(t.Context(), Query{})
	if KindOf(err) != Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that nobody vouches for: %v", err)
	}
}

func TestAnswerThatNeverEndsIsCut(t *testing.T) {
	c := &capped{ReadCloser: io.NopCloser(strings.NewReader(strings.Repeat("x", 100))), left: 10}
	if got, err := io.ReadAll(c); len(got) != 10 || !errors.Is(err, errTooLarge) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestWrongAddressesAreRefused(t *testing.T) {
	for _, u := range []string{"", "127.0.0.1:8500", "ftp://x:1", "http://", "unix:///run/consul", "http://user:pw@x:1", "http://x:1?a=b", "http://x\n"} {
		if _, err := NewClient(ClientConfig{URL: u}); err == nil || strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: %v", u, err)
		}
	}
	if c := client(t, ClientConfig{URL: "https://consul"}); c.URL() != "https://consul:8501" {
		t.Errorf("without a port: %s", c.URL())
	}
}

func TestSecretNeverPrints(t *testing.T) {
	s := Secret("top-secret")
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "token", s, "config", ClientConfig{Token: s})
	b.WriteString(fmt.Sprintf("%v %+v %#v %s %q %x", s, ClientConfig{Token: s}, ClientConfig{Token: s}, s, s, s))
	for _, leak := range []string{"top-secret", fmt.Sprintf("%x", "top-secret")} {
		if strings.Contains(b.String(), leak) {
			t.Errorf("printed: %s", b.String())
		}
	}
	if Secret("").String() != "" {
		t.Error("an empty token looks like one")
	}
}
