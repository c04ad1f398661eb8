package builtin

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// service derives a host from the workloads that announce it; nil without any.
// An endpoint stands at the workload's address and the application's port, as an
// application that registers itself is seen, so that the catalog's join brings
// callers to the sidecar. Where two workloads claim one address the later one
// holds it: the earlier is a predecessor whose lease has not ended.
func (n *run) service(h model.Host, leases []*lease) *model.Service {
	if len(leases) == 0 {
		delete(n.conflict, h)
		return nil
	}
	slices.SortFunc(leases, func(a, b *lease) int { return cmp.Compare(a.seq, b.seq) })
	first := leases[0].workload
	s := &model.Service{Host: h, Name: string(h), Namespace: cmp.Or(first.Namespace, "default")}
	type at struct {
		addr netip.AddrPort
		port uint16
	}
	place := map[at]int{}
	var conflict model.Rejected
	for _, l := range leases {
		w := l.workload
		for i := range w.Inbound {
			in := &w.Inbound[i]
			if host, err := model.ParseHost(in.Service); err != nil || host != h {
				continue
			}
			port := model.Port{Number: servicePort(in), Protocol: in.Protocol}
			if known, ok := s.Port(port.Number); !ok {
				s.Ports = append(s.Ports, port)
			} else if known.Protocol != port.Protocol {
				conflict = model.Rejected{
					Where:  fmt.Sprintf("%s:%d", h, port.Number),
					Reason: fmt.Sprintf("workload %s announces %v, an earlier one %v, which holds", w.Name, port.Protocol, known.Protocol),
				}
			}
			ep := model.Endpoint{
				Address: netip.AddrPortFrom(w.Address, in.App.Port()), Port: port.Number,
				Weight: w.Weight, Health: w.Health, Labels: endpointLabels(w), Locality: w.Locality,
			}
			key := at{ep.Address, ep.Port}
			if was, ok := place[key]; ok {
				s.Endpoints[was] = ep
				continue
			}
			place[key] = len(s.Endpoints)
			s.Endpoints = append(s.Endpoints, ep)
		}
	}
	sortService(s)
	if delete(n.conflict, h); conflict.Where != "" {
		if n.conflict == nil {
			n.conflict = map[model.Host]model.Rejected{}
		}
		n.conflict[h] = conflict
	}
	return s
}

func servicePort(in *model.Inbound) uint16 {
	return cmp.Or(in.ServicePort, in.Protocol.DefaultPort())
}

// endpointLabels are the workload's, with its application unless they name one.
func endpointLabels(w *model.Workload) model.Labels {
	if _, ok := w.Labels.Get("app"); ok || w.App == "" {
		return w.Labels
	}
	return w.Labels.With(model.NewLabels(map[string]string{"app": w.App}))
}

// placeOf is where the endpoint of w's inbound port i stands.
func placeOf(w *model.Workload, i int) netip.AddrPort {
	return netip.AddrPortFrom(w.Address, w.Inbound[i].App.Port())
}

// meshed is the workload of l as the catalog joins it: without the ports that no
// sidecar serves, and those whose place a later registration holds. r.mu is held.
func (r *Registry) meshed(l *lease) *model.Workload {
	w := l.workload
	kept := make([]model.Inbound, 0, len(w.Inbound))
	for i, in := range w.Inbound {
		if in.Listen.IsValid() && r.holds(l, placeOf(w, i)) {
			kept = append(kept, in)
		}
	}
	if len(kept) == len(w.Inbound) {
		return w
	}
	out := *w
	out.Inbound = kept
	return &out
}

// holds reports whether l registered last of those at a place; r.mu is held.
func (r *Registry) holds(l *lease, at netip.AddrPort) bool {
	for other := range r.byPlace[at] {
		if other.seq > l.seq {
			return false
		}
	}
	return true
}

// keeping returns s with what before had at other places, for a time in which
// nobody knows who of before lives.
func keeping(s, before *model.Service) *model.Service {
	if before == nil {
		return s
	}
	out := *s
	for _, p := range before.Ports {
		if _, ok := out.Port(p.Number); !ok {
			out.Ports = append(slices.Clip(out.Ports), p)
		}
	}
	for _, e := range before.Endpoints {
		same := func(o model.Endpoint) bool { return o.Address == e.Address && o.Port == e.Port }
		if !slices.ContainsFunc(s.Endpoints, same) {
			out.Endpoints = append(slices.Clip(out.Endpoints), e)
		}
	}
	sortService(&out)
	return &out
}

func sortService(s *model.Service) {
	slices.SortFunc(s.Ports, func(a, b model.Port) int { return cmp.Compare(a.Number, b.Number) })
	slices.SortFunc(s.Endpoints, func(a, b model.Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
}

func sameWorkload(a, b *model.Workload) bool {
	return a.Name == b.Name && a.Namespace == b.Namespace && a.App == b.App && a.Address == b.Address &&
		a.Labels == b.Labels && a.Locality == b.Locality && a.Weight == b.Weight && a.Health == b.Health &&
		a.MeshTLS == b.MeshTLS && slices.Equal(a.Inbound, b.Inbound)
}

// Bounds of a registration.
const (
	minTTL        = time.Second
	maxTTL        = time.Hour
	maxNameBytes  = 253 // as a DNS name
	maxLabelBytes = 1 << 10
	maxInbound    = 64
	maxWeight     = 1_000_000
)
