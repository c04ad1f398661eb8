package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Plan is one measurement.
type Plan struct {
	Target      netip.AddrPort
	Requests    [][]byte // a connection sends one of them again and again; whole requests without bodies
	Connections int
	// Rate is in requests a second: each leaves at its time, whether or not
	// those before it are answered, and its latency counts from that time. 0:
	// every connection sends as soon as it is answered.
	Rate    float64
	Warm    time.Duration
	Measure time.Duration
	// Began and Ended are called on the loop's thread when the measured time
	// begins and ends, and should be quick. Nil is nothing.
	Began, Ended func() error
}

// Result is what was measured.
type Result struct {
	Requests int64
	Took     time.Duration
	latency  []uint32 // ns, ascending
}

// RPS is the number of requests a second.
func (r Result) RPS() float64 { return float64(r.Requests) / r.Took.Seconds() }

// Latency returns the quantile p (0 to 1).
func (r Result) Latency(p float64) time.Duration {
	if len(r.latency) == 0 {
		return 0
	}
	return time.Duration(r.latency[min(len(r.latency)-1, int(p*float64(len(r.latency))))])
}

// Add adds what another measurement of the same kind showed.
func (r *Result) Add(other Result) {
	r.Requests += other.Requests
	r.Took += other.Took
	r.latency = append(r.latency, other.latency...)
	slices.Sort(r.latency)
}

// Bounds of a run.
const (
	expectedRPS = 400_000 // room for latencies is made beforehand
	maxWaiting  = 4_000   // requests due on one connection: the subject has stopped
)

// run is a measurement under way, or the opening of connections to hold.
type run struct {
	plan  Plan
	conns []*conn
	done  chan<- error

	measuring  bool
	from, to   int64 // of the measured time, ns on the loop's clock
	epoch      int64 // when the first request was due
	sent       int64 // requests that became due
	result     *Result
	hold, open int // hold: connections wanted, and opened so far
}

// Drive makes one measurement. The first wrong answer or lost connection ends it
// with an error.
func (l *Loop) Drive(ctx context.Context, p Plan) (Result, error) {
	if p.Connections <= 0 || len(p.Requests) == 0 || p.Measure <= 0 || p.Rate < 0 {
		return Result{}, errors.New("load: Connections, Requests and Measure are required, Rate is not negative")
	}
	expected := float64(expectedRPS)
	if p.Rate > 0 {
		expected = 1.1 * p.Rate
	}
	res := Result{latency: make([]uint32, 0, int(expected*p.Measure.Seconds()))}
	err := l.call(ctx, func(done chan<- error) error {
		if l.run != nil {
			return errors.New("load: another measurement is under way")
		}
		l.run = &run{plan: p, done: done, result: &res}
		return l.begin()
	})
	if err != nil {
		return Result{}, err
	}
	slices.Sort(res.latency)
	return res, nil
}

// Hold opens connections that make one request each and then stay open, idle. It
// returns once all are answered; Drop closes them.
func (l *Loop) Hold(ctx context.Context, target netip.AddrPort, requests [][]byte, connections int) error {
	return l.call(ctx, func(done chan<- error) error {
		if l.run != nil {
			return errors.New("load: another measurement is under way")
		}
		l.run = &run{plan: Plan{Target: target, Requests: requests}, done: done, hold: connections}
		for range min(holdAtOnce, connections) {
			if err := l.holdOne(); err != nil {
				l.run = nil
				return err
			}
		}
		return nil
	})
}

// holdAtOnce is how many of the connections to hold have a request under way.
const holdAtOnce = 32

// Drop closes what Hold opened. It fails if the subject closed any of them.
func (l *Loop) Drop(ctx context.Context) error {
	return l.call(ctx, func(done chan<- error) error {
		for _, c := range l.held {
			if l.open[c.fd] == c {
				l.hangUp(c)
			}
		}
		l.held = nil
		if n := l.lost.Swap(0); n > 0 {
			return fmt.Errorf("%d idle connections were closed by the subject", n)
		}
		done <- nil
		return nil
	})
}

func (l *Loop) holdOne() error {
	r := l.run
	c, err := l.dial(r.plan.Target, r.plan.Requests[r.open%len(r.plan.Requests)])
	if err != nil {
		return err
	}
	r.open++
	l.held = append(l.held, c)
	return l.send(c, l.now())
}

