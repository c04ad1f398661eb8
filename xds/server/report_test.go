package server_test

import (
	"slices"
	"strings"
	"testing"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

func named(c *rawClient, id string, labels map[string]any) *rawClient {
	meta, err := structpb.NewStruct(labels)
	if err != nil {
		c.t.Fatal(err)
	}
	c.node = &corev3.Node{Id: id, Metadata: meta}
	return c
}

func TestAppliedOnNOfM(t *testing.T) {
	const rule, other = "virtualservice/default/cart", "virtualservice/default/shop"
	shaped := func(seed int) *resource.Resource {
		return servertest.Simple(resource.Cluster, "a", seed, rule, other)
	}
	w, conn, reg := startWithStatus(t, shaped(1))
	w.PutOnDemand(servertest.Simple(resource.Cluster, "rare", 1, "rare"))
	var clients []*rawClient
	for _, id := range []string{"n1", "n2", "n3"} {
		c := named(openDelta(t, conn), id, nil)
		c.subscribe(resource.Cluster)
		c.wantAck("CDS a")
		c.quiet()
		clients = append(clients, c)
	}
	unconcerned := named(openDelta(t, conn), "n4", nil)
	unconcerned.subscribe(resource.Endpoints, "x")
	unconcerned.wantAck("EDS  -x")
	want := func(p status.Progress) {
		t.Helper()
		if d := cmp.Diff(p, reg.Applied(rule)[rule]); d != "" {
			t.Fatalf("progress (-want +got):\n%s", d)
		}
	}
	want(status.Progress{Applied: 3, Total: 3})
	w.Put(shaped(2))
	clients[0].wantAck("CDS a")
	clients[0].quiet()
	clients[1].nack(clients[1].want("CDS a"), "a: no")
	clients[1].quiet()
	clients[2].want("CDS a")
	want(status.Progress{Applied: 1, Total: 3, Refused: []string{"n2"}, Waiting: []string{"n3"}})
	all := reg.Applied()
	if len(all) != 2 || all[other].Total != 3 {
		t.Errorf("all origins: %+v, want the two of cluster a", all)
	}
	if p := reg.Applied("no/such/rule")["no/such/rule"]; p.Total != 0 {
		t.Errorf("unknown rule is on %d nodes", p.Total)
	}
}

func TestClientsTellWhatTheyHold(t *testing.T) {
	w, conn, reg := startWithStatus(t, cds("a", 1), cds("b", 1))
	c := named(openDelta(t, conn), "n1", nil)
	c.subscribe(resource.Cluster, "*", "ghost")
	c.wantAck("CDS a,b -ghost")
	c.quiet()
	w.Put(cds("a", 2))
	c.want("CDS a")
	clients := reg.Clients(nil, true)
	if len(clients) != 1 {
		t.Fatalf("clients %+v, want one", clients)
	}
	got := clients[0]
	if got.Node.GetId() != "n1" || !got.Delta || got.Scope != "scope/" || got.Connected.IsZero() {
		t.Errorf("client %+v", got)
	}
	ts := got.Types[0]
	if ts.Type != resource.Cluster || !ts.Wildcard || ts.Held != 2 || ts.Waiting != 1 || ts.Acked == "" || ts.Acked == ts.Version {
		t.Errorf("type %+v", ts)
	}
	want := map[string]status.State{"a": status.Sent, "b": status.Acked, "ghost": status.Missing}
	states := map[string]status.State{}
	for _, item := range ts.Items {
		states[item.Name] = item.State
	}
	if d := cmp.Diff(want, states); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	c.cancel()
	eventually(t, "the client is gone", func() bool { return len(reg.Clients(nil, false)) == 0 })
}

func fetch(t *testing.T, conn *grpc.ClientConn, req *statusv3.ClientStatusRequest) []*statusv3.ClientConfig {
	t.Helper()
	resp, err := statusv3.NewClientStatusDiscoveryServiceClient(conn).FetchClientStatus(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetConfig()
}

func TestCSDS(t *testing.T) {
	w, conn, _ := startWithStatus(t, cds("a", 1))
	one := named(openDelta(t, conn), "sidecar~10.0.0.1~cart", map[string]any{"NAMESPACE": "shop", "LABELS": map[string]any{"app": "cart"}})
	two := named(openSotW(t, conn), "envoy-2", map[string]any{"NAMESPACE": "default"})
	for _, c := range []*rawClient{one, two} {
		c.subscribe(resource.Cluster)
		c.wantAck("CDS a")
		c.quiet()
	}
	w.Put(cds("a", 2))
	one.wantAck("CDS a")
	one.quiet()
	two.nack(two.want("CDS a"), "a: not for me")
	two.quiet()

	id := func(m *matcherv3.StringMatcher) *matcherv3.NodeMatcher { return &matcherv3.NodeMatcher{NodeId: m} }
	namespace := func(ns string) *matcherv3.NodeMatcher {
		return &matcherv3.NodeMatcher{NodeMetadatas: []*matcherv3.StructMatcher{{
			Path: []*matcherv3.StructMatcher_PathSegment{{Segment: &matcherv3.StructMatcher_PathSegment_Key{Key: "NAMESPACE"}}},
			Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{
				StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: ns}},
			}},
		}}}
	}
	for _, tt := range []struct {
		name     string
		matchers []*matcherv3.NodeMatcher
		want     []string
	}{
		{name: "no matcher takes all", want: []string{"envoy-2", "sidecar~10.0.0.1~cart"}},
		{
			name:     "a prefix of the id",
			matchers: []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "sidecar~"}})},
			want:     []string{"sidecar~10.0.0.1~cart"},
		},
		{
			name: "an expression matches the whole id",
			matchers: []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
				SafeRegex: &matcherv3.RegexMatcher{Regex: "envoy"},
			}})},
		},
		{name: "metadata", matchers: []*matcherv3.NodeMatcher{namespace("shop")}, want: []string{"sidecar~10.0.0.1~cart"}},
		{
			name: "either of two", want: []string{"envoy-2", "sidecar~10.0.0.1~cart"},
			matchers: []*matcherv3.NodeMatcher{namespace("shop"), namespace("default")},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, c := range fetch(t, conn, &statusv3.ClientStatusRequest{NodeMatchers: tt.matchers}) {
				got = append(got, c.GetNode().GetId())
			}
			slices.Sort(got)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("nodes (-want +got):\n%s", d)
			}
		})
	}
	cluster := func(node string, exclude bool) *statusv3.ClientConfig_GenericXdsConfig {
		t.Helper()
		cs := fetch(t, conn, &statusv3.ClientStatusRequest{
			NodeMatchers:            []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: node}})},
			ExcludeResourceContents: exclude,
		})
		for _, c := range cs {
			for _, g := range c.GetGenericXdsConfigs() {
				if g.GetName() == "a" {
					return g
				}
			}
		}
		t.Fatalf("no cluster a in %v", cs)
		return nil
	}
	good := cluster("sidecar~10.0.0.1~cart", false)
	if good.GetClientStatus() != adminv3.ClientResourceStatus_ACKED || good.GetConfigStatus() != statusv3.ConfigStatus_SYNCED ||
		good.GetVersionInfo() != cds("a", 2).Version || string(good.GetXdsConfig().GetValue()) != string(cds("a", 2).Body) {
		t.Errorf("acknowledged cluster: %v", good)
	}
	bad := cluster("envoy-2", true)
	if bad.GetClientStatus() != adminv3.ClientResourceStatus_NACKED || bad.GetConfigStatus() != statusv3.ConfigStatus_ERROR ||
		bad.GetErrorState().GetDetails() != "a: not for me" || bad.GetErrorState().GetVersionInfo() != cds("a", 2).Version || bad.GetXdsConfig() != nil {
		t.Errorf("refused cluster: %v", bad)
	}
}

