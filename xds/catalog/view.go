package catalog

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/persistent"
)

// View is the merged state at one moment. It never changes and costs a few
// hundred bytes more than the one before it.
type View struct {
	version   uint64
	services  persistent.Map[*model.Service]
	workloads persistent.Map[*model.Workload] // by "<source>/<name>"
	statuses  []model.SourceStatus            // ascending by source

	sorted     sync.Once
	sortedList []*model.Service
}

// next returns a copy to be changed and published as the following version.
func (v *View) next() *View {
	return &View{version: v.version + 1, services: v.services, workloads: v.workloads, statuses: v.statuses}
}

// Version grows with every change of anything in the view.
func (v *View) Version() uint64 { return v.version }

// Service returns the merged service of a host, or the part of it that one
// registry holds for "<host>@<registry>"; nil when there is none.
func (v *View) Service(host model.Host) *model.Service {
	if s, ok := v.services.Get(string(host)); ok {
		return s
	}
	name, registry, ok := host.CutRegistry()
	if !ok {
		return nil
	}
	whole, ok := v.services.Get(string(name))
	if !ok || !slices.ContainsFunc(whole.Registries, func(r string) bool { return strings.EqualFold(r, registry) }) {
		return nil
	}
	part := *whole
	part.Host = host
	part.Registries = []string{registry}
	part.Endpoints = nil
	for _, e := range whole.Endpoints {
		if slices.ContainsFunc(e.Registries, func(r string) bool { return strings.EqualFold(r, registry) }) {
			part.Endpoints = append(part.Endpoints, e)
		}
	}
	return &part
}

// Services lists all services by host. The slice belongs to the view.
func (v *View) Services() []*model.Service {
	v.sorted.Do(func() {
		v.sortedList = make([]*model.Service, 0, v.services.Len())
		for _, s := range v.services.All() {
			v.sortedList = append(v.sortedList, s)
		}
		slices.SortFunc(v.sortedList, func(a, b *model.Service) int { return strings.Compare(string(a.Host), string(b.Host)) })
	})
	return v.sortedList
}

// Workloads lists all workloads by source and name.
func (v *View) Workloads() []*model.Workload {
	byKey := maps.Collect(v.workloads.All())
	list := make([]*model.Workload, 0, len(byKey))
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		list = append(list, byKey[key])
	}
	return list
}

// Statuses lists the state of every source, by name. The slice belongs to the view.
func (v *View) Statuses() []model.SourceStatus { return v.statuses }
