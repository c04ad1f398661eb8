//go:build integration

package server_test

import (
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestGrpcurlReadsClientStatus(t *testing.T) {
	grpcurl, err := cache.Grpcurl().Path("grpcurl")
	if err != nil {
		t.Fatal(err)
	}
	w := servertest.NewWorld(edsCluster("one"), boundListener("in", 8080, "r"))
	addr := servertest.Serve(t, w, server.Config{Log: quietLog()})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := openDelta(t, conn)
	c.subscribe(resource.Cluster)
	c.wantAck("CDS one")
	c.subscribe(resource.Listener)
	c.wantAck("LDS in")
	status := func(node string) (names []string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), grpcurl, "-plaintext", "-d",
			`{"node_matchers": [{"node_id": {"exact": "`+node+`"}}]}`, addr,
			"envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var got struct {
			Config []struct {
				GenericXdsConfigs []struct {
					Name         string
					ClientStatus string
					XdsConfig    struct{ Name string }
				}
			}
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, cfg := range got.Config {
			for _, g := range cfg.GenericXdsConfigs {
				if g.ClientStatus == "ACKED" && g.XdsConfig.Name == g.Name {
					names = append(names, g.Name)
				}
			}
		}
		return names
	}
	eventually(t, "both resources are shown as acknowledged, with their content", func() bool {
		return len(status("node-"+t.Name())) == 2
	})
	if names := status("another"); len(names) > 0 {
		t.Errorf("another node has %q", names)
	}
}
