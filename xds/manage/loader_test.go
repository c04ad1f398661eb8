package manage_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/store"
	"github.com/isthmus-mesh/isthmus/xds/store/sqlite"
)

// brittle is a real store that can be told to fail.
type brittle struct {
	store.Store
	broken atomic.Bool
	failed chan struct{} // capacity 1: a call failed
}

var errBroken = errors.New("disk on fire")

func (b *brittle) fail() error {
	if !b.broken.Load() {
		return nil
	}
	select {
	case b.failed <- struct{}{}:
	default:
	}
	return errBroken
}

func (b *brittle) List(ctx context.Context) (store.Listing, error) {
	if err := b.fail(); err != nil {
		return store.Listing{}, err
	}
	return b.Store.List(ctx)
}

func write(t *testing.T, s store.Store, name, yaml string) {
	t.Helper()
	if _, err := s.Apply(t.Context(), store.Batch{Author: "ada", Reason: "r", Changes: []store.Change{
		{Key: store.Key{Kind: "virtualservice", Namespace: "default", Name: name}, YAML: yaml},
	}}); err != nil {
		t.Fatal(err)
	}
}

func TestLoaderFollowsTheStore(t *testing.T) {
	real, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "rules.db"))
	if err != nil {
		t.Fatal(err)
	}
	s := &brittle{Store: real, failed: make(chan struct{}, 1)}
	write(t, s, "cart", route("cart", 90))
	write(t, s, "odd", "kind: Future")
	published := make(chan rules.Set, 16)
	l, err := manage.NewLoader(manage.LoaderConfig{Store: s, Log: quiet(), Publish: func(set rules.Set) { published <- set }})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	set := <-published
	r := set.Get(cartRoute)
	if set.Len() != 1 || r == nil || r.Author != "ada" || r.Reason != "r" || r.Revision != 1 || r.Created.IsZero() {
		t.Errorf("published %d rules, %+v, want the one that can be read, with its making", set.Len(), r)
	}
	st := l.State()
	if st.Revision != 2 || st.Err != nil || len(st.Unreadable) != 1 {
		t.Errorf("state %+v, want revision 2 and one unreadable rule", st)
	}

	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	write(t, s, "other", route("other", 10))
	if set := <-published; set.Len() != 2 {
		t.Errorf("published %d rules, want 2", set.Len())
	}
	s.broken.Store(true)
	write(t, real, "third", route("third", 10))
	<-s.failed
	<-s.failed // again, after a pause: the state of the first failure is there
	if st := l.State(); !errors.Is(st.Err, errBroken) || st.Revision != 3 {
		t.Errorf("state %+v, want the failure, and the revision that is in force", st)
	}
	s.broken.Store(false)
	if set := <-published; set.Len() != 3 {
		t.Errorf("published %d rules after it healed, want 3", set.Len())
	}
	if err := real.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, store.ErrClosed) || !strings.Contains(err.Error(), "follow rules") {
		t.Errorf("run: %v, want that the store is closed", err)
	}
}

func TestLoaderStopsWithItsContext(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "rules.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := manage.NewLoader(manage.LoaderConfig{Store: s, Log: quiet(), Publish: func(rules.Set) {}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Errorf("run: %v, want nil", err)
	}
	if _, err := manage.NewLoader(manage.LoaderConfig{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
}
