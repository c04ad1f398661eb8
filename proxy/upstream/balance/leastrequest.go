package balance

import "sync/atomic"

// LeastRequest draws Choices members by weight and takes the one with the fewest
// requests under way. Weights hold while the group is idle; under load, slow
// members get less.
type LeastRequest struct {
	Choices uint32 // 0 means 2
}

// Name implements Policy.
func (LeastRequest) Name() string { return "LEAST_REQUEST" }

// Build implements Policy.
func (p LeastRequest) Build(members []Member) Picker {
	l := &leastRequest{choices: max(p.Choices, 2), draws: newAlias(members), active: make([]*atomic.Int64, len(members))}
	for i := range members {
		l.active[i] = members[i].Active
	}
	return l
}

type leastRequest struct {
	choices uint32
	draws   *alias
	active  []*atomic.Int64
}

// Pick implements Picker.
func (l *leastRequest) Pick(in Pick) int {
	best := l.draws.Pick(in)
	random := in.Random + uint64(in.Attempt)<<32
	least := l.active[best].Load()
	for i := uint32(1); i < l.choices; i++ {
		random = mix(random)
		other := l.draws.draw(random)
		if n := l.active[other].Load(); n < least {
			best, least = other, n
		}
	}
	return best
}
