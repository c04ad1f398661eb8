package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// recheck is how often a service that the token's rights hide is asked for.
const recheck = 30 * time.Second

// probeGap is how often failing services may make the list be asked; see listWait
// for what each time may cost.
const probeGap = 5 * time.Second

// errHidden is the state of a service whose instances a right was taken from.
var errHidden = errors.New("its instances are hidden: the token lacks service:read or node:read")

// done takes the answer of one query and decides when its watch asks again.
func (s *session) done(a answer, now time.Time) {
	w := a.w
	s.sched.landed(w)
	w.flying, w.cancel = false, nil
	again, lost := w.again, w.lost
	w.again, w.lost = false, nil
	if w.dropped {
		return
	}
	switch {
	case a.err == nil:
		s.count(w, a.meta)
		s.succeeded(a, now)
		if again && !w.dropped && w.err == nil {
			w.index = 0
			s.queue(w, true, now)
		}
	case lost != nil:
		s.failed(w, lost, now)
	case again && errors.Is(a.err, context.Canceled):
		s.queue(w, w.index == 0 || w.service == "", now)
	default:
		s.failed(w, a.err, now)
	}
	s.tally(w)
	s.finish(now)
	s.report(now, false)
}

func (s *session) count(w *watch, meta wire.Meta) {
	outcome := changed
	if meta.Index == w.index && w.index != 0 {
		outcome = unchanged
	}
	s.f.cfg.Metrics.queries.WithLabelValues(outcome).Inc()
}

func (s *session) failed(w *watch, err error, now time.Time) {
	kind := wire.KindOf(err)
	s.f.cfg.Metrics.queries.WithLabelValues(kind.String()).Inc()
	if kind == wire.Overloaded && now.Sub(s.eased) > time.Second {
		s.ease(now)
	}
	pause := w.failed(err)
	c := w.center
	if !s.complete && kind == wire.Unavailable && w.service != "" && w.fails >= patience {
		s.gaveUp = fmt.Errorf("%sservice %s: %w", prefix(c.name), w.service, err)
	}
	switch {
	case w.service == "":
		if kind == wire.Unavailable || kind == wire.Failing {
			s.nextServer()
		}
		if !c.down {
			c.down = true
			s.f.cfg.Metrics.down.WithLabelValues(c.name).Set(1)
			for _, other := range c.services {
				s.sched.drop(other)
			}
		}
		s.sched.put(w, true, now.Add(pause))
		if !s.complete && !slices.ContainsFunc(s.centers, func(c *center) bool { return !c.down || c.list.kind != wire.Unavailable }) {
			s.gaveUp = errors.New(s.trouble())
		}
	case c.down: // asked again once the list was read
	default:
		s.sched.put(w, true, now.Add(pause))
		if kind != wire.Malformed && now.Sub(c.probed) > probeGap {
			c.probed = now
			s.hurry(c.list, now)
		}
	}
}

// ease lets fewer queries run: three quarters of those that the agent just bore.
// Some that wait are ended, so that there is room for the others.
func (s *session) ease(now time.Time) {
	s.eased = now
	s.sched.limit = max(MinQueries(len(s.centers)), min(s.sched.limit, s.sched.flying+1)*3/4)
	excess := s.sched.flying - s.sched.limit
	for w := range s.watches() {
		if excess <= 0 {
			break
		}
		if w.flying && w.long && !w.again {
			w.again = true
			w.cancel()
			excess--
		}
	}
	s.f.cfg.Log.Warn("consul refuses requests; fewer run at once", "source", s.f.cfg.Name, "queries", s.sched.limit)
}

// hurry makes w ask at once, without waiting for a change.
func (s *session) hurry(w *watch, now time.Time) {
	switch {
	case !w.flying:
		w.index = 0
		s.queue(w, true, now)
	case w.index != 0:
		w.index, w.again = 0, true
		w.cancel()
	default: // on its way with index 0, but perhaps from before what now matters
		w.again = true
	}
}

func (s *session) succeeded(a answer, now time.Time) {
	w := a.w
	if w.service == "" && len(a.catalog) == 0 && a.meta.Filtered {
		s.failed(w, &wire.Error{Kind: wire.Denied, Text: "the token sees no service: it lacks service:read and node:read"}, now)
		return
	}
	pause, use := w.succeeded(a.meta, now)
	if !use {
		s.queue(w, true, now.Add(pause))
		return
	}
	if w.service == "" {
		s.listed(a, now, pause)
		return
	}
	if a.empty && a.meta.Filtered {
		// The registry has instances and does not show them: unknown, not gone.
		if w.vanished && !w.known && len(s.hostOf(w.host).left) == 0 {
			s.forget(w, now) // nothing was ever known of it
			return
		}
		w.hidden, w.index = true, 0
		s.queue(w, true, now.Add(recheck))
		return
	}
	w.hidden = false
	if a.empty && w.vanished {
		s.forget(w, now)
		return
	}
	w.vanished = w.vanished && a.empty
	s.take(w, a.part, now)
	s.queue(w, w.index == 0, now.Add(pause))
}

