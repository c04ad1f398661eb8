package scope

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func node(t testing.TB, text string) *corev3.Node {
	t.Helper()
	n := &corev3.Node{}
	if err := protojson.Unmarshal([]byte(text), n); err != nil {
		t.Fatal(err)
	}
	return n
}

const full = `{"id": "sidecar~10.0.0.1~web-1.shop~local", "cluster": "web", "locality": {"region": "eu", "zone": "a"},
	"metadata": {"NAMESPACE": "shop", "APP_NAME": "web", "WORKLOAD_NAME": "web-1", "LABELS": {"app": "web", "hash": "x1"},
	"INTERCEPTION_MODE": "NONE", "CLUSTER_ID": "c", "ANNOTATIONS": {"any": ["thing"]},
	"INBOUND": [{"app": "127.0.0.1:8080", "listen": "0.0.0.0:20881", "protocol": "http"}],
	"EGRESS": [{"host": "lab.Greeting", "port": 20880, "address": "127.64.0.5"}], "HTTP_PROXY": "127.0.0.1:15002"}}`

func TestParse(t *testing.T) {
	n, err := Parse(node(t, full))
	if err != nil {
		t.Fatal(err)
	}
	if n.Kind != Sidecar || n.Namespace != "shop" || n.App != "web" || n.Workload != "web-1" || n.Locality.Zone != "a" {
		t.Errorf("got %+v", n)
	}
	if len(n.Inbound) != 1 || n.Inbound[0].Protocol != model.HTTP || n.Inbound[0].Listen.Port() != 20881 {
		t.Errorf("inbound: got %+v", n.Inbound)
	}
	if len(n.Egress) != 1 || n.Egress[0].Host != "lab.greeting" || n.Egress[0].Listen.String() != "127.64.0.5:20880" {
		t.Errorf("egress: got %+v", n.Egress)
	}
	if n.HTTPProxy.String() != "127.0.0.1:15002" || n.Name() != "shop/web" {
		t.Errorf("proxy %v, name %s", n.HTTPProxy, n.Name())
	}
}

func TestParseKinds(t *testing.T) {
	for _, tt := range []struct {
		name, node, namespace, workload string
		want                            Kind
	}{
		{"an id of Istio's form names workload and namespace", `{"id": "sidecar~10.0.0.1~web-1.shop~local"}`, "shop", "web-1", Sidecar},
		{"any other id is an Envoy's", `{"id": "front"}`, "default", "", Envoy},
		{"a gRPC library says so, whatever its id", `{"id": "sidecar~10.0.0.1~web-1.shop~local", "userAgentName": "gRPC Go"}`, "shop", "web-1", GRPC},
		{"null is as good as nothing", `{"id": "a", "metadata": {"NAMESPACE": null, "LABELS": null, "INBOUND": null}}`, "default", "", Envoy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := Parse(node(t, tt.node))
			if err != nil || n.Kind != tt.want || n.Namespace != tt.namespace || n.Workload != tt.workload {
				t.Errorf("got %+v, %v", n, err)
			}
		})
	}
}

func TestParseNamesEveryMistake(t *testing.T) {
	_, err := Parse(node(t, `{"id": "", "metadata": {"NAMESPACE": 5, "APP_NAME": "a\u0001b", "LABELS": {"a": 1},
		"INBOUND": [{"app": "127.0.0.1", "listen": "0.0.0.0:0", "protocol": "smtp"}, 7, {"app": "1.1.1.1:80", "listen": "1.1.1.1:81", "port": 1},
			{"app": "1.1.1.2:80", "listen": "1.1.1.1:81"}],
		"EGRESS": [{"host": "a b", "port": 1, "address": "127.0.0.1"}, {"host": "a", "port": 1.5, "address": "127.0.0.1"}, {"host": "a", "port": 81, "address": "1.1.1.1"}, {"host": "a", "port": 1, "address": "x"}],
		"HTTP_PROXY": "localhost:1"}}`))
	if err == nil {
		t.Fatal("no error")
	}
	want := []string{
		"node.metadata.NAMESPACE: want text",
		`node.metadata.APP_NAME: "a\x01b", want text without control characters`,
		`node.metadata.LABELS["a"]: want text`,
		"node.metadata.INBOUND[1]: want a mapping",
		"node.metadata.INBOUND[2].port: no such field, want app, listen, protocol",
		`node.metadata.INBOUND[0].app: "127.0.0.1", want ip:port`,
		`node.metadata.INBOUND[0].listen: "0.0.0.0:0", want ip:port`,
		`node.metadata.INBOUND[0].protocol: protocol "smtp", want one of tcp, http, http2, grpc, tls, dubbo, tri, bolt`,
		`node.metadata.EGRESS[0].host: host "a b": byte 1 is ' ', want a letter, a digit or one of -._:$/`,
		"node.metadata.EGRESS[1].port: 1.5, want 1 to 65535",
		`node.metadata.EGRESS[3].address: "x", want ip or ip:port`,
		"node.id: is missing",
		`node.metadata.HTTP_PROXY: "localhost:1", want ip:port`,
		"node.metadata.INBOUND[1].listen: 1.1.1.1:81 is taken by node.metadata.INBOUND[0].listen",
		"node.metadata.INBOUND[1].app: port 80 is taken by node.metadata.INBOUND[0].app",
		"node.metadata.EGRESS[0].address: 1.1.1.1:81 is taken by node.metadata.INBOUND[0].listen",
	}
	if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
		t.Errorf("mistakes (-want +got):\n%s", d)
	}
	if _, err := Parse(nil); err == nil {
		t.Error("no node at all: no error")
	}
}

func TestKeys(t *testing.T) {
	a, errA := Parse(node(t, full))
	b, errB := Parse(node(t, strings.Replace(full, `"hash": "x1"`, `"hash": "x2"`, 1)))
	other, errC := Parse(node(t, strings.Replace(full, "20881", "20882", 1)))
	if errA != nil || errB != nil || errC != nil {
		t.Fatal(errA, errB, errC)
	}
	pairs := func(key, value string) map[string]map[string]struct{} {
		return map[string]map[string]struct{}{key: {value: {}}}
	}
	if a.Caller(pairs("hash", "x3")) != b.Caller(nil) || a.Caller(pairs("hash", "x1")) == b.Caller(pairs("hash", "x1")) {
		t.Error("a label whose value no rule names makes another client, or one that a rule names does not")
	}
	if got := a.Caller(pairs("hash", "x1")); got.Unlabelled() != a.Caller(nil) {
		t.Errorf("got %+v", got)
	}
	if a.Key() == b.Key() || a.Key() == other.Key() {
		t.Error("nodes that may be served differently share a key")
	}
	again, err := Parse(node(t, full))
	if err != nil || again.Key() != a.Key() {
		t.Error("equal nodes have different keys")
	}
}

func FuzzParse(f *testing.F) {
	raw, err := proto.Marshal(node(f, full))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		n := &corev3.Node{}
		if proto.Unmarshal(data, n) != nil {
			return
		}
		got, err := Parse(n)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "node.") {
				t.Fatalf("an error without its field: %v", err)
			}
			return
		}
		again, err := Parse(n)
		if err != nil || got.ID == "" || got.Namespace == "" || got.Key() != again.Key() {
			t.Fatalf("got %+v, then %+v, %v", got, again, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	n := node(b, full)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(n); err != nil {
			b.Fatal(err)
		}
	}
}
