package server_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
	xdsstatus "github.com/isthmus-mesh/isthmus/xds/status"
)

func TestWhatIsTooLargeIsRefusedByName(t *testing.T) {
	_, conn := start(t)
	url := resource.Cluster.URL()
	fits, large := strings.Repeat("a", 1<<10), strings.Repeat("a", 1<<10+1)
	for _, tt := range []struct {
		name  string
		delta bool
		first proto.Message
		want  string
	}{
		{"a name", false, &discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: []string{fits, large}}, "resource_names[1]: a name of 1025 bytes, want at most 1024"},
		{"a name of a type that is not served", false, &discoveryv3.DiscoveryRequest{TypeUrl: "x", ResourceNames: []string{large}}, "resource_names[0]"},
		{"a name in delta", true, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: []string{large}}, "resource_names_subscribe[0]"},
		{
			"a name that is held", true, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, InitialResourceVersions: map[string]string{large: "1"}},
			"initial_resource_versions",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := openSotW(t, conn)
			if tt.delta {
				c = openDelta(t, conn)
			}
			c.send(tt.first)
			if err := c.ends(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want InvalidArgument with %q", err, tt.want)
			}
		})
	}
	t.Run("a node", func(t *testing.T) {
		c := openDelta(t, conn)
		c.node.Cluster = strings.Repeat("c", 64<<10)
		c.subscribe(resource.Cluster)
		if err := c.ends(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "node: 65") {
			t.Errorf("got %v, want InvalidArgument that names the node", err)
		}
	})
	t.Run("extensions do not count", func(t *testing.T) {
		c := openDelta(t, conn)
		c.node.Extensions = []*corev3.Extension{{Name: strings.Repeat("e", 128<<10)}}
		c.subscribe(resource.Cluster, fits)
		if r := c.next(); len(r.removed) != 1 {
			t.Errorf("got %v, want to be told that there is no such cluster", r)
		}
	})
}

// buffer is a log.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) count(part string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), part)
}

func TestARepeatedRefusalIsLoggedOnce(t *testing.T) {
	w, log, reg, all := servertest.NewWorld(probes()...), &buffer{}, xdsstatus.NewRegistry(), prometheus.NewRegistry()
	w.Put(cds("a", 1))
	conn := servertest.Connect(t, w, server.Config{Log: slog.New(slog.NewTextHandler(log, nil)), Status: reg, Registerer: all})
	refuse := func(id string) {
		c := named(openDelta(t, conn), id, nil)
		c.subscribe(resource.Cluster)
		c.nack(c.want("CDS a"), "a: bad")
		c.quiet()
	}
	counted := func() float64 {
		families, err := all.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var sum float64
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "mesh_xds_refusals_total" {
					sum += m.GetCounter().GetValue()
				}
			}
		}
		return sum
	}
	for range 5 {
		refuse("n1")
	}
	eventually(t, "five refusals counted", func() bool { return counted() == 5 })
	if got := log.count("resource refused"); got != 1 || len(reg.Refusals()) != 1 {
		t.Errorf("%d refusals logged, %d remembered, want 1", got, len(reg.Refusals()))
	}
	refuse("n2")
	w.Put(cds("a", 2))
	refuse("n1")
	eventually(t, "another node's and another version's", func() bool { return log.count("resource refused") == 3 && len(reg.Refusals()) == 3 })
}
