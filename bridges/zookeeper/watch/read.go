package watch

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"
)

// tree is what a reader needs of a session.
type tree interface {
	// list returns the names of path's children; with watch, one event comes
	// when they change.
	list(path string, watch bool) ([]string, error)
	// get returns the data of path and when it was written, in ms; one event
	// comes when that changes.
	get(path string) (data []byte, mtime int64, err error)
	// absent asks for one event when path appears, and reports that it is not
	// there.
	absent(path string) (bool, error)
}

// reading is what came of an order.
type reading struct {
	unit    *unit
	started time.Time
	took    time.Duration
	names   []string         // of a root: its services
	nodes   map[string]*node // of a service: all that is there, or with err what was read so far
	stale   map[string]bool  // of the order
	watched bool             // a watch was set on the list
	err     error            // nil: the reading is complete
}

// providersNode is the child of a Dubbo interface under which providers are.
const providersNode = "providers"

// carryOut reads what o orders. It does not return before the server answered or
// the session ended.
func (o order) carryOut(t tree) reading {
	r := reading{unit: o.unit, started: time.Now(), stale: o.stale}
	switch {
	case o.root:
		o.readRoot(t, &r)
	case o.layout == Dubbo:
		o.readProviders(t, &r)
	default:
		o.readInstances(t, &r)
	}
	r.took = time.Since(r.started)
	return r
}

// listing reads a list whose node may not exist, in which case ok is false.
func (o order) listing(t tree, path string, watch bool, r *reading) (names []string, ok bool) {
	names, err := t.list(path, watch)
	switch {
	case err == nil:
		r.watched = r.watched || watch
		return names, true
	case !errors.Is(err, zk.ErrNoNode):
		r.err = err
	}
	return nil, false
}

// appearTries bounds how often a reading starts again because a node appeared
// between two of its requests; each time costs somebody a create and a delete.
const appearTries = 10

// errUnsteady says that a node came and went faster than it could be read.
var errUnsteady = errors.New("the node appears and disappears too fast to be read")

// readRoot lists a root's services. A root that does not exist has none, and a
// watch waits for it.
func (o order) readRoot(t tree, r *reading) {
	for range appearTries {
		names, ok := o.listing(t, o.path, o.watch, r)
		if ok || r.err != nil {
			r.names = names
			return
		}
		var absent bool
		if absent, r.err = t.absent(o.path); absent || r.err != nil {
			r.watched = true
			return
		}
	}
	r.err = errUnsteady
}

// readProviders reads an interface: the names of its providers' nodes say all.
func (o order) readProviders(t tree, r *reading) {
	path := join(o.path, providersNode)
	for range appearTries {
		names, ok := o.listing(t, path, o.watch, r)
		if r.err != nil {
			return
		}
		if !ok {
			// Nobody provides it, or not yet: then the interface's own
			// children tell when somebody does.
			siblings, there := o.listing(t, o.path, true, r)
			if r.err != nil {
				return
			}
			if there && slices.Contains(siblings, providersNode) {
				continue
			}
		}
		r.nodes = make(map[string]*node, len(names))
		for _, name := range names {
			n := o.cache[name]
			if n == nil {
				n = fromProvider(name, o.service, o.ports)
			}
			r.nodes[name] = n
		}
		return
	}
	r.err = errUnsteady
}

// readInstances reads a service whose entries have data: the list if it changed,
// then what is new in it or changed.
func (o order) readInstances(t tree, r *reading) {
	names := slices.Collect(maps.Keys(o.cache))
	if o.relist {
		names, _ = o.listing(t, o.path, o.watch, r)
		if r.err != nil {
			return
		}
	}
	var mu sync.Mutex // guards nodes
	nodes := make(map[string]*node, len(names))
	var group errgroup.Group
	group.SetLimit(maxGets)
	for _, name := range names {
		old := o.cache[name]
		if old != nil && !old.unreadable && !o.stale[name] {
			mu.Lock()
			nodes[name] = old
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			n, err := o.readInstance(t, name, old)
			if n == nil && err != nil {
				n = old // as it was, until it can be read
			}
			mu.Lock()
			defer mu.Unlock()
			if n != nil {
				nodes[name] = n
			}
			return err
		})
	}
	r.err = group.Wait()
	r.nodes = nodes
}

// readInstance reads one entry; nil without an error means that it is gone. One
// that cannot be understood keeps what it last registered: somebody still holds
// the node, and unknown is not gone.
func (o order) readInstance(t tree, name string, old *node) (*node, error) {
	last := old
	if last == nil {
		last = o.before[name]
	}
	path := join(o.path, name)
	data, mtime, err := t.get(path)
	switch {
	case err == nil:
		n := fromInstance(data, mtime, o.service, o.ports)
		if n.reject != "" && len(n.registrations) == 0 {
			n.keep(last)
		}
		return n, nil
	case errors.Is(err, zk.ErrNoNode):
		return nil, nil
	case errors.Is(err, zk.ErrNoAuth):
		// One entry that is closed to us must not hold up its neighbours.
		n := &node{reject: "cannot be read: " + err.Error(), unreadable: true}
		n.keep(last)
		return n, nil
	}
	return nil, err
}