// tally keeps the counts of services that are unread and in trouble.
func (s *session) tally(w *watch) {
	if w.service == "" {
		return
	}
	unread := !w.dropped && !w.known && !w.hidden
	troubled := !w.dropped && (w.err != nil || w.hidden)
	s.unread += count(unread) - count(w.countedUnread)
	s.troubled += count(troubled) - count(w.countedTroubled)
	w.countedUnread, w.countedTroubled = unread, troubled
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// listed compares the list of services with what is followed. What it names no
// more is not gone by that: the service's own answer decides.
func (s *session) listed(a answer, now time.Time, pause time.Duration) {
	c := a.w.center
	a.w.known = true
	var rejected []model.Rejected
	rules := &s.f.cfg.Rules
	for name, tags := range a.catalog {
		yes, reason := rules.Wants(name, tags, c.name)
		if reason != "" {
			rejected = append(rejected, model.Rejected{Where: name, Reason: reason})
		}
		w := c.services[name]
		switch {
		case !yes && w != nil:
			s.forget(w, now)
		case yes && w == nil:
			s.follow(c, name, now)
		case yes:
			w.vanished = false
		}
	}
	slices.SortFunc(rejected, func(a, b model.Rejected) int { return cmp.Compare(a.Where, b.Where) })
	s.news = s.news || !slices.Equal(rejected, c.rejected)
	c.rejected = rejected
	for name, w := range c.services {
		if _, named := a.catalog[name]; !named && !w.vanished {
			w.vanished = true
			s.hurry(w, now)
		}
	}
	if c.down {
		c.down = false
		s.f.cfg.Metrics.down.WithLabelValues(c.name).Set(0)
		for _, w := range c.services {
			if !w.flying && w.queue == nil {
				s.sched.put(w, w.index == 0, now)
			}
		}
	}
	s.sched.put(a.w, true, now.Add(pause))
	s.shorten()
}

func (s *session) follow(c *center, name string, now time.Time) {
	h, err := s.f.cfg.Rules.host(name, c.name)
	if err != nil {
		return // Wants refused it before, with the reason
	}
	w := &watch{center: c, service: name, host: h}
	c.services[name] = w
	s.services++
	s.f.cfg.Metrics.services.Set(float64(s.services))
	s.hostOf(h).watches[w] = struct{}{}
	s.tally(w)
	s.queue(w, true, now)
}

// forget ends following w and takes away what it contributed.
func (s *session) forget(w *watch, now time.Time) {
	s.sched.drop(w)
	w.dropped = true
	if w.flying {
		w.cancel()
	}
	delete(w.center.services, w.service)
	s.services--
	s.f.cfg.Metrics.services.Set(float64(s.services))
	s.tally(w)
	s.news = s.news || w.part != nil && len(w.part.rejected) > 0
	h := s.hostOf(w.host)
	delete(h.watches, w)
	s.rebuild(w.host, h, now)
}

// shorten ends queries that wait much longer than they now should, when services
// have become more than queries.
func (s *session) shorten() {
	wait := s.sched.wait(s.services, s.f.cfg.Wait)
	for _, c := range s.centers {
		for _, w := range c.services {
			if w.flying && w.long && w.wait > 2*wait {
				w.again = true
				w.cancel()
			}
		}
	}
}

// finish sends the Full update once everything was read, or is known not to be
// readable now and is named as the mesh holds it.
func (s *session) finish(now time.Time) {
	if s.complete {
		return
	}
	for _, c := range s.centers {
		if !c.list.known || c.down {
			return
		}
	}
	if s.unread > s.troubled {
		return // not all of them can have failed
	}
	for w := range s.watches() {
		if w.countedUnread && (w.fails < patience || w.kind == wire.Unavailable) {
			return
		}
	}
	s.complete = true
	s.full(now)
	s.f.cfg.Log.Info("consul read", "source", s.f.cfg.Name, "services", s.services, "hosts", len(s.hosts),
		"datacenters", fmt.Sprint(s.f.cfg.Datacenters))
}
