package peers

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// Program says which other program to start, and how one knows that it serves.
type Program struct {
	Name string   // in messages, "meshserver"
	Path string   // of the executable
	Args []string // without the program's name
	// Ready is a URL that answers 200 once the program serves.
	Ready  string
	Within time.Duration // bounds the start; 0 means 30 s
}

// StartProgram starts a program and returns once it serves.
func StartProgram(t testing.TB, p Program) *Process {
	t.Helper()
	if p.Within == 0 {
		p.Within = 30 * time.Second
	}
	process := &Process{t: t, name: p.Name, path: p.Path, args: p.Args, within: p.Within, ready: func(ctx context.Context, _ *output) error {
		return answers200(ctx, p.Ready)
	}}
	process.launch()
	return process
}

// answers200 asks url once.
func answers200(ctx context.Context, url string) error {
	text, status, err := httpGet(ctx, http.DefaultClient, url, "")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s answers %d: %.200s", url, status, text)
	}
	return nil
}

// httpGet returns the body and status of a GET that takes at most 2 s. The token
// is Consul's; empty sends none.
func httpGet(ctx context.Context, client *http.Client, url, consulToken string) (string, int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	req.Close = true // leave no connection behind
	if consulToken != "" {
		req.Header.Set("X-Consul-Token", consulToken)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), resp.StatusCode, err
}
