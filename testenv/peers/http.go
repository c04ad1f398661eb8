package peers

import (
	"context"
	"io"
	"net/http"
	"time"
)

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
