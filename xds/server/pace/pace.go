// Package pace limits how often the streams of a scope are woken: at once as long as
// changes come singly, and at most once per window under a storm.
//
// xds/server keeps one Bucket a group and asks it at each publication. A Bucket is
// used under its owner's lock.
//
// Why the window grows with the streams: xds/RATIONALE.md, "Waves".
package pace

import "time"

const (
	// Burst is how many waves may follow each other without a pause.
	Burst = 4
	// WakeCost is about what waking one stream and sending it a small response costs:
	// a thousand streams make a window of 10 ms, ten thousand one of 100 ms.
	WakeCost = 10 * time.Microsecond
	// MaxWindow bounds the window.
	MaxWindow = 250 * time.Millisecond
)

// Bucket is a token bucket that refills one token a window. The zero value is full.
type Bucket struct {
	last time.Time // of the last refill, or of the last wave that had to wait
	used int       // tokens taken
}

// Next returns 0 and takes a token if a wave over so many streams may start now, else
// how long it must wait; its start is then reported by Started.
func (b *Bucket) Next(now time.Time, streams int) time.Duration {
	window := min(time.Duration(streams)*WakeCost, MaxWindow)
	if window <= 0 {
		return 0
	}
	since := now.Sub(b.last)
	if back := int(min(since/window, Burst)); back > 0 {
		b.used = max(0, b.used-back)
		b.last = now
		since = 0
	}
	if b.used < Burst {
		b.used++
		return 0
	}
	return window - since
}

// Started notes that a wave that had to wait starts.
func (b *Bucket) Started(now time.Time) { b.last = now }
