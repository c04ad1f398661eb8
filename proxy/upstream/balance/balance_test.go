package balance_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance/balancetest"
)

func TestPoliciesKeepTheContract(t *testing.T) {
	for _, tt := range []struct {
		policy    balance.Policy
		tolerance float64
	}{
		{balance.RoundRobin{}, 0.001},
		{balance.Random{}, 0.02},
		{balance.LeastRequest{}, 0.02},
		{balance.LeastRequest{Choices: 3}, 0.02},
		{balance.RingHash{}, 0.08}, // few entries a member
		{balance.RingHash{MinSize: 65536}, 0.02},
	} {
		t.Run(fmt.Sprintf("%T%v", tt.policy, tt.policy), func(t *testing.T) { balancetest.Run(t, tt.policy, tt.tolerance) })
	}
}

func TestRoundRobinSpreadsTurnsEvenly(t *testing.T) {
	picker := balance.RoundRobin{}.Build(balancetest.Members(200, 100, 100))
	var round []int
	for range 8 {
		round = append(round, picker.Pick(balance.Pick{}))
	}
	for i := 1; i < len(round); i++ {
		if round[i] == round[i-1] && round[i] != 0 {
			t.Errorf("got %v, want no light member twice in a row", round)
		}
	}
	counts := map[int]int{}
	for _, m := range round {
		counts[m]++
	}
	if d := cmp.Diff(map[int]int{0: 4, 1: 2, 2: 2}, counts); d != "" {
		t.Errorf("two rounds (-want +got):\n%s", d)
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	members := balancetest.Members(1, 1)
	members[0].Active.Store(10)
	shares := balancetest.Shares(balance.LeastRequest{}, members, 20000)
	// The busy one is taken only when both draws hit it.
	if shares[0] < 0.2 || shares[0] > 0.3 {
		t.Errorf("the busy one got %.3f of the picks, want about 0.25", shares[0])
	}
}

func TestRingHashMovesFewHashes(t *testing.T) {
	ten := balancetest.Members(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	before := balance.RingHash{MinSize: 4096}.Build(ten)
	after := balance.RingHash{MinSize: 4096}.Build(ten[:9])
	moved, n := 0, 20000
	for i := range n {
		in := balance.Pick{Hash: uint64(i) * 0x9e3779b97f4a7c15, HasHash: true}
		was := before.Pick(in)
		if now := after.Pick(in); was != 9 && now != was {
			moved++
		}
	}
	// Those that stay get a tenth more entries each to fill the ring, as Envoy's do.
	if share := float64(moved) / float64(n); share > 0.1 {
		t.Errorf("%.3f of the hashes of members that stayed moved, want at most 0.1", share)
	}
}

func TestRingHashPlacesAsEnvoyDoes(t *testing.T) {
	// Ring entries are xxh64("<address>_<n>"), so a hash that equals an entry's is
	// that member's.
	members := balancetest.Members(1, 1, 1)
	picker := balance.RingHash{}.Build(members)
	for i, hash := range envoyFirstEntries {
		if got := picker.Pick(balance.Pick{Hash: hash, HasHash: true}); got != i {
			t.Errorf("hash of %s_0: got member %d, want %d", members[i].Key, got, i)
		}
	}
}

// envoyFirstEntries are xxh64 of "10.0.0.0:80_0", "10.0.0.1:80_0", "10.0.0.2:80_0",
// by xxhsum.
var envoyFirstEntries = [3]uint64{0x6d7912a82da03c5e, 0x75041381e7371a08, 0x7079d8e1823e007f}

func BenchmarkPick(b *testing.B) {
	weights := make([]uint32, 100)
	for i := range weights {
		weights[i] = uint32(i%7 + 1)
	}
	for _, p := range []balance.Policy{balance.RoundRobin{}, balance.Random{}, balance.LeastRequest{}, balance.RingHash{}} {
		b.Run(p.Name(), func(b *testing.B) {
			picker := p.Build(balancetest.Members(weights...))
			in := balance.Pick{Random: 1}
			b.ReportAllocs()
			for b.Loop() {
				in.Random = in.Random*6364136223846793005 + 1442695040888963407
				picker.Pick(in)
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	weights := make([]uint32, 1000)
	for i := range weights {
		weights[i] = uint32(i%7 + 1)
	}
	members := balancetest.Members(weights...)
	for _, p := range []balance.Policy{balance.RoundRobin{}, balance.Random{}, balance.LeastRequest{}, balance.RingHash{}} {
		b.Run(p.Name(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Build(members)
			}
		})
	}
}
