package generate

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// instances is a service of n endpoints; the last one's health tells versions apart.
func instances(id, n int, health model.Health) *model.Service {
	s := &model.Service{Host: model.Host(fmt.Sprintf("s%d", id)), Namespace: "default", Ports: []model.Port{http80}}
	for i := range n {
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(id >> 8), byte(id), byte(i)}), 8080), Port: 80,
			Labels: model.NewLabels(map[string]string{"app": s.Name, "version": "v1"}),
		})
	}
	s.Endpoints[n-1].Health = health
	return s
}

const perService = 20

func endpointMesh(t testing.TB, endpoints, namespaces int) (*mesh, *resource.Feed) {
	t.Helper()
	m := newMesh(t, rules.Set{})
	u := model.Update{Full: true}
	for i := range endpoints / perService {
		u.Services = append(u.Services, instances(i, perService, model.Healthy))
	}
	m.apply(u)
	feed := m.join(`{"id": "sidecar~1~a.default~x", "metadata": {"HTTP_PROXY": "127.0.0.1:15002"}}`)
	for i := range namespaces - 1 {
		m.join(fmt.Sprintf(`{"id": "sidecar~1~a.default~x", "metadata": {"NAMESPACE": "n%d"}}`, i))
	}
	return m, feed
}

// changeEndpoint flips one endpoint, from the source's report to publication to
// ten scopes of ten namespaces.
func changeEndpoint(m *mesh, i int) {
	m.apply(model.Update{Services: []*model.Service{instances(3, perService, model.Health(1+i%2))}})
}

func BenchmarkEndpointChange(b *testing.B) {
	for _, endpoints := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(endpoints), func(b *testing.B) {
			m, _ := endpointMesh(b, endpoints, 10)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				changeEndpoint(m, i)
			}
		})
	}
}

// The cost of one endpoint must not grow with the mesh: at 20 times the endpoints at
// most half as much again (BenchmarkEndpointChange goes to 100 times; a mesh of that
// size takes too long to build under the race detector).
func TestEndpointChangeAllocation(t *testing.T) {
	const rounds = 100
	bytes := func(endpoints int) uint64 {
		m, feed := endpointMesh(t, endpoints, 2)
		before := feed.Snapshot().Get(resource.Endpoints, "outbound|80||s3")
		var from, to runtime.MemStats
		runtime.ReadMemStats(&from)
		for i := range rounds {
			changeEndpoint(m, i)
		}
		runtime.ReadMemStats(&to)
		if after := feed.Snapshot().Get(resource.Endpoints, "outbound|80||s3"); after == before {
			t.Error("the change did not arrive")
		}
		return (to.TotalAlloc - from.TotalAlloc) / rounds
	}
	small, large := bytes(1_000), bytes(20_000)
	t.Logf("%d bytes at 1,000 endpoints, %d at 20,000", small, large)
	if large > small*3/2 {
		t.Errorf("%d bytes at 20,000 endpoints, want at most half as much again as the %d at 1,000", large, small)
	}
}

// BenchmarkJoin is the first node of a new kind in a mesh of 5,000 services, whose
// endpoints another kind shares.
func BenchmarkJoin(b *testing.B) {
	m, _ := endpointMesh(b, 100_000, 10)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		m.Leave(m.join(fmt.Sprintf(`{"id": "sidecar~1~a.default~x", "metadata": {"NAMESPACE": "join%d"}}`, i)))
	}
}

// BenchmarkRuleChange sets a rule for one of 5,000 services, for ten scopes of ten
// namespaces.
func BenchmarkRuleChange(b *testing.B) {
	m, _ := endpointMesh(b, 100_000, 10)
	sets := make([]rules.Set, 2)
	for i := range sets {
		sets[i] = parse(b, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [s3], http: [{timeout: %ds, route: [{destination: {host: s3}}]}]}\n", i+1))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		m.setRules(sets[i%2])
	}
}
