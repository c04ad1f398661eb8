package manage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

// Back-off of a Loader whose store does not answer.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// LoaderConfig is what a Loader is made from. All fields are required.
type LoaderConfig struct {
	Store store.Store
	Log   *slog.Logger
	// Publish takes the rules of the store whenever they changed. It is called
	// from one goroutine at a time.
	Publish func(rules.Set)
}

// Loader follows the store and publishes the rules in it. Make one with NewLoader.
type Loader struct {
	cfg   LoaderConfig
	state atomic.Pointer[LoaderState]
}

// LoaderState says what a Loader published last.
type LoaderState struct {
	Revision store.Revision
	// Unreadable are rules of the store that this release cannot read; they are
	// left out, their neighbours live.
	Unreadable map[store.Key]error
	// Err is why the store cannot be followed now; nil when it is.
	Err error
}

// NewLoader checks cfg.
func NewLoader(cfg LoaderConfig) (*Loader, error) {
	if cfg.Store == nil || cfg.Log == nil || cfg.Publish == nil {
		return nil, errors.New("rule loader: Store, Log and Publish are required")
	}
	l := &Loader{cfg: cfg}
	l.state.Store(&LoaderState{})
	return l, nil
}

// State is what the Loader published last; before Load, the zero state.
func (l *Loader) State() LoaderState { return *l.state.Load() }

// Load reads the store once and publishes what is there. Call it before proxies
// are served, or they are configured without rules first.
func (l *Loader) Load(ctx context.Context) error {
	listing, err := l.cfg.Store.List(ctx)
	if err != nil {
		return fmt.Errorf("load rules: %w", err)
	}
	next := &LoaderState{Revision: listing.Revision, Unreadable: map[store.Key]error{}}
	readable := make([]*rules.Rule, 0, len(listing.Records))
	before := l.state.Load()
	for _, rec := range listing.Records {
		r, err := parseRecord(rec)
		if err != nil {
			next.Unreadable[rec.Key] = err
			if _, known := before.Unreadable[rec.Key]; !known {
				l.cfg.Log.Error("stored rule left out: this release cannot read it", "rule", rec.Key.String(), "revision", uint64(rec.Revision), "error", err)
			}
			continue
		}
		readable = append(readable, r)
	}
	l.cfg.Publish(rules.NewSet(readable...))
	l.state.Store(next)
	l.cfg.Log.Info("rules loaded", "revision", uint64(next.Revision), "rules", len(readable), "unreadable", len(next.Unreadable))
	return nil
}

// Run follows the store until ctx ends. While the store does not answer, the
// rules published last stay in force.
func (l *Loader) Run(ctx context.Context) error {
	wait := firstRetry
	for ctx.Err() == nil {
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, store.ErrClosed) {
			return fmt.Errorf("follow rules: %w", err)
		}
		if err == nil {
			wait = firstRetry
			continue
		}
		old := l.state.Load()
		if old.Err == nil {
			l.cfg.Log.Warn("rule store does not answer; the last rules stay in force", "error", err)
		}
		l.state.Store(&LoaderState{old.Revision, old.Unreadable, err})
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, lastRetry)
	}
	return nil
}

// follow waits for one change and loads it.
func (l *Loader) follow(ctx context.Context) error {
	state := l.state.Load()
	if state.Err == nil {
		if _, err := l.cfg.Store.Watch(ctx, state.Revision); err != nil {
			return err
		}
	}
	return l.Load(ctx)
}

// parseRecord reads a stored rule back.
func parseRecord(rec store.Record) (*rules.Rule, error) {
	parsed, err := rules.Parse(rec.Key.String(), []byte(rec.YAML))
	if err != nil {
		return nil, err
	}
	if len(parsed) != 1 || parsed[0].Key() != ruleKey(rec.Key) {
		return nil, fmt.Errorf("%v: the stored text is not the rule of that name", rec.Key)
	}
	r := *parsed[0]
	r.Author, r.Reason, r.Revision = rec.Author, rec.Reason, int64(rec.Revision)
	if r.Created.IsZero() {
		r.Created = rec.Created
	}
	return &r, nil
}

func ruleKey(k store.Key) rules.Key { return rules.Key(k.String()) }

func storeKey(k rules.Key) store.Key {
	parts := splitKey(k)
	return store.Key{Kind: parts[0], Namespace: parts[1], Name: parts[2]}
}
