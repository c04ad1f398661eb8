package client

import (
	"maps"
	"slices"
	"sync"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// holdings is what the client has and wants, across connections.
type holdings struct {
	mu    sync.Mutex
	types [resource.NumTypes]holding
}

// holding is one type's part.
type holding struct {
	versions map[string]string   // of what the handler holds
	refs     map[string][]string // resource -> names that it needs of another type
	needed   map[string]int      // names wanted of this type, by the number of reasons
	pinned   map[string]struct{} // names wanted by Subscribe: one reason each
}

func newHoldings() *holdings {
	h := &holdings{}
	for t := range h.types {
		h.types[t] = holding{
			versions: map[string]string{}, refs: map[string][]string{},
			needed: map[string]int{}, pinned: map[string]struct{}{},
		}
	}
	return h
}

// pin adds or removes the reason Subscribe; changed says that the set of names did.
func (h *holdings) pin(t resource.Type, names []string, on bool) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ht := &h.types[t]
	for _, n := range names {
		if _, is := ht.pinned[n]; is == on {
			continue
		}
		if on {
			ht.pinned[n] = struct{}{}
			changed = ht.want(n, 1) || changed
		} else {
			delete(ht.pinned, n)
			changed = ht.want(n, -1) || changed
		}
	}
	return changed
}

// want changes the number of reasons for a name and says if it came or went.
func (ht *holding) want(name string, by int) bool {
	before := ht.needed[name]
	if before+by <= 0 {
		delete(ht.needed, name)
	} else {
		ht.needed[name] = before + by
	}
	return before == 0 || before+by == 0
}

// store notes that the handler holds a version, and what the resource needs.
func (h *holdings) store(t resource.Type, n Named, of resource.Type, needs []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.types[t].versions[n.Name] = n.Version
	h.refer(t, n.Name, of, needs)
}

// forget notes that the handler holds a resource no more, and says whether it did.
func (h *holdings) forget(t resource.Type, name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, held := h.types[t].versions[name]
	delete(h.types[t].versions, name)
	switch t {
	case resource.Cluster:
		h.refer(t, name, resource.Endpoints, nil)
	case resource.Listener:
		h.refer(t, name, resource.Route, nil)
	}
	return held
}

func (h *holdings) refer(t resource.Type, name string, of resource.Type, needs []string) {
	if of == t {
		return
	}
	for _, n := range needs {
		h.types[of].want(n, 1)
	}
	for _, n := range h.types[t].refs[name] {
		h.types[of].want(n, -1)
	}
	if len(needs) == 0 {
		delete(h.types[t].refs, name)
	} else {
		h.types[t].refs[name] = needs
	}
}

// names returns the names wanted of a type.
func (h *holdings) names(t resource.Type) map[string]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[string]struct{}, len(h.types[t].needed))
	for n := range h.types[t].needed {
		all[n] = struct{}{}
	}
	return all
}

// unneeded removes and returns what is held of a type that is had by name and that no
// reason is left for, sorted.
func (h *holdings) unneeded(t resource.Type) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var gone []string
	for n := range h.types[t].versions {
		if h.types[t].needed[n] == 0 {
			gone = append(gone, n)
			delete(h.types[t].versions, n)
		}
	}
	slices.Sort(gone)
	return gone
}

// versions returns a copy of the versions held of a type.
func (h *holdings) versions(t resource.Type) map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.types[t].versions)
}
