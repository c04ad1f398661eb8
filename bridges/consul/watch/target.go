package watch

import (
	"context"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// center is one data centre in a session.
type center struct {
	name     string
	list     *watch
	services map[string]*watch
	rejected []model.Rejected // of the list
	// down says that the list could not be read: nothing else is asked, so that
	// a registry in trouble gets one query at a time.
	down   bool
	probed time.Time // when a failing service last made the list be asked
}

// watch is one thing followed by blocking queries: the list of a data centre
// (service is empty) or the health of a service.
type watch struct {
	center  *center
	service string
	host    model.Host

	// index is where the next query waits; 0 asks for an answer at once.
	index uint64
	// known says that it was read once; part is what a service contributes
	// then, nil for nothing.
	known bool
	part  *part
	// free is when the next query may follow the last one at once.
	free time.Time
	// vanished says that the list names the service no more: only the
	// service's own answer decides.
	vanished bool
	// hidden says that the token's rights hide what the service has.
	hidden bool

	fails int
	err   error
	retry bridges.Backoff
	kind  wire.Kind // of err, for which retry is set

	// In a queue or in flight, never both.
	queue *turns
	place int
	at    time.Time
	long  bool

	countedUnread, countedTroubled bool // in the session's counts

	flying  bool
	started time.Time
	wait    time.Duration
	cancel  context.CancelFunc
	again   bool  // ended early: ask again at once
	lost    error // ended early: the agent gives no sign of life
	dropped bool  // nobody wants the answer any more
}

// answer is what a query brought.
type answer struct {
	w       *watch
	catalog wire.Catalog
	part    *part
	empty   bool // the registry holds no instance of the service
	meta    wire.Meta
	err     error
}

// ask runs one query; it touches no state of the session.
func ask(ctx context.Context, r Registry, rules *Rules, datacenter, service string, q wire.Query) answer {
	var a answer
	if service == "" {
		a.catalog, a.meta, a.err = r.Services(ctx, q)
		return a
	}
	var in wire.Instances
	if in, a.meta, a.err = r.Health(ctx, service, q); a.err != nil {
		return a
	}
	a.empty = len(in.Entries)+len(in.Rejected) == 0
	a.part = rules.part(datacenter, service, in)
	if a.part != nil && a.meta.Filtered {
		a.part.reject(service, "some instances are hidden: the token lacks node:read for their nodes")
	}
	return a
}

// Back-off after each kind of failure. A refused token is asked for rarely: only
// an operator can help, and denied requests fill the agent's log.
func backoff(kind wire.Kind) bridges.Backoff {
	switch kind {
	case wire.Denied:
		return bridges.Backoff{Low: 5 * time.Second, High: time.Minute}
	case wire.Overloaded:
		return bridges.Backoff{Low: time.Second, High: 30 * time.Second}
	case wire.Malformed:
		return bridges.Backoff{Low: time.Second, High: time.Minute}
	}
	return bridges.Backoff{Low: 200 * time.Millisecond, High: 5 * time.Second}
}

// failed notes a failure and returns the time until the next attempt.
func (w *watch) failed(err error) time.Duration {
	kind := wire.KindOf(err)
	if w.fails == 0 || w.kind != kind {
		w.kind, w.retry = kind, backoff(kind)
	}
	w.fails++
	w.err = err
	w.index = 0 // whatever answers next may be another server, or the same one with another history
	return w.retry.Next()
}

// Pace between two answers of one watch: the first change goes out at once, what
// follows within the gap is read together. slowPace is for servers that answer at
// once though nothing changed, or without an index.
const (
	serviceGap = 50 * time.Millisecond
	listGap    = 200 * time.Millisecond
	slowPace   = time.Second
)

// succeeded notes an answer and returns the time until the next query, and
// whether the answer is to be used.
func (w *watch) succeeded(meta wire.Meta, now time.Time) (pause time.Duration, use bool) {
	w.fails, w.err = 0, nil
	gap := serviceGap
	if w.service == "" {
		gap = listGap
	}
	if pause = w.free.Sub(now); pause > 0 {
		w.free = w.free.Add(gap)
	} else {
		pause, w.free = 0, now.Add(gap)
	}
	switch {
	case meta.Index == 0:
		w.index = 0
		return slowPace, true
	case meta.Index < w.index:
		// A snapshot was restored, or a server that lags behind answered: what
		// it says is read anew from the start.
		w.index = 0
		return pause, false
	case meta.Index == w.index && now.Sub(w.started) < w.wait/2:
		pause = slowPace
	}
	w.index = meta.Index
	return pause, true
}
