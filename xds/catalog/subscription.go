package catalog

import (
	"sync"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Subscription collects what changes until its reader takes it: a slow reader
// sees fewer, larger steps, and never an old state.
type Subscription struct {
	catalog *Catalog
	wake    chan struct{} // capacity 1: a pending wake-up stands for all changes

	mu      sync.Mutex // guards changes
	changes map[model.Host]Change
}

// Subscribe starts a subscription; its first Take names every service there is.
func (c *Catalog) Subscribe() *Subscription {
	s := &Subscription{catalog: c, wake: make(chan struct{}, 1), changes: map[model.Host]Change{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for host := range c.view.Load().services.All() {
		s.changes[model.Host(host)] = ShapeChanged | EndpointsChanged
	}
	c.subs[s] = struct{}{}
	s.wake <- struct{}{}
	return s
}

// add is called with the catalog's mu held; it only marks.
func (s *Subscription) add(changes map[model.Host]Change) {
	s.mu.Lock()
	for host, change := range changes {
		s.changes[host] |= change
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // the reader will find these changes with the pending wake-up
	}
}

// Wake delivers one value when there is something to take.
func (s *Subscription) Wake() <-chan struct{} { return s.wake }

// Take returns the newest view and what changed since the last Take; every
// change named is in the view, and a change in the view that is not named yet
// will be by a later Take.
func (s *Subscription) Take() (*View, map[model.Host]Change) {
	s.mu.Lock()
	changes := s.changes
	s.changes = map[model.Host]Change{}
	s.mu.Unlock()
	return s.catalog.View(), changes
}

// Close ends the subscription. Wake delivers nothing more.
func (s *Subscription) Close() {
	s.catalog.mu.Lock()
	defer s.catalog.mu.Unlock()
	delete(s.catalog.subs, s)
}
