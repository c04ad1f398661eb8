// Package clock tells connections the time and wakes them when theirs is up.
//
// proxy/conn owns a Timer a direction of a connection; the process runs one
// Wheel. Setting a timer is an atomic store as long as the wheel looks at it
// early enough anyway, which a busy connection's does about once a second, so no
// request pays for a deadline. All methods may be called from any goroutine,
// but for Set and Stop of one Timer, which belong to the timer's owner.
//
// Why the clock does not tick: ../RATIONALE.md, "Time".
package clock

import (
	"context"
	"math/bits"
	"sync"
	"time"
)

// Instant is a moment in nanoseconds since the wheel was made. 0 means never.
type Instant int64

// Add returns the moment d later; never stays never.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from earlier to i.
func (i Instant) Sub(earlier Instant) time.Duration { return time.Duration(i - earlier) }

// Earlier returns the earlier of two moments, either of which may be never.
func Earlier(a, b Instant) Instant {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

const (
	tickBits = 24 // a tick is 16.8 ms: the resolution of every time-out
	slots    = 512
	// horizon is how many ticks ahead a timer may be filed: 8.5 s. Later ones are
	// looked at then and filed again.
	horizon = slots - 2
)

// Wheel wakes timers whose time has come. Make it with NewWheel and run it once.
type Wheel struct {
	base  time.Time     // immutable
	rouse chan struct{} // capacity 1: something is filed before asleep

	mu       sync.Mutex // guards the fields below and the links of timers
	heads    [slots]*Timer
	occupied [slots / 64]uint64
	done     int64 // the last tick that was handled
	asleep   int64 // the tick Run sleeps for; 0 while it works
}

// NewWheel returns a wheel whose clock runs; timers fire only under Run.
func NewWheel() *Wheel {
	return &Wheel{base: time.Now(), rouse: make(chan struct{}, 1)}
}

// Now is the time that has passed since NewWheel, at least 1 ns.
func (w *Wheel) Now() Instant { return Instant(time.Since(w.base)) + 1 }

// Time converts i to wall-clock time.
func (w *Wheel) Time(i Instant) time.Time { return w.base.Add(time.Duration(i)) }

// Run fires timers until ctx ends, and then returns nil.
func (w *Wheel) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due []*Timer
	for {
		due = w.collect(due[:0])
		for i, t := range due {
			t.waker.Wake()
			due[i] = nil
		}
		timer.Reset(w.sleep())
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-w.rouse:
		}
	}
}

// collect takes all timers of the ticks that have passed and returns those that
// are due; the others are filed again.
func (w *Wheel) collect(due []*Timer) []*Timer {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asleep = 0
	now := w.Now()
	current := int64(now >> tickBits)
	first := max(w.done+1, current-slots+1)
	w.done = max(w.done, current)
	for tick := first; tick <= current; tick++ {
		slot := tick % slots
		for t := w.heads[slot]; t != nil; {
			next := t.next
			w.unlink(t)
			if w.expire(t, now) {
				due = append(due, t)
			}
			t = next
		}
	}
	return due
}

// expire reports whether t is due, and files it again when it is for later. A due
// timer is cleared, unless its owner set it anew in this very moment.
func (w *Wheel) expire(t *Timer, now Instant) bool {
	for {
		at := t.at.Load()
		if at == 0 {
			return false
		}
		if Instant(at) > now {
			w.link(t, at)
			return false
		}
		if t.at.CompareAndSwap(at, 0) {
			return true
		}
	}
}

// sleep returns how long nothing can become due, and notes until when.
func (w *Wheel) sleep() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.nextOccupied()
	w.asleep = next
	return max(time.Duration(next<<tickBits)-time.Duration(w.Now()), 0)
}

// nextOccupied is the first tick after done that has timers, or the horizon.
func (w *Wheel) nextOccupied() int64 {
	from := w.done + 1
	for offset := int64(0); offset < horizon; {
		slot := (from + offset) % slots
		if word := w.occupied[slot/64] >> (slot % 64); word != 0 {
			return min(from+offset+int64(bits.TrailingZeros64(word)), from+horizon)
		}
		offset += 64 - slot%64
	}
	return from + horizon
}

// link files t under the tick after at, or under the horizon. w.mu is held.
func (w *Wheel) link(t *Timer, at int64) {
	tick := min(max(at>>tickBits+1, w.done+1), w.done+horizon)
	slot := tick % slots
	t.prev, t.next = nil, w.heads[slot]
	if t.next != nil {
		t.next.prev = t
	}
	w.heads[slot] = t
	w.occupied[slot/64] |= 1 << (slot % 64)
	t.filed.Store(tick)
	if w.asleep != 0 && tick < w.asleep {
		w.asleep = tick
		select {
		case w.rouse <- struct{}{}:
		default: // a wake-up is pending; Run will see the new slot
		}
	}
}

// unlink takes t out of its slot. w.mu is held.
func (w *Wheel) unlink(t *Timer) {
	slot := t.filed.Load() % slots
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.heads[slot] = t.next
		if t.next == nil {
			w.occupied[slot/64] &^= 1 << (slot % 64)
		}
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.prev, t.next = nil, nil
	t.filed.Store(0)
}
