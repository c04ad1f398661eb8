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
	mib       = 1 << 20
	// settleTime is how long a subject may tidy up before its memory is read.
	settleTime = 3 * time.Second
)

func (s *suite) parts() []part {
	return []part{
		{"http1", []string{saturated, fixed}, append([]string{direct}, subject.Names()...), s.http1},
		{"idle", []string{idleRSS, idleConns}, subject.Names(), s.idle},
		{"xds", []string{xdsUpdate}, []string{servertest.Isthmus, servertest.LinearCache}, s.xds},
		{"registry", []string{registryLag}, registry.Names(), s.lag},
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

// http1 measures a proxy under saturation and at the fixed rate, in one life of it.
func (s *suite) http1(ctx context.Context, name string) error {
	if name == direct {
		for _, bench := range []string{saturated, fixed} {
			if err := s.drive(ctx, bench, name, nil); err != nil {
				return err
			}
		}
		return nil
	}
	served := s.loop.Served()
	r, err := s.start(ctx, name)
	if err != nil {
		return err
	}
	for _, bench := range []string{saturated, fixed} {
		if err == nil {
			err = s.drive(ctx, bench, name, r)
		}
	}
	served = s.loop.Served() - served
	if err := errors.Join(err, r.Stop()); err != nil {
		return err
	}
	lines, err := r.Logged()
	if err != nil {
		return err
	}
	// Refused requests are logged too, so there may be more lines.
	dropped := max(0, 1-float64(lines)/float64(served))
	for _, bench := range []string{saturated, fixed} {
		if s.wants(bench) {
			s.results.add(bench, name, 0, figure{"log_dropped_share", dropped})
		}
	}
	return nil
}

// drive makes one HTTP measurement; r is nil for none but the load.
func (s *suite) drive(ctx context.Context, bench, name string, r *subject.Running) error {
	if !s.wants(bench) {
		return nil
	}
	p := traffic.Plan{Target: s.loop.Application()[0], Requests: s.requests(), Connections: callers, Warm: time.Second, Measure: s.measure}
	if bench == fixed {
		p.Rate = fixedRate
	}
	var before, after subject.Usage
	if r != nil {
		p.Target = r.Addr
		p.Began = func() (err error) { before, err = r.Usage(); return err }
		p.Ended = func() (err error) { after, err = r.Usage(); return err }
	}
	accepted := s.loop.Accepted()
	if name == subject.Isthmus && bench == saturated && s.profile != "" {
		stop := s.profiling(ctx, r)
		defer stop()
	}
	res, err := s.loop.Drive(ctx, p)
	if err != nil {
		return fmt.Errorf("%s: %w", bench, err)
	}
	if res.Requests == 0 {
		return fmt.Errorf("%s: no request was answered", bench)
	}
	figures := []figure{{"rps", res.RPS()}}
	if r != nil {
		used := after.Sub(before)
		figures = append(figures, figure{"cpu_us_per_req", us(used.CPU) / float64(res.Requests)})
	}
	figures = append(figures, figure{"p50_us", us(res.Latency(0.5))}, figure{"p99_us", us(res.Latency(0.99))})
	if r != nil {
		used := after.Sub(before)
		upstream := s.loop.Accepted() - accepted
		// Whoever connects anew for requests does not do what the others do.
		if upstream > max(4*callers, res.Requests/100) {
			return fmt.Errorf("%s: %d connections to the application for %d requests: they are not kept", bench, upstream, res.Requests)
		}
		figures = append(figures,
			figure{"cpu_share", used.CPU.Seconds() / res.Took.Seconds()},
			figure{"switches_per_req", float64(used.Switches) / float64(res.Requests)},
			figure{"upstream_conns", float64(upstream)})
	}
	s.results.add(bench, name, 0, figures...)
	return nil
}

// profiling takes the sidecar's own CPU profile of the measured time.
func (s *suite) profiling(ctx context.Context, r *subject.Running) (wait func()) {
	done := make(chan error, 1)
	go func() {
		data, err := r.Profile(ctx, s.measure)
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
	held := 0
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
			figure{"bytes_per_conn", float64(with-base) / float64(connections)}, figure{"rss_mib", float64(with) / mib})
	}
	return s.loop.Drop(ctx)
}
