package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
	"github.com/isthmus-mesh/isthmus/testenv/load/traffic"
)

// services is the size of the routing table: four routes each.
const services = 50

// suite is one run of everything.
type suite struct {
	options
	dir, bin            string
	proxyCore, loadCore int
	loop                *traffic.Loop
	site                subject.Site
	mesh                *subject.Mesh // nil until a subject needs it
	stopLoop            context.CancelFunc
	loopDone            chan error
	results             results
	starts              int // to name folders
}

func newSuite(ctx context.Context, o options, dir string) (*suite, error) {
	s := &suite{options: o, dir: dir, bin: filepath.Join(dir, "bin"), loopDone: make(chan error, 1)}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	var cores []int
	for core := range len(set) * 64 {
		if set.IsSet(core) {
			cores = append(cores, core)
		}
	}
	if len(cores) < 2 {
		return nil, errors.New("two cores are needed: one for the proxy, one for the load")
	}
	s.loadCore, s.proxyCore = cores[0], cores[len(cores)-1]
	if err := os.MkdirAll(s.bin, 0o755); err != nil {
		return nil, err
	}
	s.say("build the programs")
	if err := build(ctx, s.bin); err != nil {
		return nil, err
	}
	var err error
	s.loop, err = traffic.New(traffic.Config{Core: s.loadCore, Application: []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.2:0"),
	}})
	if err != nil {
		return nil, err
	}
	s.site = subject.NewSite(services, s.loop.Application())
	loopCtx, cancel := context.WithCancel(ctx)
	s.stopLoop = cancel
	go func() { s.loopDone <- s.loop.Run(loopCtx) }()
	return s, nil
}

func (s *suite) close() error {
	var err error
	if s.mesh != nil {
		err = s.mesh.Stop()
	}
	s.stopLoop()
	return errors.Join(err, <-s.loopDone)
}

func (s *suite) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// sayMachine says how long everything took, where, and how undisturbed.
func (s *suite) sayMachine(m machine) error {
	others, err := m.others()
	if err != nil {
		return err
	}
	where, err := describe()
	if err != nil {
		return err
	}
	s.say("\n%d rounds in %v on %s; other programs used %.0f %% of the cores meanwhile", s.options.rounds, time.Since(m.began).Round(time.Second), where, 100*others)
	return nil
}

func (s *suite) wants(bench string) bool { return slices.Contains(s.only, bench) }

// part is a group of benchmarks that share what they start.
type part struct {
	name     string
	benches  []string
	subjects []string
	// measure makes one round of the subjects, in the given order.
	measure func(ctx context.Context, subjects []string) error
}

// rounds measures everything in turns, so that what else this machine does falls on
// all subjects alike. Each round begins with another subject.
func (s *suite) rounds(ctx context.Context) error {
	for round := range s.options.rounds {
		for _, p := range s.parts() {
			if !slices.ContainsFunc(p.benches, s.wants) {
				continue
			}
			var names []string
			for i := range p.subjects {
				if name := p.subjects[(i+round)%len(p.subjects)]; slices.Contains(s.subjects, name) {
					names = append(names, name)
				}
			}
			began := time.Now()
			if err := p.measure(ctx, names); err != nil {
				return fmt.Errorf("%s, round %d: %w", p.name, round+1, err)
			}
			s.say("round %d/%d: %s (%.1f s)", round+1, s.options.rounds, p.name, time.Since(began).Seconds())
		}
	}
	return nil
}

// each measures subjects one after the other.
func each(measure func(context.Context, string) error) func(context.Context, []string) error {
	return func(ctx context.Context, subjects []string) error {
		for _, name := range subjects {
			if err := measure(ctx, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
}

// fresh makes a folder for one start.
func (s *suite) fresh(name string) (string, error) {
	s.starts++
	dir := filepath.Join(s.dir, fmt.Sprintf("%03d-%s", s.starts, name))
	return dir, os.Mkdir(dir, 0o755)
}

// start starts a proxy on its core.
func (s *suite) start(ctx context.Context, name string) (*subject.Running, error) {
	dir, err := s.fresh(name)
	if err != nil {
		return nil, err
	}
	if name == subject.Isthmus && s.mesh == nil {
		s.mesh, err = subject.StartMesh(ctx, subject.MeshConfig{Name: "meshserver", Bin: s.bin, Dir: s.dir, Core: s.loadCore, Site: s.site})
		if err != nil {
			return nil, err
		}
	}
	return subject.Run(ctx, subject.Config{
		Name: name, Site: s.site, Bin: s.bin, Dir: dir, Core: s.proxyCore, Mesh: s.mesh, LogSink: s.loop.Sink(), LogLines: s.loop.Lines,
	})
}

// ms is d in milliseconds.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// us is d in microseconds.
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
