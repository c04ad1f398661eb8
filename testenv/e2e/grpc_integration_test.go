//go:build integration

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/xds"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

// instanceHeader says which server answered.
const instanceHeader = "x-instance"

// grpcServer serves gRPC's health service and names itself in every answer.
func grpcServer(t *testing.T, id string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := grpc.SetHeader(ctx, metadata.Pairs(instanceHeader, id)); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("gRPC server %s: %v", id, err)
		}
	})
	return l.Addr().String()
}

// grpcCaller is gRPC's own xDS client, on the bootstrap that meshctl writes.
type grpcCaller struct{ client grpc_health_v1.HealthClient }

func dialXDS(t *testing.T, m *testenv.Mesh, target string) grpcCaller {
	t.Helper()
	bootstrap := m.Ctl("bootstrap", "--for", "grpc", "--app", "web", "--name", "web-grpc", "--xds", m.XDS)
	// What GRPC_XDS_BOOTSTRAP does, for this connection alone.
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(bootstrap))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return grpcCaller{grpc_health_v1.NewHealthClient(conn)}
}

// call returns the name of the server that answered.
func (c grpcCaller) call(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var header metadata.MD
	resp, err := c.client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header))
	if err != nil {
		return "", err
	}
	ids := header.Get(instanceHeader)
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING || len(ids) != 1 {
		return "", fmt.Errorf("status %v from %v", resp.Status, ids)
	}
	return ids[0], nil
}

// split counts who answers n calls.
func (c grpcCaller) split(ctx context.Context, n int) (map[string]int, error) {
	count := map[string]int{}
	for range n {
		id, err := c.call(ctx)
		if err != nil {
			return nil, err
		}
		count[id]++
	}
	return count, nil
}

// reaches succeeds when exactly those servers answer, each at least a fourth of
// an even share.
func (c grpcCaller) reaches(ids ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		const calls = 120
		got, err := c.split(ctx, calls)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if got[id] < calls/len(ids)/4 {
				return fmt.Errorf("%v answered, want %v evenly", got, ids)
			}
		}
		if len(got) != len(ids) {
			return fmt.Errorf("%v answered, want %v", got, ids)
		}
		return nil
	}
}

// TestGRPCClient: gRPC's own xDS client finds a service that stands half in
// Consul and half in the built-in registry, balances over it, follows its
// endpoints and a canary rule, and goes on while MeshServer is away.
func TestGRPCClient(t *testing.T) {
	consul := peers.StartConsul(t, peers.ConsulConfig{})
	mesh := testenv.Start(t, testenv.Config{Consul: consul})
	const host = "greeter"
	registerInConsul(t, consul, host, "one", grpcServer(t, "one"), "protocol=grpc", "version=v1")
	builtin := func(id, version string) (lease string) {
		return register(t, mesh, "--app", host, "--name", id, "--label", "version="+version,
			"--inbound", "app="+grpcServer(t, id)+",protocol=grpc,service="+host)
	}
	builtin("two", "v2")
	eventually(t, "both registries report it", shows(mesh, []string{"consul-main", "builtin", "50051/grpc"}, "service", "show", host))

	c := dialXDS(t, mesh, "xds:///"+host+":50051")
	eventually(t, "calls are balanced", c.reaches("one", "two"))
	lease := builtin("three", "v1")
	eventually(t, "a new endpoint is called", c.reaches("one", "two", "three"))
	mesh.Ctl("workload", "leave", lease)
	eventually(t, "who left is not", c.reaches("one", "two"))

	mesh.Apply(fmt.Sprintf(canary, host))
	eventually(t, "the client took the rule", shows(mesh, []string{"on 1 of 1"}, "rule", "get", "virtualservice/default/"+host))
	eventually(t, "the canary holds", func(ctx context.Context) error {
		got, err := c.split(ctx, 400)
		if err == nil && (got["one"] < 330 || got["one"] > 390 || got["one"]+got["two"] != 400) {
			err = fmt.Errorf("split %v of 400, want about 360 to 40", got)
		}
		return err
	})

	mesh.Kill()
	if _, err := c.split(t.Context(), 100); err != nil {
		t.Errorf("while MeshServer is away: %v", err)
	}
	mesh.Start()
	mesh.Ctl("rule", "delete", "virtualservice/default/"+host, "--author", "test")
	eventually(t, "the client follows the MeshServer that came back", c.reaches("one", "two"))
}

