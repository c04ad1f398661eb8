package clock

import "sync/atomic"

// Waker is told that a timer's time has come. Wake runs on the wheel's goroutine
// and must not block; it may come late and, after a Set that raced with it, once
// too often, so whoever is woken looks at the clock.
type Waker interface{ Wake() }

// Timer is one owner's next moment. Make it ready with Init.
type Timer struct {
	wheel *Wheel // immutable after Init
	waker Waker  // immutable after Init

	at    atomic.Int64 // when to fire; 0 is never
	filed atomic.Int64 // the tick it is filed under; 0 when it is not

	prev, next *Timer // guarded by wheel.mu
}

// Init ties t to w and to whom it wakes. It must be called once, before Set.
func (t *Timer) Init(w *Wheel, waker Waker) { t.wheel, t.waker = w, waker }

// Set makes t fire at the given moment or up to 34 ms later, in place of any
// earlier setting; never clears it. It does not allocate, and takes a lock only
// when the wheel would look at t too late.
func (t *Timer) Set(at Instant) {
	t.at.Store(int64(at))
	if at == 0 {
		return
	}
	// Either the load sees that the wheel took t out, or the wheel, which takes it
	// out before it looks, sees the new moment.
	if filed := t.filed.Load(); filed != 0 && filed <= int64(at>>tickBits)+1 {
		return
	}
	w := t.wheel
	w.mu.Lock()
	defer w.mu.Unlock()
	if filed := t.filed.Load(); filed != 0 {
		if filed <= int64(at>>tickBits)+1 {
			return
		}
		w.unlink(t)
	}
	w.link(t, int64(at))
}

// Stop clears t and makes the wheel forget it.
func (t *Timer) Stop() {
	t.at.Store(0)
	w := t.wheel
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.filed.Load() != 0 {
		w.unlink(t)
	}
}
