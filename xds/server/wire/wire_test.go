package wire_test

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
)

func newCluster(tb testing.TB, c *clusterv3.Cluster) *resource.Resource {
	tb.Helper()
	r, err := resource.New(resource.Cluster, c.GetName(), c)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// marshal is what the codec puts on the wire.
func marshal(tb testing.TB, m any) []byte {
	tb.Helper()
	bufs, err := wire.NewCodec().Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return bufs.Materialize()
}

func TestResponsesReadAsTheirMessages(t *testing.T) {
	a, b := newCluster(t, &clusterv3.Cluster{Name: "a"}), newCluster(t, &clusterv3.Cluster{Name: "b", AltStatName: "x"})
	anyOf := func(r *resource.Resource) *anypb.Any { return &anypb.Any{TypeUrl: r.Type.URL(), Value: r.Body} }
	wa, wb := wire.NewResource(a), wire.NewResource(b)
	for range 2 { // the second time from what was framed before
		delta := wire.NewResponse(resource.Cluster, true, 2)
		delta.Add(wa)
		delta.Add(wb)
		delta.Remove("gone")
		delta.Finish("v1", "n1")
		var got discoveryv3.DeltaDiscoveryResponse
		raw := marshal(t, delta)
		if err := proto.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		want := &discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: resource.Cluster.URL(), SystemVersionInfo: "v1", Nonce: "n1", RemovedResources: []string{"gone"},
			Resources: []*discoveryv3.Resource{
				{Name: "a", Version: a.Version, Resource: anyOf(a)}, {Name: "b", Version: b.Version, Resource: anyOf(b)},
			},
		}
		if d := cmp.Diff(want, &got, protocmp.Transform()); d != "" {
			t.Errorf("delta (-want +got):\n%s", d)
		}
		if delta.Size() != len(raw) {
			t.Errorf("Size %d, want %d", delta.Size(), len(raw))
		}

		sotw := wire.NewResponse(resource.Cluster, false, 2)
		sotw.Add(wa)
		sotw.Add(wb)
		sotw.Finish("v1", "n1")
		var whole discoveryv3.DiscoveryResponse
		if err := proto.Unmarshal(marshal(t, sotw), &whole); err != nil {
			t.Fatal(err)
		}
		wantWhole := &discoveryv3.DiscoveryResponse{
			TypeUrl: resource.Cluster.URL(), VersionInfo: "v1", Nonce: "n1", Resources: []*anypb.Any{anyOf(a), anyOf(b)},
		}
		if d := cmp.Diff(wantWhole, &whole, protocmp.Transform()); d != "" {
			t.Errorf("sotw (-want +got):\n%s", d)
		}
	}
}

func TestCodecHandsOnOtherMessages(t *testing.T) {
	want := &discoveryv3.DiscoveryRequest{TypeUrl: "t"}
	bufs, err := wire.NewCodec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got discoveryv3.DiscoveryRequest
	if err := wire.NewCodec().Unmarshal(bufs, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, &got, protocmp.Transform()); d != "" {
		t.Errorf("message (-want +got):\n%s", d)
	}
	if _, err := wire.NewCodec().Marshal("no message"); err == nil {
		t.Error("a string was marshalled")
	}
}

func TestEndpointsName(t *testing.T) {
	eds := &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	for _, tt := range []struct {
		name    string
		cluster *clusterv3.Cluster
		want    string
	}{
		{name: "its own name", cluster: &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: eds}, want: "c"},
		{
			name: "the service's", want: "s",
			cluster: &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: eds, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: "s"}},
		},
		{name: "none for static clusters", cluster: &clusterv3.Cluster{Name: "c"}},
	} {
		r := wire.NewResource(newCluster(t, tt.cluster))
		for range 2 {
			if got := r.EndpointsName(); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			}
		}
	}
}

func FuzzFold(f *testing.F) {
	for _, s := range []string{"", "1", "0000000000000000", "0000000000000001", "a81f09f1e3a9c0de", "A81F09F1E3A9C0DE", "+123456789012345"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v := wire.Fold(s)
		if v == wire.None || v == wire.Absent {
			t.Fatalf("Fold(%q) = %d, which stands for no version", s, v)
		}
		if again := wire.Fold(v.String()); again != v {
			t.Fatalf("Fold(%q) = %v, and folded again %v", s, v, again)
		}
	})
}

func BenchmarkResponse(b *testing.B) {
	all := make([]*wire.Resource, 200)
	for i := range all {
		all[i] = wire.NewResource(newCluster(b, &clusterv3.Cluster{Name: "outbound|80||service.default.mesh"}))
	}
	b.ReportAllocs()
	for b.Loop() {
		r := wire.NewResponse(resource.Cluster, true, len(all))
		for _, res := range all {
			r.Add(res)
		}
		r.Finish("v", "1")
	}
}
