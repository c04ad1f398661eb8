package bootstrap

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

var plain = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

const whole = `
workload:
  name: cart-1
  namespace: shop
  app: cart
  labels: {version: v1, "8": "9"}
  address: 10.0.0.7
  locality: {region: r, zone: z, subzone: s}
  weight: 50
  cluster: c1
meshserver: ["10.0.0.1:15010", "[::1]:15010"]
inbound:
- {app: 127.0.0.1:8080, listen: 0.0.0.0:20881, protocol: http, service: cart, servicePort: 80}
- {app: 127.0.0.1:9090, listen: 0.0.0.0:20882}
egress:
- {host: Lab.GreetingService, protocol: dubbo}
- {host: db, port: 3306, address: 127.64.9.9}
httpProxy: off
loopback: 127.65.0.0/16
admin: 127.0.0.1:25000
metrics: off
readiness: 0.0.0.0:25021
accessLog: {path: /dev/stdout, format: json, all: false, bufferBytes: 1024}
dataDir: /var/lib/isthmus
drainTime: 5s
limits: {connections: 100}
`

func TestAWholeFile(t *testing.T) {
	got, err := Parse("sidecar.yaml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Workload: Workload{
			Name: "cart-1", Namespace: "shop", App: "cart", Labels: map[string]string{"version": "v1", "8": "9"},
			Address: netip.MustParseAddr("10.0.0.7"), Locality: Locality{"r", "z", "s"}, Weight: 50, Cluster: "c1",
		},
		MeshServer: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:15010"), netip.MustParseAddrPort("[::1]:15010")},
		API:        "127.0.0.1:15080", Lease: 15 * time.Second,
		Inbound: []Inbound{
			{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("0.0.0.0:20881"), model.HTTP, "cart", 80},
			{App: netip.MustParseAddrPort("127.0.0.1:9090"), Listen: netip.MustParseAddrPort("0.0.0.0:20882")},
		},
		Egress: []Egress{
			{Host: "Lab.GreetingService", Protocol: model.Dubbo},
			{Host: "db", Port: 3306, Address: netip.MustParseAddr("127.64.9.9")},
		},
		Loopback:  netip.MustParsePrefix("127.65.0.0/16"),
		Admin:     Address{netip.MustParseAddrPort("127.0.0.1:25000")},
		Readiness: Address{netip.MustParseAddrPort("0.0.0.0:25021")},
		AccessLog: AccessLog{Path: "/dev/stdout", Format: telemetry.JSON, BufferBytes: 1024},
		DataDir:   "/var/lib/isthmus", DrainTime: 5 * time.Second, Limits: Limits{Connections: 100},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), plain, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if got, want := got.NodeID(), "sidecar~10.0.0.7~cart-1.shop~shop.mesh"; got != want {
		t.Errorf("node id: got %s, want %s", got, want)
	}
	wanted := []Wanted{
		{"lab.greetingservice:20880", 20880, netip.Addr{}},
		{"db:3306", 3306, netip.MustParseAddr("127.64.9.9")},
	}
	if d := cmp.Diff(wanted, got.Wanted(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("Wanted (-want +got):\n%s", d)
	}
	w := got.Model()
	if w.Name != "cart-1" || w.Labels != model.NewLabels(map[string]string{"version": "v1", "8": "9"}) || len(w.Inbound) != 2 || w.Inbound[0].ServicePort != 80 {
		t.Errorf("Model: got %+v", w)
	}
}

func TestNoFileIsGoodEnough(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "workload:\n"} {
		c, err := Parse("sidecar.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if c.NodeID() != "sidecar~127.0.0.1~app-127.0.0.1.default~default.mesh" {
			t.Errorf("node id: got %s", c.NodeID())
		}
	}
}

func TestWhatTheControlPlaneIsTold(t *testing.T) {
	c, err := Parse("sidecar.yaml", []byte(strings.Replace(whole, "httpProxy: off", "httpProxy: 127.0.0.1:15002", 1)))
	if err != nil {
		t.Fatal(err)
	}
	js, err := protojson.Marshal(c.Node("v1").GetMetadata())
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(string(js), " ", "")
	want := `{"APP_NAME":"cart","CLUSTER_ID":"c1","HTTP_PROXY":"127.0.0.1:15002","INBOUND":[{"app":"127.0.0.1:8080","listen":"0.0.0.0:20881","protocol":"http"},` +
		`{"app":"127.0.0.1:9090","listen":"0.0.0.0:20882","protocol":"tcp"}],"INTERCEPTION_MODE":"NONE","LABELS":{"8":"9","version":"v1"},"NAMESPACE":"shop","WORKLOAD_NAME":"cart-1"}`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("metadata (-want +got):\n%s", d)
	}
	node := c.Node("v1")
	if node.GetCluster() != "cart" || node.GetLocality().GetSubZone() != "s" || node.GetUserAgentVersion() != "v1" {
		t.Errorf("node: got %v", node)
	}
}

