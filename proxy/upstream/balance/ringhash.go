package balance

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// Ring sizes, as Envoy's.
const (
	defaultMinRing = 1024
	MaxRing        = 8 << 20 // the most entries
)

// RingHash maps a request's hash to the member that follows it on a ring, so that
// few hashes move when members come and go. Requests without a hash are spread at
// random. Rings are laid out as Envoy's, so both proxies agree on the member.
type RingHash struct {
	MinSize, MaxSize uint64 // entries; 0 means 1024 and 8388608, which is also the most
}

// Name implements Policy.
func (RingHash) Name() string { return "RING_HASH" }

// Build implements Policy.
func (p RingHash) Build(members []Member) Picker {
	least, most := p.MinSize, p.MaxSize
	if most == 0 || most > MaxRing {
		most = MaxRing
	}
	if least == 0 {
		least = defaultMinRing
	}
	least = min(least, most)

	var total, lightest float64
	lightest = math.MaxFloat64
	for i := range members {
		total += float64(members[i].Weight)
		lightest = min(lightest, float64(members[i].Weight))
	}
	lightest /= total
	// Every member gets a whole number of entries, and the lightest enough of
	// them for the ring to reach its least size.
	scale := min(math.Ceil(lightest*float64(least))/lightest, float64(most))

	ring := make([]entry, 0, int(math.Ceil(scale)))
	var want float64
	var key []byte
	for i := range members {
		want += scale * float64(members[i].Weight) / total
		key = append(append(key[:0], members[i].Key...), '_')
		for n := 0; float64(len(ring)) < want; n++ {
			ring = append(ring, entry{xxhash.Sum64(strconv.AppendInt(key, int64(n), 10)), uint32(i)})
		}
	}
	slices.SortFunc(ring, func(a, b entry) int { return cmp.Compare(a.hash, b.hash) })
	return hashRing(ring)
}

type entry struct {
	hash   uint64
	member uint32
}

type hashRing []entry

// Pick implements Picker.
func (r hashRing) Pick(in Pick) int {
	h := in.Hash
	if !in.HasHash {
		h = in.Random
	}
	lo, hi := 0, len(r)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if r[mid].hash < h {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return int(r[(lo+int(in.Attempt))%len(r)].member)
}