func TestCSDSSplitsWhatIsTooLarge(t *testing.T) {
	w, conn, _ := startWithStatus(t)
	for i := range 12 {
		w.Put(big(string(rune('a'+i)), 500_000))
	}
	c := openDelta(t, conn)
	c.subscribe(resource.Cluster)
	for got := 0; got < 12; {
		r := c.next()
		got += len(r.bodies)
		c.ack(r)
	}
	c.quiet()
	client := statusv3.NewClientStatusDiscoveryServiceClient(conn)
	if _, err := client.FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{}); err == nil {
		t.Error("6 MB came in one message, want an error that says how to ask for less")
	}
	s, err := client.StreamClientStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&statusv3.ClientStatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for {
		resp, err := s.Recv()
		if err != nil {
			break
		}
		for _, cfg := range resp.GetConfig() {
			for _, g := range cfg.GetGenericXdsConfigs() {
				seen[g.GetName()] = true
			}
		}
	}
	for i := range 12 {
		if !seen[string(rune('a'+i))] {
			t.Errorf("cluster %c is missing", rune('a'+i))
		}
	}
}

// big is a cluster of that many bytes.
func big(name string, bytes int) *resource.Resource {
	return servertest.Make(resource.Cluster, name, &clusterv3.Cluster{Name: name, AltStatName: strings.Repeat("x", bytes)})
}

func TestCSDSReportsEveryMistakeInMatchers(t *testing.T) {
	_, conn, _ := startWithStatus(t)
	_, err := statusv3.NewClientStatusDiscoveryServiceClient(conn).FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{
		NodeMatchers: []*matcherv3.NodeMatcher{
			{NodeId: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "("}}}},
			{NodeId: &matcherv3.StringMatcher{}},
		},
	})
	for _, want := range []string{"node_matchers[0].node_id.safe_regex", "node_matchers[1].node_id"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to name %s", err, want)
		}
	}
}