func TestMistakesOfFormAreReportedTogetherWithTheirPlace(t *testing.T) {
	_, err := Parse("sidecar.yaml", []byte(`workload:
  nam: x
  app: [a]
  weight: -1
  weight: 3
  address: here
inbound: {}
egress:
- {port: 70000, host: a, protocol: smtp}
drainTime: 5
limits: {connections: many}
accessLog: {format: xml, all: maybe}
admin: 15000
loopback: &a 127.64.0.0/16
metrics: *a
`))
	want := []string{
		`sidecar.yaml:2:3: workload.nam: unknown key, want one of name, namespace, app, labels, address, locality, weight, cluster`,
		`sidecar.yaml:3:8: workload.app: want a single value`,
		`sidecar.yaml:4:11: workload.weight: -1, want 0 to 4294967295`,
		`sidecar.yaml:5:3: workload.weight: is set in line 4 already`,
		`sidecar.yaml:6:12: workload.address: ParseAddr("here"): unable to parse IP`,
		`sidecar.yaml:7:10: inbound: want a list`,
		`sidecar.yaml:9:10: egress[0].port: 70000, want 0 to 65535`,
		`sidecar.yaml:9:36: egress[0].protocol: protocol "smtp", want one of tcp, http, http2, grpc, tls, dubbo, tri, bolt`,
		`sidecar.yaml:10:12: drainTime: "5", want a duration such as 30s`,
		`sidecar.yaml:11:23: limits.connections: "many", want a whole number`,
		`sidecar.yaml:12:21: accessLog.format: format "xml", want text or json`,
		`sidecar.yaml:12:31: accessLog.all: "maybe", want true or false`,
		`sidecar.yaml:13:8: admin: not an ip:port`,
		`sidecar.yaml:15:10: metrics: aliases are not supported`,
	}
	if err == nil {
		t.Fatal("accepted")
	}
	if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
		t.Errorf("mistakes (-want +got):\n%s", d)
	}
	if _, err := Parse("f", []byte("a: [")); err == nil || !strings.HasPrefix(err.Error(), "f: ") {
		t.Errorf("no YAML: got %v", err)
	}
}

func TestMistakesOfMeaningAreReportedTogether(t *testing.T) {
	c := Defaults()
	c.Workload.Namespace, c.Workload.Address = "a~b", netip.IPv4Unspecified()
	c.MeshServer = nil
	c.Admin = Address{netip.MustParseAddrPort("0.0.0.0:15000")}
	c.HTTPProxy = Address{netip.MustParseAddrPort("127.0.0.1:15020")}
	c.Loopback = netip.MustParsePrefix("10.0.0.0/8")
	c.DataDir, c.DrainTime, c.Limits.Connections = "", -1, -1
	c.Inbound = []Inbound{
		{Listen: netip.MustParseAddrPort("127.0.0.1:9")},
		{App: netip.MustParseAddrPort("127.0.0.1:9"), Listen: netip.MustParseAddrPort("127.0.0.1:9"), Service: "a b"},
	}
	c.Egress = []Egress{{Host: "a"}, {Host: "B", Port: 1}, {Host: "b", Port: 1, Address: netip.MustParseAddr("10.0.0.1")}}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	want := []string{
		`workload.namespace: "a~b", want letters, digits and -_.: up to 253 bytes`,
		`workload.address: 0.0.0.0, want the address at which others reach the workload`,
		`meshserver: is empty, want at least one address`,
		`httpProxy: 127.0.0.1:15020 is taken by metrics`,
		`inbound[0].app: invalid AddrPort, want the address and port where the application listens`,
		`inbound[1].listen: 127.0.0.1:9 is taken by inbound[0].listen`,
		`inbound[1].listen: 127.0.0.1:9 is the application's own address`,
		`inbound[1].service: host "a b": byte 1 is ' ', want a letter, a digit or one of -._:$/`,
		`inbound[1].servicePort: is missing: protocol tcp has no port of its own`,
		`egress[0].port: is missing: protocol tcp has no port of its own`,
		`egress[2]: b:1 is egress[1] already`,
		`egress[2].address: 10.0.0.1, want an address within 127.0.0.0/8`,
		`loopback: 10.0.0.0/8, want a prefix within 127.0.0.0/8 of at most 29 bits`,
		`admin: 0.0.0.0:15000, want a loopback address: whoever reaches it controls the sidecar`,
		`dataDir: is empty`,
		`drainTime: -1ns, want at least 0`,
		`limits.connections: -1, want at least 0`,
	}
	if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
		t.Errorf("mistakes (-want +got):\n%s", d)
	}
	c = Defaults()
	c.MeshServer = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:15010")}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "cannot be reached from other hosts") {
		t.Errorf("a loopback workload of a remote control plane: got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("workload: {labels: {a: {b: c}}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			return
		}
		if c.Validate() == nil {
			if c.NodeID() == "" || c.Node("v") == nil || len(c.Wanted()) != len(c.Egress) {
				t.Fatal("a valid file makes no node")
			}
		}
	})
}
