package catalog

import (
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// originLabel names the source whose report of an endpoint won.
const originLabel = "mesh-origin"

// merge joins the parts of host that its sources hold; nil when none does.
// Called with mu held.
func (c *Catalog) merge(host model.Host) *model.Service {
	holders := c.holders[host] // by priority
	if len(holders) == 0 {
		return nil
	}
	first := holders[0].services[host]
	m := &model.Service{Host: host, Name: first.Name, Namespace: first.Namespace}
	if m.Namespace == "" {
		m.Namespace = "default"
	}
	total := 0
	for _, src := range holders {
		part := src.services[host]
		m.Registries = append(m.Registries, src.name)
		m.Ports = mergePorts(m.Ports, part.Ports)
		m.Addresses = append(m.Addresses, part.Addresses...)
		total += len(part.Endpoints)
	}
	slices.Sort(m.Registries)
	slices.SortFunc(m.Addresses, func(a, b netip.Prefix) int {
		if d := a.Addr().Compare(b.Addr()); d != 0 {
			return d
		}
		return a.Bits() - b.Bits()
	})
	m.Addresses = slices.Compact(m.Addresses)

	merged := make([]model.Endpoint, 0, total)
	origins := originCache{}
	for _, src := range holders {
		only := []string{src.name} // shared: nobody modifies it
		for _, e := range src.services[host].Endpoints {
			e.Registries = only
			e.Labels = origins.label(e.Labels, src.name)
			if e.Weight == 0 {
				e.Weight = model.DefaultWeight
			}
			merged = append(merged, e)
		}
	}
	// One registry may hold the application's address and another, written by
	// its sidecar, the listener's: they are one endpoint once they are joined.
	for i := range merged {
		c.joinEndpoint(&merged[i])
	}
	// Stable: reports of one endpoint stay in the order of their sources.
	slices.SortStableFunc(merged, compareEndpoints)
	m.Endpoints = foldEndpoints(merged, c.priority)
	return m
}

// mergePorts adds the ports of a source of lower priority; on one number the
// earlier source decides the protocol.
func mergePorts(ports, more []model.Port) []model.Port {
	ports = slices.Clip(ports)
	for _, p := range more {
		i, found := slices.BinarySearchFunc(ports, p.Number, func(a model.Port, n uint16) int { return int(a.Number) - int(n) })
		if !found {
			ports = slices.Insert(ports, i, p)
		}
	}
	return ports
}

func compareEndpoints(a, b model.Endpoint) int {
	if d := a.Address.Compare(b.Address); d != 0 {
		return d
	}
	return int(a.Port) - int(b.Port)
}

// foldEndpoints makes one endpoint of the reports of one address: the source of
// highest priority wins, among equals the newest report; the worst health wins
// whoever says it.
func foldEndpoints(sorted []model.Endpoint, priority map[string]int) []model.Endpoint {
	out := sorted[:0]
	for _, e := range sorted {
		if len(out) == 0 || compareEndpoints(out[len(out)-1], e) != 0 {
			out = append(out, e)
			continue
		}
		have := &out[len(out)-1]
		registries := have.Registries
		if !slices.Contains(registries, e.Registries[0]) {
			registries = append(slices.Clip(registries), e.Registries[0])
		}
		health := max(have.Health, e.Health)
		samePriority := priority[have.Registries[0]] == priority[e.Registries[0]]
		if samePriority && e.Changed.After(have.Changed) {
			// The winner stands first until the end.
			i := slices.Index(registries, e.Registries[0])
			registries = slices.Clone(registries)
			registries[0], registries[i] = registries[i], registries[0]
			*have = e
		}
		have.Registries, have.Health = registries, health
	}
	for i := range out {
		if len(out[i].Registries) > 1 {
			out[i].Registries = slices.Sorted(slices.Values(out[i].Registries))
		}
	}
	return out
}

// originCache adds the origin label to label sets, each distinct pair once a merge.
type originCache map[originKey]model.Labels

type originKey struct {
	labels model.Labels
	source string
}

func (o originCache) label(l model.Labels, source string) model.Labels {
	key := originKey{l, source}
	labelled, ok := o[key]
	if !ok {
		labelled = l.With(model.NewLabels(map[string]string{originLabel: source}))
		o[key] = labelled
	}
	return labelled
}

// Change says what differs in a service between two views.
type Change uint8

// What may change.
const (
	// ShapeChanged: existence, name, namespace, ports, addresses or registries.
	ShapeChanged Change = 1 << iota
	// EndpointsChanged: the set of endpoints or anything of one of them.
	EndpointsChanged
)

// diff compares the merged service before and after.
func diff(old, next *model.Service) Change {
	if old == nil && next == nil {
		return 0
	}
	if old == nil || next == nil {
		return ShapeChanged | EndpointsChanged
	}
	var change Change
	if old.Name != next.Name || old.Namespace != next.Namespace || !slices.Equal(old.Ports, next.Ports) ||
		!slices.Equal(old.Addresses, next.Addresses) || !slices.Equal(old.Registries, next.Registries) {
		change |= ShapeChanged
	}
	if !slices.EqualFunc(old.Endpoints, next.Endpoints, sameEndpoint) {
		change |= EndpointsChanged
	}
	return change
}

// sameEndpoint ignores Changed: a renewed registration alone is no news.
func sameEndpoint(a, b model.Endpoint) bool {
	return a.Address == b.Address && a.Registered == b.Registered && a.Port == b.Port && a.Weight == b.Weight &&
		a.Health == b.Health && a.Labels == b.Labels && a.Locality == b.Locality && a.Workload == b.Workload &&
		a.MeshTLS == b.MeshTLS && slices.Equal(a.Registries, b.Registries)
}
