package watch

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// session is one Run. Its goroutine owns every field; queries run in goroutines
// of their own and come back through answers.
type session struct {
	f       *Follower
	sink    bridges.Sink
	answers chan answer
	pings   chan error
	turns   sync.WaitGroup // goroutines of queries and pings

	sched    schedule
	centers  []*center
	hosts    map[model.Host]*host
	complete bool  // the Full update went out
	gaveUp   error // why this Run ends

	// Counts over the watches of services in all centers.
	services, unread, troubled int

	http2   bool // answers come over it
	pinging bool
	pingErr error
	eased   time.Time // when the limit was last lowered

	status   model.SourceStatus // last reported
	reported bool
	news     bool // what is skipped changed since
}

// patience is how many failed attempts at the first read of one service hold up
// the Full update. If no answer came, Run then ends and another one starts from
// nothing; if answers came that are errors, the service is named as the mesh
// still holds it.
const patience = 3

// listWait bounds the wait of queries on the list. Consul does not notice that the
// client of such a query has gone until the wait is over, and counts its connection
// until then; that of a service's health it notices at once. Measured with 1.20.1.
const listWait = 30 * time.Second

func newSession(f *Follower, sink bridges.Sink) *session {
	s := &session{f: f, sink: sink, answers: make(chan answer), pings: make(chan error), hosts: map[model.Host]*host{}}
	now := time.Now()
	for _, name := range f.cfg.Datacenters {
		c := &center{name: name, services: map[string]*watch{}}
		c.list = &watch{center: c}
		s.centers = append(s.centers, c)
		s.sched.put(c.list, true, now)
		f.cfg.Metrics.down.WithLabelValues(name).Set(0)
	}
	s.sched.limit = f.cfg.Queries
	s.sched.reserve = len(s.centers) + max(1, f.cfg.Queries/16)
	return s
}

func (s *session) run(ctx context.Context) error {
	beat := time.NewTicker(s.f.cfg.Heartbeat)
	defer beat.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s.gaveUp == nil {
		s.dispatch(ctx, timer)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case a := <-s.answers:
			s.done(a, time.Now())
		case err := <-s.pings:
			s.pinged(err, time.Now())
		case <-beat.C:
			s.beat(ctx)
		}
	}
	return s.gaveUp
}

// dispatch starts every query that may run now and sets timer for the next one.
func (s *session) dispatch(ctx context.Context, timer *time.Timer) {
	now := time.Now()
	if !s.http2 && s.f.http2.Load() {
		s.http2, s.sched.limit = true, s.f.limit()
	}
	for w := s.sched.take(now); w != nil; w = s.sched.take(now) {
		s.launch(ctx, w, now)
	}
	if at, ok := s.sched.next(); ok {
		timer.Reset(max(0, at.Sub(now)))
	} else {
		timer.Stop()
	}
	m := s.f.cfg.Metrics
	m.inFlight.Set(float64(s.sched.flying))
	m.limit.Set(float64(s.sched.limit))
}

// launch sends the query of w. The goroutine hands its answer to the session,
// also when the session ended the query early, unless the session is over.
func (s *session) launch(ctx context.Context, w *watch, now time.Time) {
	query, cancel := context.WithCancel(ctx)
	w.cancel = cancel
	w.flying, w.started, w.wait = true, now, min(s.f.cfg.Wait, listWait)
	if w.service != "" {
		w.wait = s.sched.wait(s.services, s.f.cfg.Wait)
		s.f.cfg.Metrics.wait.Set(w.wait.Seconds())
	}
	server, rules := s.f.cfg.Servers[s.f.server], &s.f.cfg.Rules
	datacenter, service := w.center.name, w.service
	q := wire.Query{Datacenter: datacenter, Index: w.index, Wait: w.wait}
	s.turns.Go(func() {
		defer cancel()
		a := ask(query, server, rules, datacenter, service, q)
		a.w = w
		select {
		case s.answers <- a:
		case <-ctx.Done():
		}
	})
}

// beat asks for a sign of life, and lets one more query run again if the agent
// refused some before.
func (s *session) beat(ctx context.Context) {
	s.sched.limit = min(s.f.limit(), s.sched.limit+1)
	s.report(time.Now(), true)
	if s.pinging {
		return
	}
	s.pinging = true
	server := s.f.cfg.Servers[s.f.server]
	s.turns.Go(func() {
		bound, cancel := context.WithTimeout(ctx, s.f.cfg.HeartbeatTime)
		defer cancel()
		err := server.Ping(bound)
		select {
		case s.pings <- err:
		case <-ctx.Done():
		}
	})
}

// pinged takes the answer to a beat. Without one every open query is given up:
// it may wait on a connection that leads nowhere. A refusal is an answer.
func (s *session) pinged(err error, now time.Time) {
	s.pinging = false
	if err != nil && wire.KindOf(err) != wire.Unavailable {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("no sign of life: %w", err)
		s.nextServer()
		for w := range s.watches() {
			if w.flying {
				w.lost = err
				w.cancel()
			}
		}
	}
	s.pingErr = err
	s.report(now, false)
}

// queue lets w ask at the given time. While its data centre is down a service
// waits in no queue: it is asked for once the list was read again.
func (s *session) queue(w *watch, urgent bool, at time.Time) {
	if w.service == "" || !w.center.down {
		s.sched.put(w, urgent, at)
	}
}

func (s *session) nextServer() { s.f.server = (s.f.server + 1) % len(s.f.cfg.Servers) }

// watches yields the lists and the services of all data centres.
func (s *session) watches() iter.Seq[*watch] {
	return func(yield func(*watch) bool) {
		for _, c := range s.centers {
			if !yield(c.list) {
				return
			}
			for _, w := range c.services {
				if !yield(w) {
					return
				}
			}
		}
	}
}
