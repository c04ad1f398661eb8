package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

var proxyFlags = []string{
	"--app", "cart", "--name", "cart-1", "--namespace", "shop", "--address", "127.0.0.9", "-l", "version=v1", "-l", "zone=a", "--weight", "50",
	"--xds", "127.0.0.1:1,127.0.0.1:2", "--admin", "127.0.0.1:3", "--http-proxy", "127.0.0.1:4",
	"--inbound", "app=127.0.0.1:8080,listen=0.0.0.0:20881,service=cart,service-port=80",
	"--inbound", "app=127.0.0.1:9090,listen=0.0.0.0:20882,protocol=tcp",
	"--egress", "host=lab.Greeting,port=20880,protocol=dubbo", "--egress", "host=pay,address=127.64.0.3", "--egress", "host=third",
}

func bootstrapText(t *testing.T, kind string, extra ...string) string {
	t.Helper()
	code, out, stderr := run(t, nil, "", append(append([]string{"bootstrap", "--for", kind}, proxyFlags...), extra...)...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	return out
}

func TestSidecarReadsItsFileBack(t *testing.T) {
	want := bootstrap.Defaults()
	want.Workload.Name, want.Workload.Namespace, want.Workload.App, want.Workload.Weight = "cart-1", "shop", "cart", 50
	want.Workload.Address = netip.MustParseAddr("127.0.0.9")
	want.Workload.Labels = map[string]string{"version": "v1", "zone": "a"}
	want.MeshServer = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")}
	want.Admin.AddrPort, want.HTTPProxy.AddrPort = netip.MustParseAddrPort("127.0.0.1:3"), netip.MustParseAddrPort("127.0.0.1:4")
	want.Inbound = []bootstrap.Inbound{
		{App: netip.MustParseAddrPort("127.0.0.1:8080"), Listen: netip.MustParseAddrPort("0.0.0.0:20881"), Protocol: model.HTTP, Service: "cart", ServicePort: 80},
		{App: netip.MustParseAddrPort("127.0.0.1:9090"), Listen: netip.MustParseAddrPort("0.0.0.0:20882")},
	}
	want.Egress = []bootstrap.Egress{
		{Host: "lab.Greeting", Port: 20880, Protocol: model.Dubbo},
		{Host: "pay", Protocol: model.HTTP, Address: netip.MustParseAddr("127.64.0.3")},
		{Host: "third", Protocol: model.HTTP},
	}
	for _, format := range []string{"table", "json", "yaml"} {
		got, err := bootstrap.Parse("sidecar.yaml", []byte(bootstrapText(t, "sidecar", "-o", format)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", format, d)
		}
	}
}

func TestEnvoyFileIsABootstrapThatTheServerUnderstands(t *testing.T) {
	text, err := yaml.YAMLToJSON([]byte(bootstrapText(t, "envoy")))
	if err != nil {
		t.Fatal(err)
	}
	b := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(text, b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Error(err)
	}
	n, err := scope.Parse(b.Node)
	if err != nil {
		t.Fatal(err)
	}
	if n.ID != "envoy~127.0.0.9~cart-1.shop~shop.mesh" || b.Node.Cluster != "cart" || n.Namespace != "shop" || len(n.Inbound) != 2 || n.HTTPProxy.String() != "127.0.0.1:4" {
		t.Errorf("node %+v", n)
	}
	var egress []string
	for _, e := range b.Node.Metadata.Fields["EGRESS"].GetListValue().Values {
		f := e.GetStructValue().Fields
		egress = append(egress, f["host"].GetStringValue()+" "+f["address"].GetStringValue())
	}
	if d := cmp.Diff([]string{"lab.Greeting 127.64.0.2", "pay 127.64.0.3", "third 127.64.0.4"}, egress); d != "" {
		t.Errorf("egress (-want +got):\n%s", d)
	}
	ads := b.DynamicResources.AdsConfig
	if ads.ApiType != corev3.ApiConfigSource_DELTA_GRPC || !ads.SetNodeOnFirstMessageOnly || len(b.StaticResources.Clusters[0].TypedExtensionProtocolOptions) != 1 {
		t.Errorf("xDS %v, %v; want delta, the node once, HTTP/2", ads, b.StaticResources.Clusters[0])
	}
	if got := len(b.StaticResources.Clusters[0].LoadAssignment.Endpoints[0].LbEndpoints); got != 2 {
		t.Errorf("%d servers, want 2", got)
	}
}

func TestGRPCFile(t *testing.T) {
	var got struct {
		Servers []struct {
			URI   string              `json:"server_uri"`
			Creds []map[string]string `json:"channel_creds"`
		} `json:"xds_servers"`
		Node     json.RawMessage
		Template string `json:"server_listener_resource_name_template"`
	}
	if err := json.Unmarshal([]byte(bootstrapText(t, "grpc")), &got); err != nil {
		t.Fatal(err)
	}
	n := &corev3.Node{}
	if err := protojson.Unmarshal(got.Node, n); err != nil {
		t.Fatal(err)
	}
	n.UserAgentName = "gRPC Go" // the client adds it
	parsed, err := scope.Parse(n)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Kind != scope.GRPC || len(parsed.Inbound) != 0 || parsed.HTTPProxy.IsValid() || parsed.Namespace != "shop" {
		t.Errorf("node %+v, want a plain gRPC client", parsed)
	}
	if len(got.Servers) != 2 || got.Servers[0].URI != "127.0.0.1:1" || got.Servers[0].Creds[0]["type"] != "insecure" || !strings.HasSuffix(got.Template, "=%s") {
		t.Errorf("got %+v", got)
	}
}

func TestBootstrapReportsEveryMistake(t *testing.T) {
	code, _, stderr := run(t, nil, "", "bootstrap", "--for", "sidecar", "--address", "x", "--xds", "y", "--admin", "z", "--egress", "hots=a", "--inbound", "listen=1")
	if code != 2 {
		t.Errorf("exit %d, want 2", code)
	}
	for _, want := range []string{"--app is missing", `--address "x"`, `--xds "y"`, `--admin "z"`, "--egress hots=a", "app is missing"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("got %q, want it to say %q", stderr, want)
		}
	}
	code, _, stderr = run(t, nil, "", "bootstrap", "--for", "sidecar", "--app", "a", "--inbound", "app=127.0.0.1:80", "--admin", "10.0.0.1:1")
	if code != 2 || !strings.Contains(stderr, "inbound[0].listen: is missing") || !strings.Contains(stderr, "admin: 10.0.0.1:1") {
		t.Errorf("exit %d, %q; want both mistakes of the file", code, stderr)
	}
}

// FuzzEgress checks that what is understood can be said again with the same meaning.
func FuzzEgress(f *testing.F) {
	for _, seed := range []string{"host=cart,port=80", "host=lab.Greeting,protocol=dubbo,address=127.64.0.5", "host", "=", "port=99999", "host=a,host=b", "address=::1%eth0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, mistakes := egress(text)
		if len(mistakes) > 0 {
			return
		}
		again := fmt.Sprintf("host=%s,port=%d,protocol=%v", e.Host, e.Port, e.Protocol)
		if e.Address.IsValid() {
			again += ",address=" + e.Address.String()
		}
		if got, mistakes := egress(again); got != e || len(mistakes) > 0 {
			t.Errorf("%q is %+v, and %q is %+v, %v", text, e, again, got, mistakes)
		}
	})
}

func BenchmarkEgress(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, mistakes := egress("host=lab.Greeting,port=20880,protocol=dubbo,address=127.64.0.5"); len(mistakes) > 0 {
			b.Fatal(mistakes)
		}
	}
}
