package resource

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Watcher is told which resources of a scope changed. Changed must return at
// once (it marks a mailbox) and must not call back into the Feed.
type Watcher interface{ Changed(keys []Key) }

// Feed carries the snapshots of one scope to its streams. Make one with NewFeed.
type Feed struct {
	// Scope describes the scope for logs and dumps, "default/cart".
	Scope string

	snap atomic.Pointer[Snapshot] // read without mu

	mu       sync.Mutex // serialises Publish; guards watchers
	watchers map[Watcher]struct{}
}

// NewFeed returns a feed that starts with snap.
func NewFeed(scope string, snap *Snapshot) *Feed {
	f := &Feed{Scope: scope, watchers: map[Watcher]struct{}{}}
	f.snap.Store(snap)
	return f
}

// Snapshot is the newest one; never nil.
func (f *Feed) Snapshot() *Snapshot { return f.snap.Load() }

// Publish makes next the newest snapshot and then tells the watchers what
// differs from the one before (added, changed and deleted names).
func (f *Feed) Publish(next *Snapshot, changed []Key) {
	f.mu.Lock()
	f.snap.Store(next)
	watchers := slices.Collect(maps.Keys(f.watchers))
	f.mu.Unlock()
	for _, w := range watchers {
		w.Changed(changed)
	}
}

// Watch adds w. A change published before Watch returns may be reported or be
// part of the Snapshot already; w reads Snapshot after Watch.
func (f *Feed) Watch(w Watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[w] = struct{}{}
}

// Unwatch removes w. A Changed call may still be under way.
func (f *Feed) Unwatch(w Watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, w)
}
