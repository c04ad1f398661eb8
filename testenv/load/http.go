package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/load/registry"
	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
	"github.com/isthmus-mesh/isthmus/testenv/load/traffic"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

const (
	callers   = 32   // keep-alive connections, each for a route of its own
	fixedRate = 4000 // requests a second
	turns     = 8    // of each subject in a round
	mib       = 1 << 20
	// warmTime is how long a turn lasts before it is measured.
	warmTime = 200 * time.Millisecond
	// settleTime is how long a subject may tidy up before its memory is read.
	settleTime = 3 * time.Second
)

func (s *suite) parts() []part {
	return []part{
		{"http1", []string{saturated, fixed}, append([]string{direct}, subject.Names()...), s.http1},
		{"idle", []string{idleRSS, idleConns}, subject.Names(), each(s.idle)},
		{"xds", []string{xdsUpdate}, []string{servertest.Isthmus, servertest.LinearCache}, each(s.xds)},
		{"registry", []string{registryLag}, registry.Names(), each(s.lag)},
	}
}

// requests are spread over the routing table: eight services, all their routes.
func (s *suite) requests() [][]byte {
	var all [][]byte
	for i := range callers {
		sv := s.site.Services[i/4*(len(s.site.Services)/8)]
		all = append(all, sv.Request(i%len(sv.Routes)))
	}
	return all
}

// http1 measures proxies under saturation and at the fixed rate. All of them are up,
// but only one works: they take turns of a fraction of a second, because the noise of
// a machine that does other things too comes in seconds.
func (s *suite) http1(ctx context.Context, names []string) (err error) {
	all := map[string]*candidate{}
	defer func() {
		for _, c := range all {
			if c.running != nil {
				err = errors.Join(err, c.running.Stop())
			}
		}
	}()
	for _, name := range names {
		all[name] = &candidate{name: name}
		if err := all[name].start(ctx, s); err != nil {
			return err
		}
	}
	for _, bench := range []string{saturated, fixed} {
		if !s.wants(bench) {
			continue
		}
		for turn := range turns {
			for i := range names {
				c := all[names[(i+turn)%len(names)]]
				if err := c.drive(ctx, s, bench); err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, bench, err)
				}
			}
		}
		for _, name := range names {
			figures, err := all[name].take()
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, bench, err)
			}
			s.results.add(bench, name, 0, figures...)
		}
	}
	return s.logShares(names, all)
}

// logShares stops the proxies and compares their access logs with what they did.
func (s *suite) logShares(names []string, all map[string]*candidate) error {
	for _, name := range names {
		c := all[name]
		if c.running == nil {
			continue
		}
		r := c.running
		c.running = nil
		if err := r.Stop(); err != nil {
			return err
		}
		lines, err := r.Logged()
		if err != nil {
			return err
		}
		// Refused requests are logged too, so there may be more lines.
		dropped := max(0, 1-float64(lines)/float64(c.served))
		for _, bench := range []string{saturated, fixed} {
			if s.wants(bench) {
				s.results.add(bench, name, 0, figure{"log_dropped_share", dropped})
			}
		}
	}
	return nil
}

// candidate is a proxy, or the load without one, in one round.
type candidate struct {
	name    string
	running *subject.Running // nil: none but the load
	served  int64            // requests that went through it

	// Of the turns since take:
	result   traffic.Result
	used     subject.Usage
	upstream int64 // connections that it opened
}

func (c *candidate) start(ctx context.Context, s *suite) (err error) {
	if c.name == direct {
		return nil
	}
	before := s.loop.Served()
	c.running, err = s.start(ctx, c.name)
	c.served = s.loop.Served() - before
	return err
}

