package translate

import (
	"cmp"
	"math"
	"net/netip"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// Registries may state any weights; clients refuse sums above 2^32-1.
func TestWeightsFitWhatClientsAccept(t *testing.T) {
	svc := &model.Service{Host: "big", Ports: []model.Port{{Number: 80, Protocol: model.HTTP}}}
	for i := range 10_000 {
		e := model.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80), Port: 80,
			Weight: math.MaxUint32, Locality: model.Locality{Zone: string(rune('a' + i%3))},
		}
		if i%10 == 0 {
			e.Weight = 1
		}
		svc.Endpoints = append(svc.Endpoints, e)
	}
	made, err := Endpoints(svc, nil, nil)
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	m := decode(t, made[0]).(*endpointv3.ClusterLoadAssignment)
	validate(t, made[0], m)
	var total, light, heavy uint64
	for _, g := range m.Endpoints {
		var sum uint64
		for _, e := range g.LbEndpoints {
			w := uint64(e.LoadBalancingWeight.GetValue())
			sum += w
			if w == 0 {
				t.Fatal("an endpoint without weight")
			}
			light, heavy = min(cmp.Or(light, w), w), max(heavy, w)
		}
		if sum != uint64(g.LoadBalancingWeight.GetValue()) {
			t.Errorf("locality %v weighs %d, its endpoints %d", g.Locality, g.LoadBalancingWeight.GetValue(), sum)
		}
		total += sum
	}
	if total > math.MaxUint32 || len(m.Endpoints) != 3 {
		t.Errorf("weights sum to %d in %d localities", total, len(m.Endpoints))
	}
	if light != 1 || heavy < 100_000 {
		t.Errorf("weights from %d to %d: proportions are lost", light, heavy)
	}
}

// BenchmarkEndpoints makes the load assignments of one service with three subsets.
func BenchmarkEndpoints(b *testing.B) {
	f := readFixture(b, []byte("- host: cart\n  ports: [{number: 80, protocol: http}]\n"))
	svc := f["cart"]
	for i := range 100 {
		svc.Endpoints = append(svc.Endpoints, model.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Port: 80,
			Labels: model.NewLabels(map[string]string{"version": string(rune('1' + i%3))}), Workload: "w",
		})
	}
	set := readRules(b, "r", []byte(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart}
spec: {host: cart, subsets: [{name: v1, labels: {version: "1"}}, {name: v2, labels: {version: "2"}}, {name: v3, labels: {version: "3"}}]}
`))
	dest := set.Get(rules.NewKey(rules.DestinationRule, "default", "cart"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Endpoints(svc, dest, nil); err != nil {
			b.Fatal(err)
		}
	}
}
