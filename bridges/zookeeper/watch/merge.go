package watch

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// variantsLabel lists, where one address serves several groups or versions of an
// interface, all of them: "a/1.0.0,b/2.0.0". The endpoint's own group and version
// are those registered last.
const variantsLabel = "dubbo.variants"

// place is the identity of an endpoint within a host.
type place struct {
	address netip.AddrPort
	port    uint16
}

// merged is what a service is made of.
type merged struct {
	ports     map[uint16]model.Protocol
	endpoints map[place]model.Endpoint
	variants  map[place][]string
}

func newMerged() *merged {
	return &merged{ports: map[uint16]model.Protocol{}, endpoints: map[place]model.Endpoint{}, variants: map[place][]string{}}
}

// add takes r in. Of several at one place the one registered last holds: an
// application that came back quickly is listed twice until its old session ends.
func (m *merged) add(r registration) {
	if old, ok := m.ports[r.port]; !ok || r.protocol < old {
		m.ports[r.port] = r.protocol
	}
	at := place{r.address, r.port}
	if r.variant != "" && !slices.Contains(m.variants[at], r.variant) {
		m.variants[at] = append(m.variants[at], r.variant)
	}
	e := model.Endpoint{
		Address: r.address, Port: r.port, Weight: r.weight, Health: r.health, Labels: r.labels, Locality: r.locality, Changed: r.changed,
	}
	if old, ok := m.endpoints[at]; ok && !newer(e, old) {
		return
	}
	m.endpoints[at] = e
}

// newer orders two endpoints at one place the same way whichever comes first.
func newer(a, b model.Endpoint) bool {
	order := cmp.Or(a.Changed.Compare(b.Changed), -cmp.Compare(a.Health, b.Health), cmp.Compare(a.Labels.String(), b.Labels.String()))
	return order > 0
}

// keepPorts gives a service that has no endpoint left the ports it had: callers
// are told that nobody serves it, not that it does not exist.
func (m *merged) keepPorts(old *model.Service) {
	if old == nil || len(m.ports) > 0 {
		return
	}
	for _, p := range old.Ports {
		m.ports[p.Number] = p.Protocol
	}
}

// keep adds what an older reading had and m lacks, for a service of which a part
// could not be read.
func (m *merged) keep(old *model.Service) {
	if old == nil {
		return
	}
	for _, p := range old.Ports {
		if _, ok := m.ports[p.Number]; !ok {
			m.ports[p.Number] = p.Protocol
		}
	}
	for _, e := range old.Endpoints {
		at := place{e.Address, e.Port}
		if _, ok := m.endpoints[at]; !ok {
			m.endpoints[at] = e
		}
	}
}

// service returns the service, or nil when nothing is known of it.
func (m *merged) service(host model.Host, name, namespace string) *model.Service {
	if len(m.ports) == 0 {
		return nil
	}
	s := &model.Service{Host: host, Name: name, Namespace: namespace}
	for _, number := range slices.Sorted(maps.Keys(m.ports)) {
		protocol := m.ports[number]
		s.Ports = append(s.Ports, model.Port{Number: number, Protocol: protocol, Name: protocol.String()})
	}
	s.Endpoints = make([]model.Endpoint, 0, len(m.endpoints))
	for at, e := range m.endpoints {
		if several := m.variants[at]; len(several) > 1 {
			slices.Sort(several)
			over := model.NewLabels(map[string]string{variantsLabel: strings.Join(several, ",")})
			if all := e.Labels.With(over); all.Bytes() <= maxLabelBytes {
				e.Labels = all
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	slices.SortFunc(s.Endpoints, func(a, b model.Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
	return s
}
