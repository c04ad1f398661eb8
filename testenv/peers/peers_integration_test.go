//go:build integration

package peers_test

import (
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// ended checks, after the test that started it, that nothing of a process is left.
func ended(t *testing.T, pid int) {
	t.Helper()
	if !peers.GroupGone(pid) {
		t.Errorf("process group %d outlived its test", pid)
	}
}

// get returns the status and body of one GET on a connection of its own.
func get(ctx context.Context, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}
