//go:build integration

package peers_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// answering is a bootstrap with one listener that answers by itself.
const answering = `
node: {id: test, cluster: test}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: test
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                direct_response: {status: 200}
`

func TestEnvoyServes(t *testing.T) {
	tests := []struct {
		name  string
		start func(t *testing.T, bootstrap string) *peers.Envoy
	}{
		{name: "once it is live", start: func(t *testing.T, bootstrap string) *peers.Envoy {
			return peers.StartEnvoy(t, bootstrap)
		}},
		{name: "started early and awaited", start: func(t *testing.T, bootstrap string) *peers.Envoy {
			e := peers.StartEnvoyEarly(t, bootstrap)
			e.AwaitLive()
			return e
		}},
	}
	for _, tt := range tests {
		var pid int
		t.Run(tt.name, func(t *testing.T) {
			port := peers.FreePort(t)
			bootstrap := filepath.Join(t.TempDir(), "envoy.yaml")
			if err := os.WriteFile(bootstrap, fmt.Appendf(nil, answering, port), 0o600); err != nil {
				t.Fatal(err)
			}
			e := tt.start(t, bootstrap)
			ask(t, "http://"+e.Admin()+"/ready")
			ask(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
			e.Kill()
			e.Start()
			e.AwaitLive()
			ask(t, "http://"+e.Admin()+"/ready")
			ask(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
			pid = e.Pid()
		})
		ended(t, pid)
	}
}

// ask wants 200 from a URL.
func ask(t *testing.T, url string) {
	t.Helper()
	if status, body, err := get(t.Context(), url); err != nil || status != http.StatusOK {
		t.Errorf("GET %s: got %d %q, %v; want 200", url, status, body, err)
	}
}
