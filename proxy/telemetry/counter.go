package telemetry

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"
)

// lineWords is how many counters fit in the two cache lines that adjacent-line
// prefetch ties together; shards are this far apart so that they never share one.
const lineWords = 16

// maxShards bounds the memory of a counter on machines with very many cores.
const maxShards = 16

// Shards is how many shards the counters of this process have: a power of two
// that follows GOMAXPROCS as it was when asked.
func Shards() int {
	n := runtime.GOMAXPROCS(0)
	if n >= maxShards {
		return maxShards
	}
	return 1 << bits.Len(uint(n-1))
}

// block lays out the counters of one listener or cluster: all counters of a
// shard side by side, shards apart from each other.
type block struct {
	cells  []atomic.Int64
	stride uint32
	mask   uint32
	used   uint32
}

func newBlock(shards, counters int) *block {
	stride := (counters + lineWords - 1) / lineWords * lineWords
	return &block{
		cells:  make([]atomic.Int64, shards*stride),
		stride: uint32(stride),
		mask:   uint32(shards - 1),
	}
}

// take hands out n cells a shard.
func (b *block) take(n uint32) Counter {
	c := Counter{cells: b.cells[b.used:], stride: b.stride, mask: b.mask}
	b.used += n
	if b.used > b.stride {
		panic("telemetry: block of counters is too small")
	}
	return c
}

// Counter is a sum over shards. The zero Counter counts nothing; NewUpstream and
// NewDownstream make working ones. Any goroutine may call its methods.
type Counter struct {
	cells  []atomic.Int64
	stride uint32
	mask   uint32
}

// Add adds n on behalf of shard: any number, a connection keeps to one.
func (c *Counter) Add(shard uint32, n int64) { c.addAt(shard, 0, n) }

func (c *Counter) addAt(shard, offset uint32, n int64) {
	if i := (shard&c.mask)*c.stride + offset; int(i) < len(c.cells) {
		c.cells[i].Add(n)
	}
}

// Value is the sum. While others add it is the value at some moment of the call.
func (c *Counter) Value() int64 { return c.valueAt(0) }

func (c *Counter) valueAt(offset uint32) int64 {
	var sum int64
	for i := offset; int(i) < len(c.cells); i += c.stride {
		sum += c.cells[i].Load()
	}
	return sum
}

// Gauge goes up and down; it counts as Counter does.
type Gauge struct{ Counter }

// bounds are the upper ends of a histogram's buckets: a sidecar adds tenths of
// milliseconds, applications take milliseconds to seconds.
var bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// histogramCells is a cell a bucket, one for what is above all, one for the sum.
const histogramCells = len(bounds) + 2

// Histogram counts durations by bucket. The zero Histogram counts nothing.
type Histogram struct{ c Counter }

// Observe counts d. It does not allocate.
func (h *Histogram) Observe(shard uint32, d time.Duration) {
	bucket := uint32(0)
	for bucket < uint32(len(bounds)) && d > bounds[bucket] {
		bucket++
	}
	h.c.addAt(shard, bucket, 1)
	h.c.addAt(shard, uint32(len(bounds))+1, int64(d))
}

// snapshot returns the count, the sum in seconds, and cumulative counts by upper
// bound in seconds, as Prometheus wants them.
func (h *Histogram) snapshot() (count uint64, sum float64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(bounds))
	for i, bound := range bounds {
		count += uint64(h.c.valueAt(uint32(i)))
		buckets[bound.Seconds()] = count
	}
	count += uint64(h.c.valueAt(uint32(len(bounds))))
	return count, time.Duration(h.c.valueAt(uint32(len(bounds)) + 1)).Seconds(), buckets
}