func (l *Loop) begin() error {
	r := l.run
	for i := range r.plan.Connections {
		c, err := l.dial(r.plan.Target, r.plan.Requests[i%len(r.plan.Requests)])
		if err != nil {
			l.abandon()
			return err
		}
		r.conns = append(r.conns, c)
	}
	r.epoch = l.now()
	r.from = r.epoch + int64(r.plan.Warm)
	r.to = r.from + int64(r.plan.Measure)
	period := 10 * time.Millisecond // the least often that the end is looked for
	if r.plan.Rate > 0 {
		period = time.Duration(float64(time.Second) / r.plan.Rate)
	}
	tick := unix.NsecToTimespec(int64(period))
	if err := unix.TimerfdSettime(l.timer, 0, &unix.ItimerSpec{Interval: tick, Value: tick}, nil); err != nil {
		l.abandon()
		return fmt.Errorf("timer: %w", err)
	}
	if r.plan.Rate > 0 {
		return nil
	}
	for _, c := range r.conns {
		if err := l.send(c, l.now()); err != nil {
			l.abandon()
			return err
		}
	}
	return nil
}

// tick looks at the clock: for the phase of the run and for requests that are due.
func (l *Loop) tick() {
	r, now := l.run, l.now()
	if r.hold > 0 {
		return
	}
	if !r.measuring && now >= r.from {
		r.measuring = true
		if r.plan.Began != nil {
			if err := r.plan.Began(); err != nil {
				l.end(err)
				return
			}
		}
		now = l.now()
		r.to += now - r.from
		r.from = now
	}
	if r.measuring && now >= r.to {
		r.result.Took = time.Duration(now - r.from)
		var err error
		if r.plan.Ended != nil {
			err = r.plan.Ended()
		}
		l.end(err)
		return
	}
	if r.plan.Rate == 0 {
		return
	}
	for {
		at := r.epoch + int64(float64(r.sent)*float64(time.Second)/r.plan.Rate)
		if at > now {
			return
		}
		c := r.conns[r.sent%int64(len(r.conns))]
		r.sent++
		if c.sentAt != 0 {
			if len(c.waiting) == maxWaiting {
				l.end(fmt.Errorf("%d requests wait for one connection: the subject does not keep up", maxWaiting))
				return
			}
			c.waiting = append(c.waiting, at)
			continue
		}
		if err := l.send(c, at); err != nil {
			l.end(err)
			return
		}
	}
}

func (l *Loop) send(c *conn, due int64) error {
	c.sentAt = max(1, due)
	return write(c.fd, c.request)
}

// answered is called when the whole answer of c has come.
func (l *Loop) answered(c *conn) {
	r, now, due := l.run, l.now(), c.sentAt
	c.sentAt = 0
	if r == nil {
		return
	}
	if r.hold > 0 {
		c.holding = true
		r.heldOne(l)
		return
	}
	if r.measuring {
		r.result.Requests++
		r.result.latency = append(r.result.latency, uint32(min(now-due, 1<<32-1)))
	}
	var err error
	switch {
	case r.plan.Rate == 0:
		err = l.send(c, now)
	case len(c.waiting) > 0:
		due := c.waiting[0]
		c.waiting = c.waiting[:copy(c.waiting, c.waiting[1:])]
		err = l.send(c, due)
	}
	if err != nil {
		l.end(err)
	}
}

func (r *run) heldOne(l *Loop) {
	idle := 0
	if r.open < r.hold {
		if err := l.holdOne(); err != nil {
			l.end(err)
		}
		return
	}
	for _, c := range l.held[len(l.held)-min(len(l.held), r.hold):] {
		if c.holding {
			idle++
		}
	}
	if idle == r.hold {
		l.end(nil)
	}
}

// broken is called when a caller's connection is of no use any more.
func (l *Loop) broken(c *conn, err error) {
	l.forget(c)
	if c.holding {
		l.lost.Add(1)
		return
	}
	if l.run != nil {
		l.end(err)
	}
}

// end ends the run and tells whoever waits for it.
func (l *Loop) end(err error) {
	done := l.run.done
	l.abandon()
	done <- err
}

func (l *Loop) abandon() {
	_ = unix.TimerfdSettime(l.timer, 0, &unix.ItimerSpec{}, nil) // a late tick finds no run
	for _, c := range l.run.conns {
		if l.open[c.fd] == c {
			l.hangUp(c)
		}
	}
	l.run = nil
}
