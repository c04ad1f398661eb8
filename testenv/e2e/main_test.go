//go:build integration

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// caller is an unmodified HTTP client that only knows a proxy.
func caller(t *testing.T, proxy string) *http.Client {
	t.Helper()
	u, err := url.Parse("http://" + proxy)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(u)}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func get(ctx context.Context, c *http.Client, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := readAll(resp)
	return resp.StatusCode, body, err
}

// readAll is the body of an answer, which may be 4 MiB.
func readAll(resp *http.Response) (string, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return string(body), err
}

// eventually polls until check succeeds; after a minute the test fails with its
// last error.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err // not one that the end of the wait brought about
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, last)
		case <-tick.C:
		}
	}
}

// answers succeeds when a GET gives 200 and a body that holds every part.
func answers(c *http.Client, url string, parts ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		status, body, err := get(ctx, c, url)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if status != http.StatusOK || !strings.Contains(body, part) {
				return fmt.Errorf("status %d, body %.300q, want 200 with %q", status, body, part)
			}
		}
		return nil
	}
}

// split counts which of the names the answers to n requests hold.
func split(t *testing.T, c *http.Client, url string, n int, names ...string) map[string]int {
	t.Helper()
	count := map[string]int{}
	for range n {
		status, body, err := get(t.Context(), c, url)
		if err != nil || status != http.StatusOK {
			t.Fatalf("GET %s: status %d, %v: %.300s", url, status, err, body)
		}
		for _, name := range names {
			if strings.Contains(body, name) {
				count[name]++
			}
		}
	}
	return count
}

// shows succeeds when meshctl's answer holds every part.
func shows(m *testenv.Mesh, parts []string, args ...string) func(context.Context) error {
	return func(context.Context) error {
		out, err := m.Ask(args...)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if !strings.Contains(out, part) {
				return fmt.Errorf("meshctl %s printed no %q:\n%s", strings.Join(args, " "), part, out)
			}
		}
		return nil
	}
}
