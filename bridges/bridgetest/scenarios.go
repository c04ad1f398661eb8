package bridgetest

import (
	"slices"
	"strings"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// scenarios lists them in the order of what they presuppose.
func scenarios() []scenario {
	return []scenario{
		{name: "an empty registry is live", play: playEmpty},
		{name: "the first read is complete", play: playFirstRead},
		{name: "an instance comes, changes and goes", play: playChanges},
		{name: "one entry that cannot be understood", play: playBroken},
		{name: "an instance that cannot be understood any more", play: playUnreadable},
		{name: "an instance that flaps", play: playFlap},
		{name: "five hundred services", play: playMany},
		{name: "all leases end", play: playExpiry},
		{name: "no goroutine stays", play: playLeak},
		{name: "the registry is away at the start", network: true, play: playAwayAtStart},
		{name: "the connection is cut", network: true, play: playCut},
		{name: "every byte is late", network: true, play: playDelay},
		{name: "the connection is reset in mid-read", network: true, play: playReset},
		{name: "the connection is reset anywhere in a short read", network: true, play: playResetAnywhere},
		{name: "the connection falls silent", network: true, play: playBlackhole},
		{name: "an instance goes while the registry is away", network: true, play: playGoneMeanwhile},
		{name: "all leases end while the registry is away", network: true, play: playExpiryMeanwhile},
		{name: "the registry is killed", network: true, play: playKill},
		{name: "a cold start while the registry is away", network: true, play: playColdStart},
		{name: "no goroutine stays when the registry is away", network: true, play: playLeakAway},
	}
}

func playEmpty(s *stage) {
	s.live()
	s.alive("shop.cart")
}

func playFirstRead(s *stage) {
	all := estate(10, 3)
	s.PutAll(s, all)
	s.live(all...)
	if skipped := s.mesh.last().Skipped; len(skipped) > 0 {
		s.Errorf("skipped %v, want nothing", skipped)
	}
	full := s.mesh.since(0)[0]
	if !full.Full || len(full.Services) != 10 {
		s.Errorf("first update is %s, want a full one of 10 services", describe(full))
	}
	if status := s.mesh.last(); status.Read.IsZero() || status.Since.IsZero() || status.Err != "" {
		s.Errorf("live with read %v, since %v, err %q", status.Read, status.Since, status.Err)
	}
}

func playChanges(s *stage) {
	all := estate(3, 2)
	s.PutAll(s, all)
	s.live(all...)
	n := s.mesh.count()
	start := time.Now()
	s.alive(all[0].Service)
	s.alive("shop.new")
	s.Logf("two instances came, changed and went in %v", time.Since(start))
	for _, u := range s.mesh.since(n) {
		for _, service := range u.Services {
			if u.Full || service.Host != "shop.new" && service.Host != model.Host(all[0].Service) {
				s.Errorf("update %s, want nothing but the changed services", describe(u))
			}
		}
	}
}

func playBroken(s *stage) {
	all := estate(2, 2)
	s.PutAll(s, all)
	mark := s.PutBroken(s, all[0].Service)
	if mark == "" {
		s.Skip("this registry lets nobody store such a thing")
	}
	s.live(all...)
	s.awaitSkipped(mark)
	if services := s.mesh.since(0)[0].Services; len(services) != 2 {
		s.Errorf("%d services, want 2", len(services))
	}
	s.alive(all[0].Service)
}

// awaitSkipped waits until an entry with mark in its place or reason is reported.
func (s *stage) awaitSkipped(mark string) {
	s.Helper()
	s.mesh.await(s, "the bad entry reported", func() bool {
		return slices.ContainsFunc(s.mesh.status.Skipped, func(r model.Rejected) bool {
			return strings.Contains(r.Where+" "+r.Reason, mark) && r.Where != "" && r.Reason != ""
		})
	})
}

// playUnreadable breaks an instance: whoever registered it still holds its place,
// so it stays as it was until it goes or can be understood again.
func playUnreadable(s *stage) {
	all := estate(2, 3)
	s.PutAll(s, all)
	s.live(all...)
	mark := s.Break(s, all[0])
	if mark == "" {
		s.Skip("this registry lets nobody store such a thing")
	}
	s.awaitSkipped(mark)
	s.Break(s, all[1])
	s.alive(all[0].Service) // the pinned ones are there all the time
	if s.proxy != nil {     // and are known when the registry is read anew
		s.proxy.Cut()
		s.mesh.awaitPhase(s, model.Stale)
		s.proxy.Resume()
		s.mesh.awaitPhase(s, model.Live)
		s.alive(all[0].Service)
	}
	s.mesh.unpin(all[:2]...)
	all[0].Version = "mended"
	s.Put(s, all[0])
	s.mesh.awaitAll(s, all[0])
	s.mesh.pin(all[0])
	s.Remove(s, all[1])
	s.mesh.awaitGone(s, all[1])
	s.mesh.await(s, "nothing skipped", func() bool { return len(s.mesh.status.Skipped) == 0 })
	s.alive(all[0].Service)
}

func playFlap(s *stage) {
	all := estate(2, 3)
	s.PutAll(s, all)
	s.live(all...)
	n := s.mesh.count()
	i := Instance{Service: all[0].Service, Address: all[0].Address, Version: "flapping"}
	i.Address = nextPort(i.Address)
	const flaps = 50
	for range flaps {
		s.Put(s, i)
		s.Remove(s, i)
	}
	i.Version = "settled"
	s.Put(s, i)
	s.mesh.awaitAll(s, i)
	if got := len(s.mesh.since(n)); got > 2*flaps+1 {
		s.Errorf("%d updates for %d changes", got, 2*flaps+1)
	}
	s.mesh.pin(i)
	s.alive(all[1].Service)
}

func playMany(s *stage) {
	all := estate(500, 2)
	s.PutAll(s, all)
	start := time.Now()
	s.live(all...)
	s.Logf("500 services read in %v", time.Since(start))
	n := s.mesh.count()
	s.alive(all[len(all)-1].Service)
	for _, u := range s.mesh.since(n) {
		if u.Full || len(u.Services) != 1 {
			s.Errorf("update %s, want the one service that changed", describe(u))
		}
	}
	if s.proxy != nil {
		s.proxy.Cut()
		s.mesh.awaitPhase(s, model.Stale)
		s.proxy.Resume()
		s.mesh.awaitPhase(s, model.Live)
	}
}

func playExpiry(s *stage) {
	all := estate(5, 4)
	s.PutAll(s, all)
	s.live(all...)
	s.mesh.unpin(all...)
	s.Expire(s)
	s.mesh.awaitGone(s, all...)
	s.alive(all[0].Service)
}

func playLeak(s *stage) {
	all := estate(3, 2)
	s.PutAll(s, all)
	before := goleak.IgnoreCurrent()
	s.live(all...)
	s.stop()
	s.noLeak(before)
}

// noLeak waits until no goroutine is left but those of before. A proxy's may take
// a moment: registries notice late that a client has gone.
func (s *stage) noLeak(before goleak.Option) {
	s.Helper()
	limit := time.Now().Add(patience)
	err := goleak.Find(before)
	for err != nil && time.Now().Before(limit) {
		err = goleak.Find(before)
	}
	if err != nil {
		s.Error(err)
	}
}

func playLeakAway(s *stage) {
	all := estate(3, 2)
	s.PutAll(s, all)
	s.proxy.Cut()
	before := goleak.IgnoreCurrent()
	s.start()
	s.mesh.await(s, "a reason", func() bool { return s.mesh.status.Err != "" && s.check.runs.Load() > 2 })
	s.stop()
	s.noLeak(before)
}

func playAwayAtStart(s *stage) {
	all := estate(3, 2)
	s.PutAll(s, all)
	s.proxy.Cut()
	s.start()
	s.mesh.pin(all...)
	s.mesh.await(s, "syncing with a reason", func() bool {
		return s.mesh.status.Phase == model.Syncing && s.mesh.status.Err != "" && s.check.runs.Load() > 1
	})
	if n := s.mesh.count(); n != 0 {
		s.Errorf("%d updates while nothing could be read", n)
	}
	s.proxy.Resume()
	s.mesh.awaitPhase(s, model.Live)
	s.mesh.awaitAll(s, all...)
}
