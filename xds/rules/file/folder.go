// Package file reads rules from a folder of YAML and follows its changes.
//
// It calls Config.Rules with each new set, and tells a Sink of the services and
// workloads that ServiceEntry and WorkloadEntry rules declare. All calls come from
// the goroutine of Run.
//
// Why it polls, and what a mistake in a file does: ../RATIONALE.md.
package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// Sink takes services and workloads; the catalog's per-source handle is one.
type Sink interface {
	Apply(model.Update)
	Report(model.SourceStatus)
}

// Config is what a Folder is made from.
type Config struct {
	Dir   string          // required; need not exist yet
	Name  string          // of the source in statuses; empty means "file"
	Rules func(rules.Set) // required; called with each new set
	Sink  Sink            // required
	Log   *slog.Logger    // required
	// Poll is how often the folder is looked at; 0 means 250 ms. A change is
	// applied once the file was the same, or missing, in two looks, so within two
	// of them.
	Poll time.Duration
}

// Bounds of a folder.
const (
	defaultPoll = 250 * time.Millisecond
	maxFiles    = 10_000
	maxBytes    = 64 << 20
	maxDepth    = 16
)

// Kind is the kind of the source in statuses.
const Kind = "file"

// Folder follows one folder. Make one with New.
type Folder struct {
	cfg Config // immutable after New

	// The fields below belong to Run.
	seen    map[string]stamp // of the last look; nil when it failed
	read    map[string]*content
	applied bool // a set was handed on
	set     rules.Set
	status  model.SourceStatus
}

// content is what is known of one file.
type content struct {
	stamp stamp
	good  []*rules.Rule // of the last version without mistakes
	known bool          // there was such a version
	err   error         // of the newest version; nil when good is of it
}

