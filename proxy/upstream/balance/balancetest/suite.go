// Package balancetest is the suite that every balance.Policy must pass.
package balancetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance"
)

// Members makes a member of each weight, without load.
func Members(weights ...uint32) []balance.Member {
	out := make([]balance.Member, len(weights))
	for i, w := range weights {
		out[i] = balance.Member{Weight: w, Active: new(atomic.Int64), Key: fmt.Sprintf("10.0.%d.%d:80", i/256, i%256)}
	}
	return out
}

// Shares picks n times with different random numbers and hashes, and returns how
// often each member came, as a share of 1.
func Shares(p balance.Policy, members []balance.Member, n int) []float64 {
	picker := p.Build(members)
	random := rand.New(rand.NewPCG(1, 2))
	counts := make([]float64, len(members))
	for range n {
		counts[picker.Pick(balance.Pick{Random: random.Uint64(), Hash: random.Uint64(), HasHash: true})]++
	}
	for i := range counts {
		counts[i] /= float64(n)
	}
	return counts
}

// Run holds p to the contract. tolerance is how far the share of a member may be
// from that of its weight, as a part of 1: what the policy promises.
func Run(t *testing.T, p balance.Policy, tolerance float64) {
	t.Run("has a name", func(t *testing.T) {
		if p.Name() == "" {
			t.Error("Name is empty")
		}
	})
	for _, weights := range [][]uint32{
		{1}, {7, 7, 7}, {1, 2, 3}, {100, 1}, {90, 10}, {1, 1000}, {9973, 10007, 5}, {4294967295, 4294967295},
	} {
		t.Run(fmt.Sprintf("weights %v get their share", weights), func(t *testing.T) {
			var total float64
			for _, w := range weights {
				total += float64(w)
			}
			for i, got := range Shares(p, Members(weights...), 20000) {
				if want := float64(weights[i]) / total; math.Abs(got-want) > tolerance {
					t.Errorf("member %d: got %.4f of the picks, want %.4f within %.3f", i, got, want, tolerance)
				}
			}
		})
	}
	t.Run("every attempt names a member", func(t *testing.T) {
		picker := p.Build(Members(3, 1, 2))
		for attempt := range uint32(50) {
			for _, random := range []uint64{0, 1, math.MaxUint32, math.MaxUint64} {
				in := balance.Pick{Random: random, Hash: random, HasHash: attempt%2 == 0, Attempt: attempt}
				if got := picker.Pick(in); got < 0 || got > 2 {
					t.Fatalf("Pick(%+v): got %d, want 0 to 2", in, got)
				}
			}
		}
	})
	t.Run("further attempts reach other members", func(t *testing.T) {
		picker := p.Build(Members(1, 1, 1, 1))
		in := balance.Pick{Random: 42, Hash: 42, HasHash: true}
		seen := map[int]bool{}
		for in.Attempt = range uint32(200) {
			seen[picker.Pick(in)] = true
		}
		if len(seen) != 4 {
			t.Errorf("200 attempts reached %d members, want 4", len(seen))
		}
	})
	t.Run("keeps neither list nor strings", func(t *testing.T) {
		members := Members(1, 2)
		picker := p.Build(members)
		clear(members)
		for i := range uint64(100) {
			picker.Pick(balance.Pick{Random: i << 40, Hash: i << 40, HasHash: true})
		}
	})
	t.Run("picks do not allocate", func(t *testing.T) {
		picker := p.Build(Members(5, 1, 1))
		in := balance.Pick{Random: 1}
		if got := testing.AllocsPerRun(100, func() { in.Random += 1 << 37; picker.Pick(in) }); got != 0 {
			t.Errorf("got %v allocations a pick, want 0", got)
		}
	})
	t.Run("many goroutines pick at once", func(t *testing.T) {
		picker := p.Build(Members(1, 2, 3))
		var group sync.WaitGroup
		for g := range uint64(4) {
			group.Go(func() {
				for i := range uint64(1000) {
					picker.Pick(balance.Pick{Random: g<<50 + i<<30})
				}
			})
		}
		group.Wait()
	})
}