// clientStatus is what grpcurl prints of CSDS, as far as it is looked at.
type clientStatus struct {
	Config []struct {
		Node    struct{ ID, UserAgentName string }
		Generic []struct {
			TypeURL      string `json:"typeUrl"`
			Name         string
			VersionInfo  string
			ConfigStatus string
			ClientStatus string
			XDSConfig    map[string]any `json:"xdsConfig"`
		} `json:"genericXdsConfigs"`
	}
}

// TestGrpcurlReadsClientStatus: status discovery answers who asks with nothing
// but gRPC's reflection, and has what a sidecar and an Envoy took.
func TestGrpcurlReadsClientStatus(t *testing.T) {
	grpcurl, err := cache.Grpcurl().Path("grpcurl")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, grpcurl, append([]string{"-plaintext"}, args...)...).Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return string(out), err
	}
	mesh := testenv.Start(t, testenv.Config{})
	addr := echotest.Start(t, echo.Config{ID: "cart-1", Version: "v1"})
	register(t, mesh, "--app", "cart", "--inbound", "app="+addr+",protocol=http,service=cart")
	sidecar := mesh.Sidecar(testenv.Workload{Name: "web-1", App: "web"})
	_, proxy := startEnvoy(t, mesh, "web-2", asWritten)
	for _, p := range []string{sidecar.Proxy, proxy} {
		eventually(t, "both proxies serve", answers(caller(t, p), "http://cart/", `"id":"cart-1"`))
	}

	const service = "envoy.service.status.v3.ClientStatusDiscoveryService"
	if out, err := ask(t.Context(), mesh.XDS, "list"); err != nil || !strings.Contains(out, service) {
		t.Errorf("grpcurl list: %v, want %s in\n%s", err, service, out)
	}
	eventually(t, "CSDS has what both took", func(ctx context.Context) error {
		out, err := ask(ctx, "-d", "{}", mesh.XDS, service+"/FetchClientStatus")
		if err != nil {
			return err
		}
		var got clientStatus
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			return err
		}
		held := map[string]bool{}
		for _, c := range got.Config {
			for _, r := range c.Generic {
				kind := r.TypeURL[strings.LastIndexByte(r.TypeURL, '.')+1:]
				if r.ClientStatus == "ACKED" && r.ConfigStatus == "SYNCED" && r.VersionInfo != "" && len(r.XDSConfig) > 0 {
					held[c.Node.ID+" "+kind+" "+r.Name] = true
				}
			}
		}
		for _, node := range []string{"sidecar~127.0.0.1~web-1", "envoy~127.0.0.1~web-2"} {
			port := sidecar.Proxy
			if strings.HasPrefix(node, "envoy") {
				port = proxy
			}
			at := strings.ReplaceAll(port, ":", "_")
			for _, want := range []string{"Cluster outbound|80||cart", "ClusterLoadAssignment outbound|80||cart", "Listener " + at, "RouteConfiguration " + port[strings.IndexByte(port, ':')+1:]} {
				if key := node + ".default~default.mesh " + want; !held[key] {
					return fmt.Errorf("no %q acknowledged; there are %v", key, held)
				}
			}
		}
		return nil
	})
	one, err := ask(t.Context(), "-d", `{"node_matchers": [{"node_id": {"prefix": "envoy~"}}]}`, mesh.XDS, service+"/FetchClientStatus")
	if err != nil || !strings.Contains(one, "envoy~127.0.0.1~web-2") || strings.Contains(one, "sidecar~") {
		t.Errorf("one node asked for: %v\n%s", err, one)
	}
}
