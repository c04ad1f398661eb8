package bridges

import (
	"slices"
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	takeAll := func(p *Pacer[string], now time.Time) (keys []string) {
		for {
			k, ok := p.Take(now)
			if !ok {
				slices.Sort(keys)
				return keys
			}
			keys = append(keys, k)
		}
	}
	want := func(t *testing.T, got []string, keys ...string) {
		t.Helper()
		if !slices.Equal(got, keys) {
			t.Errorf("took %v, want %v", got, keys)
		}
	}

	t.Run("the first change goes at once, the next waits for the window", func(t *testing.T) {
		var p Pacer[string]
		p.Mark("a", at(0))
		want(t, takeAll(&p, at(0)), "a")
		p.Mark("a", at(1)) // while it runs
		want(t, takeAll(&p, at(1)))
		p.Done("a", at(50))
		want(t, takeAll(&p, at(49)))
		if next, ok := p.Next(); !ok || !next.Equal(at(50)) {
			t.Errorf("next %v, %v, want 50 ms", next, ok)
		}
		want(t, takeAll(&p, at(50)), "a")
	})
	t.Run("many changes in a window are one turn", func(t *testing.T) {
		var p Pacer[string]
		p.Mark("a", at(0))
		takeAll(&p, at(0))
		p.Done("a", at(50))
		for i := range 40 {
			p.Mark("a", at(1+i))
		}
		want(t, takeAll(&p, at(100)), "a")
	})
	t.Run("a quiet key is forgotten and then goes at once again", func(t *testing.T) {
		var p Pacer[string]
		p.Mark("a", at(0))
		takeAll(&p, at(0))
		p.Done("a", at(50))
		want(t, takeAll(&p, at(60)))
		if len(p.turns) != 0 || len(p.queue) != 0 {
			t.Errorf("%d turns, %d in the queue, want none", len(p.turns), len(p.queue))
		}
		p.Mark("a", at(61))
		want(t, takeAll(&p, at(61)), "a")
	})
	t.Run("keys do not wait for each other", func(t *testing.T) {
		var p Pacer[string]
		p.Mark("a", at(0))
		takeAll(&p, at(0))
		p.Done("a", at(50))
		p.Mark("a", at(1))
		p.Mark("b", at(1))
		want(t, takeAll(&p, at(1)), "b")
	})
	t.Run("a later turn does not hold back an earlier one", func(t *testing.T) {
		var p Pacer[string]
		p.Mark("a", at(0))
		p.MarkAt("a", at(5000))
		want(t, takeAll(&p, at(0)), "a")
		p.Done("a", at(50))
		p.MarkAt("a", at(5000))
		want(t, takeAll(&p, at(4999)))
		want(t, takeAll(&p, at(5000)), "a")
		p.Done("a", at(5050))
		p.MarkAt("new", at(6000))
		want(t, takeAll(&p, at(5999)))
		want(t, takeAll(&p, at(6000)), "new")
	})
	t.Run("a forgotten key has no turn", func(t *testing.T) {
		var p Pacer[string]
		p.Mark("a", at(0))
		p.Mark("b", at(0))
		p.Forget("a")
		want(t, takeAll(&p, at(0)), "b")
		p.Forget("b")
		p.Done("b", at(50))
		p.Forget("never")
		if _, ok := p.Next(); ok {
			t.Error("something waits")
		}
	})
}
