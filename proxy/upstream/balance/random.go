package balance

// Random picks each member with the probability of its weight.
type Random struct{}

// Name implements Policy.
func (Random) Name() string { return "RANDOM" }

// Build implements Policy.
func (Random) Build(members []Member) Picker { return newAlias(members) }

// alias is Vose's alias table: one draw, one comparison, whatever the weights.
type alias struct {
	keep  []uint32 // of 2^32; nil when all weights are equal
	other []uint32
	n     int
}

func newAlias(members []Member) *alias {
	a := &alias{n: len(members)}
	if equalWeights(members) {
		return a
	}
	var total float64
	for i := range members {
		total += float64(members[i].Weight)
	}
	a.keep, a.other = make([]uint32, a.n), make([]uint32, a.n)
	scaled := make([]float64, a.n)
	var small, large []int
	for i := range members {
		scaled[i] = float64(members[i].Weight) * float64(a.n) / total
		if scaled[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a.keep[s], a.other[s] = uint32(scaled[s]*(1<<32-1)), uint32(l)
		scaled[l] -= 1 - scaled[s]
		if scaled[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, rest := range [2][]int{small, large} { // 1 but for rounding
		for _, i := range rest {
			a.keep[i], a.other[i] = 1<<32-1, uint32(i)
		}
	}
	return a
}

// Pick implements Picker.
func (a *alias) Pick(in Pick) int {
	random := in.Random
	if in.Attempt > 0 {
		random = mix(random + uint64(in.Attempt))
	}
	return a.draw(random)
}

func (a *alias) draw(random uint64) int {
	lo, hi := split(random)
	i := below(hi, a.n)
	if a.keep == nil || lo <= a.keep[i] {
		return i
	}
	return int(a.other[i])
}