// New checks cfg. Nothing is read before Run.
func New(cfg Config) (*Folder, error) {
	var errs []error
	for what, missing := range map[string]bool{"Dir": cfg.Dir == "", "Rules": cfg.Rules == nil, "Sink": cfg.Sink == nil, "Log": cfg.Log == nil} {
		if missing {
			errs = append(errs, fmt.Errorf("rules folder: %s is missing", what))
		}
	}
	if cfg.Poll < 0 {
		errs = append(errs, fmt.Errorf("rules folder: Poll: %v, want 0 or more", cfg.Poll))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Name == "" {
		cfg.Name = Kind
	}
	return &Folder{
		cfg: cfg, read: map[string]*content{},
		status: model.SourceStatus{Source: cfg.Name, Kind: Kind, Phase: model.Syncing},
	}, nil
}

// Run follows the folder until ctx ends.
func (f *Folder) Run(ctx context.Context) error {
	tick := time.NewTicker(f.cfg.Poll)
	defer tick.Stop()
	for {
		f.look()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads what changed since the last look, and hands on what follows from it.
func (f *Folder) look() {
	now := time.Now()
	folder, err := open(f.cfg.Dir)
	if err != nil {
		f.fail(now, err)
		return
	}
	defer folder.close()
	stamps, err := folder.list()
	if err != nil {
		f.fail(now, err)
		return
	}
	changed := !f.applied
	for path, s := range stamps {
		known := f.read[path]
		if known != nil && known.stamp == s {
			continue
		}
		// A file that still changes may be half written; what is there at the
		// first look was there before.
		if f.applied && f.seen[path] != s {
			continue
		}
		f.readFile(folder, path, s)
		changed = true
	}
	for path := range f.read {
		_, there := stamps[path]
		_, before := f.seen[path]
		// A file that some tool renames away and back is missing for a moment.
		if !there && !before && f.seen != nil {
			delete(f.read, path)
			changed = true
		}
	}
	f.seen = stamps
	if changed {
		f.apply(now)
	} else {
		phase, reason := f.health()
		f.report(now, phase, reason, f.status.Skipped)
	}
}

func (f *Folder) readFile(folder *folder, path string, s stamp) {
	c := f.read[path]
	if c == nil {
		c = &content{}
		f.read[path] = c
	}
	c.stamp = s
	data, err := folder.read(path)
	if err == nil {
		var all []*rules.Rule
		if all, err = rules.Parse(path, data); err == nil {
			c.good, c.known, c.err = all, true, nil
			return
		}
	}
	c.err = err
	if !c.known {
		f.cfg.Log.Error("rule file has mistakes, none of its rules is in force", "file", path, "error", err)
		return
	}
	f.cfg.Log.Error("rule file has mistakes, its last good rules stay in force", "file", path, "error", err, "rules", len(c.good))
}

// health is stale while a file has no version to stand in for the one with
// mistakes, such as after a restart: rules that its author counts on are missing.
func (f *Folder) health() (model.SourcePhase, string) {
	var lost []string
	for path, c := range f.read {
		if c.err != nil && !c.known {
			lost = append(lost, path)
		}
	}
	if len(lost) == 0 {
		return model.Live, ""
	}
	first := slices.Min(lost)
	mistakes := rejected(first, f.read[first].err)
	reason := "not in force: " + mistakes[0].Where + ": " + mistakes[0].Reason
	if n := len(mistakes) - 1; n > 0 {
		reason += fmt.Sprintf(" (and %d more in this file)", n)
	}
	if n := len(lost) - 1; n > 0 {
		reason += fmt.Sprintf("; %d more files have mistakes", n)
	}
	return model.Stale, reason
}

// apply makes a set of all files. Of two rules with one key the one in the first
// file by path counts.
func (f *Folder) apply(now time.Time) {
	var all []*rules.Rule
	var skipped []model.Rejected
	from := map[rules.Key]string{}
	for _, path := range slices.Sorted(maps.Keys(f.read)) {
		c := f.read[path]
		skipped = append(skipped, rejected(path, c.err)...)
		for _, r := range c.good {
			if first, twice := from[r.Key()]; twice {
				skipped = append(skipped, model.Rejected{Where: path, Reason: fmt.Sprintf("%s: is already in %s", r.Key(), first)})
				continue
			}
			from[r.Key()] = path
			all = append(all, r)
		}
	}
	f.set, f.applied = rules.NewSet(all...), true
	f.cfg.Rules(f.set)
	f.cfg.Sink.Apply(rules.Registry(f.set))
	f.status.Read = now
	f.cfg.Log.Info("rules read", "dir", f.cfg.Dir, "files", len(f.read), "rules", f.set.Len(), "mistakes", len(skipped))
	phase, reason := f.health()
	f.report(now, phase, reason, skipped)
}

func rejected(path string, err error) []model.Rejected {
	mistakes, ok := errors.AsType[rules.Mistakes](err)
	if !ok {
		if err == nil {
			return nil
		}
		return []model.Rejected{{Where: path, Reason: err.Error()}}
	}
	var all []model.Rejected
	for _, m := range mistakes {
		where := m.File
		if m.Line > 0 {
			where = fmt.Sprintf("%s:%d", m.File, m.Line)
		}
		m.File, m.Line = "", 0
		all = append(all, model.Rejected{Where: where, Reason: m.String()})
	}
	return all
}

// fail reports a folder that cannot be read; what was read stays in force. It logs
// when the reason is new.
func (f *Folder) fail(now time.Time, err error) {
	phase := model.Stale
	if !f.applied {
		phase = model.Syncing
	}
	if f.status.Err != err.Error() {
		f.cfg.Log.Error("rules folder cannot be read, the last rules stay in force", "error", err)
	}
	f.seen = nil // files that come back are looked at twice again
	f.report(now, phase, err.Error(), f.status.Skipped)
}

func (f *Folder) report(now time.Time, phase model.SourcePhase, reason string, skipped []model.Rejected) {
	if f.status.Phase == phase && f.status.Err == reason && slices.Equal(f.status.Skipped, skipped) && !f.status.Since.IsZero() && !f.status.Read.Equal(now) {
		return
	}
	if f.status.Phase != phase || f.status.Since.IsZero() {
		f.status.Since = now
	}
	f.status.Phase, f.status.Err, f.status.Skipped = phase, reason, skipped
	f.cfg.Sink.Report(f.status)
}
