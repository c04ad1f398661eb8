package pace_test

import (
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/server/pace"
)

func TestFirstChangesGoAtOnce(t *testing.T) {
	var b pace.Bucket
	now := time.Unix(1000, 0)
	for i := range pace.Burst {
		if wait := b.Next(now, 10_000); wait != 0 {
			t.Errorf("wave %d waits %v", i, wait)
		}
	}
	if wait := b.Next(now, 10_000); wait <= 0 || wait > 100*time.Millisecond {
		t.Errorf("the wave after the burst waits %v, want at most a window of 100ms", wait)
	}
}

func TestStormGetsOneWaveAWindow(t *testing.T) {
	var b pace.Bucket
	now := time.Unix(1000, 0)
	end := now.Add(10 * time.Second)
	waves := 0
	for now.Before(end) { // a change every millisecond
		if wait := b.Next(now, 10_000); wait > 0 {
			now = now.Add(wait)
			b.Started(now)
		}
		waves++
		now = now.Add(time.Millisecond)
	}
	if waves < 95 || waves > 110 {
		t.Errorf("%d waves in 10s, want about one per 100ms", waves)
	}
}

func TestQuietRefills(t *testing.T) {
	var b pace.Bucket
	now := time.Unix(1000, 0)
	for range pace.Burst + 1 {
		b.Next(now, 1000)
	}
	now = now.Add(time.Second)
	for i := range pace.Burst {
		if wait := b.Next(now, 1000); wait != 0 {
			t.Errorf("after a quiet second wave %d waits %v", i, wait)
		}
	}
}

func TestSteadySlowChangesNeverWait(t *testing.T) {
	var b pace.Bucket
	now := time.Unix(1000, 0)
	for i := range 1000 {
		if wait := b.Next(now, 1000); wait != 0 {
			t.Fatalf("change %d waits %v", i, wait)
		}
		now = now.Add(11 * time.Millisecond)
	}
}
