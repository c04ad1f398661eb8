package bridgetest

import (
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func playCut(s *stage) {
	all := estate(5, 4)
	s.PutAll(s, all)
	s.live(all...)
	for range 5 {
		s.proxy.Cut()
		s.mesh.awaitPhase(s, model.Stale)
		s.proxy.Resume()
		s.mesh.awaitPhase(s, model.Live)
	}
	if status := s.mesh.last(); status.Err != "" || status.Read.IsZero() {
		s.Errorf("live again with err %q, read %v", status.Err, status.Read)
	}
	s.alive(all[0].Service)
}

func playDelay(s *stage) {
	all := estate(5, 4)
	s.PutAll(s, all)
	s.proxy.Delay(100 * time.Millisecond)
	s.live(all...)
	s.alive(all[0].Service)
	s.proxy.Resume()
	s.alive(all[1].Service)
}

func playReset(s *stage) {
	all := estate(40, 4)
	s.PutAll(s, all)
	after := []int{1, 30, 100, 700, 3000, 9000, 20000}
	// From nothing: no part of a read may be taken for the whole.
	s.proxy.ResetAfter(after[0])
	s.start()
	s.mesh.pin(all...)
	for _, n := range after {
		s.proxy.ResetAfter(n)
		s.attempts(3)
	}
	s.proxy.Resume()
	s.mesh.awaitPhase(s, model.Live)
	s.mesh.awaitAll(s, all...)
	// And again over a state that must stay.
	for _, n := range after {
		s.proxy.ResetAfter(n)
		s.attempts(2)
	}
	s.proxy.Resume()
	s.mesh.awaitPhase(s, model.Live)
	s.alive(all[0].Service)
}

// playResetAnywhere resets at every few bytes of a read that is short enough for
// one lost answer to make the difference between a part and the whole.
func playResetAnywhere(s *stage) {
	s.hurry = true
	all := estate(1, 3)
	s.PutAll(s, all)
	s.proxy.ResetAfter(1)
	s.start()
	s.mesh.pin(all...)
	for n := 1; n < 2500; n += 50 {
		s.proxy.ResetAfter(n)
		s.attempts(1)
	}
	s.proxy.Resume()
	s.mesh.awaitPhase(s, model.Live)
	s.mesh.awaitAll(s, all...)
}

// attempts waits until the source has been run, or has changed its phase, n
// times more, or is live in spite of the fault.
func (s *stage) attempts(n int) {
	s.Helper()
	runs, phases := int(s.check.runs.Load()), 0
	s.mesh.await(s, "attempts to read", func() bool {
		if phases == 0 {
			phases = len(s.mesh.phases)
		}
		return int(s.check.runs.Load()) >= runs+n || len(s.mesh.phases) >= phases+n || s.mesh.status.Phase == model.Live
	})
}

func playBlackhole(s *stage) {
	all := estate(5, 4)
	s.PutAll(s, all)
	s.live(all...)
	s.proxy.Blackhole()
	start := time.Now()
	s.mesh.awaitPhase(s, model.Stale)
	s.Logf("silence was noticed after %v", time.Since(start))
	s.proxy.Resume()
	s.mesh.awaitPhase(s, model.Live)
	s.alive(all[0].Service)
}

func playGoneMeanwhile(s *stage) {
	all := estate(4, 3)
	s.PutAll(s, all)
	s.live(all...)
	s.proxy.Cut()
	s.mesh.awaitPhase(s, model.Stale)
	gone := []Instance{all[0], all[4]}
	s.mesh.unpin(gone...)
	for _, i := range gone {
		s.Remove(s, i)
	}
	s.mesh.mu.Lock()
	for _, i := range gone {
		if !s.mesh.has(i) {
			s.Errorf("%v went before it was read as gone", i)
		}
	}
	s.mesh.mu.Unlock()
	s.proxy.Resume()
	s.mesh.awaitGone(s, gone...)
	s.mesh.awaitPhase(s, model.Live)
}

func playExpiryMeanwhile(s *stage) {
	all := estate(4, 3)
	s.PutAll(s, all)
	s.live(all...)
	s.proxy.Cut()
	s.mesh.awaitPhase(s, model.Stale)
	s.Expire(s)
	if n := len(s.mesh.since(0)); n != 1 {
		s.Errorf("%d updates, want none while the registry was away", n-1)
	}
	s.mesh.unpin(all...)
	s.proxy.Resume()
	s.mesh.awaitGone(s, all...)
	s.mesh.awaitPhase(s, model.Live)
}

func playKill(s *stage) {
	all := estate(5, 4)
	s.PutAll(s, all)
	s.live(all...)
	for range 2 {
		if !s.Durable() {
			s.proxy.Cut()
		}
		s.Kill(s)
		s.mesh.awaitPhase(s, model.Stale)
		s.Restart(s)
		s.proxy.Resume()
		s.mesh.awaitPhase(s, model.Live)
	}
	s.alive(all[0].Service)
}

func playColdStart(s *stage) {
	all := estate(5, 4)
	s.PutAll(s, all)
	s.live(all...)
	s.stop()
	read := s.mesh.last().Read
	s.proxy.Cut()
	gone := all[0]
	s.Remove(s, gone)

	s.start()
	s.mesh.pin(all...)
	s.mesh.awaitAll(s, all...)
	s.mesh.await(s, "stale with a reason", func() bool {
		return s.mesh.status.Phase == model.Stale && s.mesh.status.Err != "" && s.check.runs.Load() > 1
	})
	if got := s.mesh.last().Read; got.IsZero() || got.Before(read.Add(-time.Second)) || time.Since(got) < 0 {
		s.Errorf("read at %v, want about %v", got, read)
	}
	s.mesh.unpin(gone)
	s.proxy.Resume()
	s.mesh.awaitPhase(s, model.Live)
	s.mesh.awaitGone(s, gone)
	s.alive(all[1].Service)
}
