package bridges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Config says what a Supervisor runs.
type Config struct {
	Source Source // required; its name is letters, digits and "-_.", at most 128 bytes
	Sink   Sink   // required; called from the goroutine of Run only
	// Dir is the folder of the file that keeps the last complete read; it is
	// made when missing. Empty keeps nothing on disk: for sources whose state
	// is in this process anyway.
	Dir string
	// SaveEvery is the shortest time between two writes of that file; zero
	// means 1 s. A write that takes long makes it longer, so that at most a
	// twentieth of the time is spent writing.
	SaveEvery time.Duration
	// RetryLow and RetryHigh bound the wait before a source that ended is run
	// again; zero means 100 ms and 5 s.
	RetryLow, RetryHigh time.Duration
	Log                 *slog.Logger          // nil discards
	Registerer          prometheus.Registerer // nil registers nothing
}

// Supervisor keeps one source running.
type Supervisor struct {
	cfg     Config
	log     *slog.Logger
	disk    disk
	metrics *metrics
	held    *held

	mu     sync.Mutex // guards the fields below
	status model.SourceStatus
	err    error // why the last save failed; nil when it did not
}

// New checks cfg and reports every mistake. It reads no file and starts nothing.
func New(cfg Config) (*Supervisor, error) {
	var errs []error
	if cfg.Sink == nil {
		errs = append(errs, errors.New("sink is nil"))
	}
	if cfg.Source == nil {
		return nil, errors.Join(append(errs, errors.New("source is nil"))...)
	}
	name, kind := cfg.Source.Name(), cfg.Source.Kind()
	if err := checkName(name); err != nil {
		errs = append(errs, err)
	}
	if cfg.SaveEvery < 0 || cfg.RetryLow < 0 || cfg.RetryHigh < 0 {
		errs = append(errs, fmt.Errorf("source %s: save_every %v, retry_low %v, retry_high %v: want none negative", name, cfg.SaveEvery, cfg.RetryLow, cfg.RetryHigh))
	}
	if cfg.SaveEvery == 0 {
		cfg.SaveEvery = time.Second
	}
	if cfg.RetryHigh == 0 {
		cfg.RetryHigh = backoffHigh
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer, name, kind)
	if err != nil {
		return nil, fmt.Errorf("register metrics of source %s: %w", name, err)
	}
	return &Supervisor{
		cfg: cfg, metrics: m, held: newHeld(),
		log:    cfg.Log.With("source", name, "kind", kind),
		disk:   disk{dir: cfg.Dir, source: name, kind: kind},
		status: model.SourceStatus{Source: name, Kind: kind},
	}, nil
}

// checkName refuses what would not do as a file name or as part of
// "<host>@<registry>".
func checkName(name string) error {
	if name == "" || len(name) > 128 || name[0] == '.' {
		return fmt.Errorf("source %.130q: want a name of 1 to 128 bytes that does not start with a dot", name)
	}
	for _, c := range name {
		if !strings.ContainsRune("-_.", c) && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return fmt.Errorf("source %q: %q in the name, want letters, digits and -_. only", name, c)
		}
	}
	return nil
}

// Status returns what was last reported of the source.
func (s *Supervisor) Status() model.SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// DiskError says why the last complete read could not be kept on disk; nil when
// it could. The source works on meanwhile, but a restart would start from an
// older state. The error clears itself with the next write that succeeds.
func (s *Supervisor) DiskError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Run serves what a former process kept, then runs the source until ctx ends,
// again after a back-off whenever it ends by itself, and writes the last state
// out at the end. It returns nil, or why that last write failed.
func (s *Supervisor) Run(ctx context.Context) error {
	r := &run{Supervisor: s, saved: make(chan saveResult, 1)}
	r.coldStart()
	backoff := Backoff{Low: s.cfg.RetryLow, High: s.cfg.RetryHigh}
	for ctx.Err() == nil {
		r.liveSince, r.full = time.Time{}, false
		err := r.attend(ctx)
		if ctx.Err() != nil {
			break
		}
		if !r.liveSince.IsZero() && time.Since(r.liveSince) > s.cfg.RetryHigh {
			backoff.Reset()
		}
		wait := backoff.Next()
		r.lost(ctx, err, wait)
		s.metrics.restarts.Inc()
		_ = r.serve(ctx, nil, nil, time.After(wait)) // nil without a source
	}
	return r.finish()
}

// coldStart serves the file of a former process, or reports that nothing is
// known yet.
func (r *run) coldStart() {
	now := time.Now()
	why := "not read since the start"
	if r.cfg.Dir != "" {
		if err := r.disk.sweep(); err != nil {
			r.log.Warn("remove half-written files", "error", err)
		}
		k, found, err := r.disk.load()
		if err != nil {
			r.log.Error("last complete read is lost, starting from nothing", "error", err)
			why += "; " + err.Error()
		}
		if found {
			r.held.restore(k)
			r.log.Info("serving the last complete read until the registry is read", "services", len(k.Services), "read", k.Read)
			r.apply(model.Update{Full: true, Services: k.Services, Workloads: k.Workloads})
		}
	}
	r.report(model.SourceStatus{Since: now, Err: why})
}

// lost reports that the source ended by itself.
func (r *run) lost(ctx context.Context, err error, wait time.Duration) {
	if err == nil {
		err = errors.New("the source ended by itself")
	}
	level := slog.LevelDebug
	if was := r.Status(); was.Phase == model.Live || was.Err != err.Error() {
		level = slog.LevelWarn
	}
	r.log.Log(ctx, level, "registry cannot be followed, what is known stays", "error", err, "retry_in", wait)
	r.report(model.SourceStatus{Err: err.Error(), Skipped: r.reported.Skipped})
}
