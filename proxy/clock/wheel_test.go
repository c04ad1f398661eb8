package clock

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bell notes when it was rung.
type bell struct {
	w    *Wheel
	at   atomic.Int64
	n    atomic.Int64
	then func()
}

func (b *bell) Wake() {
	b.at.Store(int64(b.w.Now()))
	b.n.Add(1)
	if b.then != nil {
		b.then()
	}
}

// late is how much later than asked a timer may fire.
const late = 2 << tickBits

// run starts a wheel; the returned function stops it.
func run(t *testing.T) (w *Wheel, stop func()) {
	w = NewWheel()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return w, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestTimersFireOnceAndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stop := run(t)
		defer stop()
		const n = 2000
		bells, timers, want := make([]bell, n), make([]Timer, n), make([]Instant, n)
		for i := range n {
			bells[i].w = w
			timers[i].Init(w, &bells[i])
			want[i] = w.Now().Add(time.Duration(rand.Int64N(int64(40 * time.Second))))
			timers[i].Set(want[i])
		}
		time.Sleep(41 * time.Second)
		synctest.Wait()
		for i := range n {
			at := Instant(bells[i].at.Load())
			if bells[i].n.Load() != 1 || at < want[i] || at > want[i]+late {
				t.Errorf("set for %v: rung %d times, at %v", want[i], bells[i].n.Load(), at)
			}
		}
	})
}

func TestTimerCanBeMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stop := run(t)
		defer stop()
		b := bell{w: w}
		var timer Timer
		timer.Init(w, &b)
		start := w.Now()
		timer.Set(start.Add(time.Hour))
		timer.Set(start.Add(time.Second)) // earlier
		time.Sleep(500 * time.Millisecond)
		timer.Set(start.Add(3 * time.Second)) // later
		time.Sleep(2 * time.Second)
		if b.n.Load() != 0 {
			t.Fatal("fired too early")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if b.n.Load() != 1 {
			t.Fatalf("fired %d times", b.n.Load())
		}
		timer.Set(w.Now().Add(time.Second))
		timer.Set(0)
		time.Sleep(20 * time.Second)
		timer.Set(w.Now().Add(time.Second))
		timer.Stop()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if b.n.Load() != 1 {
			t.Errorf("fired %d times after it was cleared", b.n.Load())
		}
	})
}

func TestWakeMaySetItsTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, stop := run(t)
		defer stop()
		b := bell{w: w}
		var timer Timer
		b.then = func() { timer.Set(w.Now().Add(100 * time.Millisecond)) }
		timer.Init(w, &b)
		timer.Set(w.Now().Add(100 * time.Millisecond))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := b.n.Load(); n < 70 || n > 100 {
			t.Errorf("rung %d times in 10 s, want about 85", n)
		}
		timer.Stop()
	})
}

func TestSetDoesNotAllocate(t *testing.T) {
	w := NewWheel()
	var timer Timer
	timer.Init(w, &bell{w: w})
	if n := testing.AllocsPerRun(1000, func() { timer.Set(w.Now().Add(time.Second)) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func BenchmarkSet(b *testing.B) {
	w := NewWheel()
	var timer Timer
	timer.Init(w, &bell{w: w})
	b.ReportAllocs()
	for b.Loop() {
		timer.Set(w.Now().Add(time.Second))
	}
}

func BenchmarkNow(b *testing.B) {
	w := NewWheel()
	for b.Loop() {
		_ = w.Now()
	}
}
