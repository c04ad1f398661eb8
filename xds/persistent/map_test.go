package persistent_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/persistent"
)

func TestMapAgreesWithBuiltinMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var m persistent.Map[int]
	want := map[string]int{}
	type moment struct {
		m    persistent.Map[int]
		want map[string]int
	}
	var past []moment
	for i := range 20000 {
		key := fmt.Sprintf("svc-%d", rnd.IntN(700))
		if rnd.IntN(3) == 0 {
			m = m.Delete(key)
			delete(want, key)
		} else {
			m = m.Set(key, i)
			want[key] = i
		}
		if i%1000 == 0 {
			past = append(past, moment{m, maps.Clone(want)})
		}
	}
	for i, p := range append(past, moment{m, want}) {
		if d := cmp.Diff(p.want, maps.Collect(p.m.All())); d != "" {
			t.Fatalf("map at moment %d (-want +got):\n%s", i, d)
		}
		if p.m.Len() != len(p.want) {
			t.Fatalf("moment %d: Len %d, want %d", i, p.m.Len(), len(p.want))
		}
		for k, v := range p.want {
			if got, ok := p.m.Get(k); !ok || got != v {
				t.Fatalf("moment %d: Get(%q) = %d, %v, want %d", i, k, got, ok, v)
			}
		}
		if _, ok := p.m.Get("absent"); ok {
			t.Fatalf("moment %d: absent key found", i)
		}
	}
}

func BenchmarkSet(b *testing.B) {
	for _, size := range []int{1000, 100000} {
		var m persistent.Map[int]
		for i := range size {
			m = m.Set(fmt.Sprintf("svc-%d", i), i)
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Set("svc-7", 1)
			}
		})
	}
}
