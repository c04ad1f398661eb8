//go:build integration

package server_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

const envoyBootstrap = `
node: {id: envoy-under-test, cluster: test}
dynamic_resources:
  ads_config:
    api_type: %s
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: xds}}]
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`

// answering is an HTTP server that says its name.
func answering(t *testing.T, name string) (addr string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, name) // a client that went away is not of interest
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func boundListener(name string, port int, routes string) *resource.Resource {
	return servertest.Make(resource.Listener, name, &listenerv3.Listener{
		Name: name, Address: servertest.Address("127.0.0.1", port),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(httpManager(routes))},
		}}}},
	})
}

func TestEnvoy(t *testing.T) {
	for api, delta := range map[string]bool{"DELTA_GRPC": true, "GRPC": false} {
		t.Run(api, func(t *testing.T) { testEnvoy(t, api, delta) })
	}
}

func testEnvoy(t *testing.T, api string, delta bool) {
	one, two := answering(t, "one"), answering(t, "two")
	port := peers.FreePort(t)
	reg := status.NewRegistry()
	w := servertest.NewWorld(
		edsCluster("one"), endpointsAt("one", one), boundListener("in", port, "r"), routeTo("r", "*", "one"),
	)
	w.PutOnDemand(boundListener("rare", port, "r")) // would clash if it were sent
	host, xdsPort, err := net.SplitHostPort(servertest.Serve(t, w, server.Config{Log: quietLog(), Status: reg}))
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(bootstrap, fmt.Appendf(nil, envoyBootstrap, api, host, xdsPort), 0o600); err != nil {
		t.Fatal(err)
	}
	peers.StartEnvoy(t, bootstrap)

	client := &http.Client{Timeout: answerTime, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func() string {
		t.Helper()
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if cerr := resp.Body.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d: %s", resp.StatusCode, body)
		}
		return string(body)
	}
	if got := get(); got != "one" {
		t.Fatalf("answered by %q, want one", got)
	}
	// A route moves to a new cluster and the old one goes, in one publication: every
	// request on the way is answered.
	w.Change(
		[]*resource.Resource{edsCluster("two"), endpointsAt("two", two), routeTo("r", "*", "two")},
		[]resource.Key{key(resource.Cluster, "one"), key(resource.Endpoints, "one")},
	)
	eventually(t, "requests reach the new cluster", func() bool { return get() == "two" })
	w.Put(endpointsAt("two", one))
	eventually(t, "requests reach the new endpoint", func() bool { return get() == "one" })
	// The cluster changes: Envoy warms it up anew and needs its endpoints again.
	changed := servertest.Simple(resource.Cluster, "two", 7)
	w.Put(changed)
	w.Put(endpointsAt("two", two))
	eventually(t, "requests reach the endpoints of the changed cluster", func() bool { return get() == "two" })
	if f := reg.Refusals(); len(f) > 0 {
		t.Fatalf("envoy refused %+v", f)
	}

	// A listener without filter chains is refused by name; everything else stays.
	bad := servertest.Make(resource.Listener, "bad", &listenerv3.Listener{Name: "bad"}, "gateway/default/bad")
	w.Put(bad, endpointsAt("two", one))
	eventually(t, "the refusal is reported", func() bool {
		f := reg.Refusals()
		return len(f) > 0 && f[0].Name == "bad" && f[0].Version == bad.Version && f[0].Origins[0] == "gateway/default/bad"
	})
	eventually(t, "requests reach the newest endpoint", func() bool { return get() == "one" })
	if clients := reg.Clients(nil, false); len(clients) != 1 || clients[0].Delta != delta {
		t.Errorf("clients %+v, want one", clients)
	}
	if f := reg.Refusals(); len(f) != 1 {
		t.Errorf("refused %d times, want once: %+v", len(f), f)
	}
}
