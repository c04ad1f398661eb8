// Package balance chooses one member of a group: round robin, random, least
// request and ring hash, each weighted.
//
// A Policy builds a Picker for one immutable list of members; proxy/upstream
// builds a new one when the list changes. Pickers are called by any number of
// goroutines, take no lock and do not allocate. Every policy passes the suite in
// balancetest.
package balance

import "sync/atomic"

// Member is one of a group, by its position in the list given to Build.
type Member struct {
	Weight uint32        // at least 1
	Active *atomic.Int64 // requests under way; may be nil where the policy ignores it
	Key    string        // hashed by RingHash, "10.0.0.1:8080"
}

// Pick is what a choice may depend on.
type Pick struct {
	Random  uint64 // uniform, new for every pick
	Hash    uint64 // of the request, if HasHash
	HasHash bool
	Attempt uint32 // 0 first, then counts up while the caller rejects members
}

// Picker chooses a member; it is made for at least one.
type Picker interface {
	Pick(in Pick) int
}

// Policy makes pickers.
type Policy interface {
	// Name is Envoy's name of the policy, for dumps.
	Name() string
	// Build makes a picker over members, of which there is at least one. It
	// keeps neither the slice nor its strings, but for the Active pointers.
	Build(members []Member) Picker
}

// split makes two independent 32-bit numbers of one 64-bit one.
func split(random uint64) (lo, hi uint32) { return uint32(random), uint32(random >> 32) }

// below maps a uniform 32-bit number to 0..n-1.
func below(random uint32, n int) int { return int(uint64(random) * uint64(n) >> 32) }

// mix makes a new uniform number out of another, splitmix64's finaliser.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func equalWeights(members []Member) bool {
	for i := range members {
		if members[i].Weight != members[0].Weight {
			return false
		}
	}
	return true
}
