package resource

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/persistent"
)

// Key names one resource of a scope.
type Key struct {
	Type Type
	Name string
}

// Table is all resources of one type that a scope may ask for, by name.
type Table = persistent.Map[*Resource]

// Snapshot is everything one scope gets. It never changes; the next one shares
// what stayed the same.
type Snapshot struct {
	Tables [NumTypes]Table
	// OnDemand names resources that a wildcard subscription does not carry:
	// they are sent only to who asks by name (gRPC API listeners, the sidecar's
	// per-host listeners).
	OnDemand [NumTypes]persistent.Map[struct{}]
}

// Get returns the resource of that name, or nil.
func (s *Snapshot) Get(t Type, name string) *Resource {
	r, _ := s.Tables[t].Get(name)
	return r
}

// Wildcard returns what a wildcard subscription of t carries, by name.
func (s *Snapshot) Wildcard(t Type) []*Resource {
	all := make([]*Resource, 0, s.Tables[t].Len())
	for name, r := range s.Tables[t].All() {
		if _, onDemand := s.OnDemand[t].Get(name); !onDemand {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *Resource) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}