// drive makes one turn.
func (c *candidate) drive(ctx context.Context, s *suite, bench string) error {
	p := traffic.Plan{Target: s.loop.Application()[0], Requests: s.requests(), Connections: callers, Warm: warmTime, Measure: s.measure / turns}
	if bench == fixed {
		p.Rate = fixedRate
	}
	var before, after subject.Usage
	if c.running != nil {
		p.Target = c.running.Addr
		p.Began = func() (err error) { before, err = c.running.Usage(); return err }
		p.Ended = func() (err error) { after, err = c.running.Usage(); return err }
	}
	if c.name == subject.Isthmus && bench == saturated && s.profile != "" {
		wait := s.profiling(ctx, c.running)
		defer wait()
	}
	served, accepted := s.loop.Served(), s.loop.Accepted()
	res, err := s.loop.Drive(ctx, p)
	c.served += s.loop.Served() - served
	c.upstream += s.loop.Accepted() - accepted
	c.used = c.used.Add(after.Sub(before))
	c.result.Add(res)
	return err
}

// take returns the figures of all turns since the last take.
func (c *candidate) take() ([]figure, error) {
	res, used, upstream := c.result, c.used, c.upstream
	c.result, c.used, c.upstream = traffic.Result{}, subject.Usage{}, 0
	if res.Requests == 0 {
		return nil, errors.New("no request was answered")
	}
	figures := []figure{{"rps", res.RPS()}}
	if c.running != nil {
		figures = append(figures, figure{"cpu_us_per_req", us(used.CPU) / float64(res.Requests)})
	}
	figures = append(figures, figure{"p50_us", us(res.Latency(0.5))}, figure{"p99_us", us(res.Latency(0.99))})
	if c.running == nil {
		return figures, nil
	}
	// Whoever connects anew for requests does not do what the others do.
	if upstream > max(4*callers*turns, res.Requests/100) {
		return nil, fmt.Errorf("%d connections to the application for %d requests: they are not kept", upstream, res.Requests)
	}
	return append(figures,
		figure{"cpu_share", used.CPU.Seconds() / res.Took.Seconds()},
		figure{"switches_per_req", float64(used.Switches) / float64(res.Requests)},
		figure{"upstream_conns", float64(upstream)}), nil
}

// profiling takes the sidecar's own CPU profile of the measured time.
func (s *suite) profiling(ctx context.Context, r *subject.Running) (wait func()) {
	done := make(chan error, 1)
	go func() {
		data, err := r.Profile(ctx, max(time.Second, s.measure/turns+warmTime))
		if err == nil {
			err = os.WriteFile(s.profile, data, 0o644)
		}
		done <- err
	}()
	return func() {
		if err := <-done; err != nil {
			s.say("profile: %v", err)
		}
	}
}

// idle measures memory: after the start, and with connections that do nothing.
func (s *suite) idle(ctx context.Context, name string) error {
	r, err := s.start(ctx, name)
	if err != nil {
		return err
	}
	return errors.Join(s.memory(ctx, name, r), r.Stop())
}

func (s *suite) memory(ctx context.Context, name string, r *subject.Running) error {
	rss := func() (int64, error) {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(settleTime):
		}
		u, err := r.Usage()
		return u.RSS, err
	}
	base, err := rss()
	if err != nil {
		return err
	}
	if s.wants(idleRSS) {
		s.results.add(idleRSS, name, 0, figure{"rss_mib", float64(base) / mib})
	}
	if !s.wants(idleConns) {
		return nil
	}
	// The first requests touch what an idle process has not touched: code,
	// buffers, connections to hosts. That is not the price of a connection.
	const warm = 64
	if err := s.loop.Hold(ctx, r.Addr, s.requests(), warm); err != nil {
		return fmt.Errorf("first requests: %w", err)
	}
	if base, err = rss(); err != nil {
		return err
	}
	held := warm
	for _, connections := range []int{2_000, 10_000} {
		if err := s.loop.Hold(ctx, r.Addr, s.requests(), connections-held); err != nil {
			return fmt.Errorf("%d idle connections: %w", connections, err)
		}
		held = connections
		with, err := rss()
		if err != nil {
			return err
		}
		s.results.add(idleConns, name, connections,
			figure{"bytes_per_conn", float64(with-base) / float64(connections-warm)}, figure{"rss_mib", float64(with) / mib})
	}
	return s.loop.Drop(ctx)
}
