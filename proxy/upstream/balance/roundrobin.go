package balance

import (
	"container/heap"
	"math/rand/v2"
	"sync/atomic"
)

// maxTurns bounds a round's length beside a few turns a member, so that odd
// weights (9973 beside 10007) do not make rounds of megabytes. Longer ones are
// scaled down, which moves a member's share by less than 1 in 4096.
const maxTurns = 16384

// RoundRobin takes members in turn, a member as often a round as its weight says
// and its turns spread evenly.
type RoundRobin struct{}

// Name implements Policy.
func (RoundRobin) Name() string { return "ROUND_ROBIN" }

// Build implements Policy.
func (RoundRobin) Build(members []Member) Picker {
	r := &roundRobin{n: uint64(len(members))}
	if !equalWeights(members) {
		r.turns = turns(members)
		r.n = uint64(len(r.turns))
	}
	// Proxies that start together must not send their first requests to the same member.
	r.next.Store(rand.Uint64() >> 1)
	return r
}

// roundRobin walks a round that was laid out when it was built, so that a pick
// is one atomic addition.
type roundRobin struct {
	turns []uint32 // nil: one turn a member
	n     uint64
	next  atomic.Uint64
}

// Pick implements Picker.
func (r *roundRobin) Pick(Pick) int {
	i := r.next.Add(1) % r.n
	if r.turns == nil {
		return int(i)
	}
	return int(r.turns[i])
}

// turns lays out a round by earliest deadline first.
func turns(members []Member) []uint32 {
	weights := reduced(members)
	total := 0
	queue := make(deadlines, len(weights))
	for i, w := range weights {
		total += int(w)
		queue[i] = deadline{at: 1 / float64(w), every: 1 / float64(w), member: uint32(i)}
	}
	heap.Init(&queue)
	round := make([]uint32, total)
	for i := range round {
		round[i] = queue[0].member
		queue[0].at += queue[0].every
		heap.Fix(&queue, 0)
	}
	return round
}

// reduced divides the weights by their common divisor and, where a round would
// still be too long, scales them down, to at least 1 each.
func reduced(members []Member) []uint32 {
	divisor, total := members[0].Weight, uint64(0)
	for i := range members {
		divisor = gcd(divisor, members[i].Weight)
		total += uint64(members[i].Weight)
	}
	weights := make([]uint32, len(members))
	limit := max(maxTurns, 4*uint64(len(members)))
	for i := range members {
		weights[i] = members[i].Weight / divisor
		if total/uint64(divisor) > limit {
			weights[i] = uint32(max(1, (uint64(members[i].Weight)*limit+total/2)/total))
		}
	}
	return weights
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

type deadline struct {
	at, every float64
	member    uint32
}

// deadlines is a heap.
type deadlines []deadline

func (d deadlines) Len() int { return len(d) }
func (d deadlines) Less(i, j int) bool {
	return d[i].at < d[j].at || d[i].at == d[j].at && d[i].member < d[j].member
}
func (d deadlines) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)   { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}
