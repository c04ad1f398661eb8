package rules

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func (d *reader) serviceEntry(se *networking.ServiceEntry) {
	if len(se.Hosts) == 0 {
		d.failAt("spec.hosts", "is missing")
	}
	for i, h := range se.Hosts {
		d.host(fmt.Sprintf("spec.hosts[%d]", i), h, false)
	}
	for i, a := range se.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			d.failf(fmt.Sprintf("spec.addresses[%d]", i), "%q, want a single IP address", a)
		}
	}
	d.only("spec.exportTo", se.ExportTo, "*")
	if se.Resolution != networking.ServiceEntry_STATIC {
		d.failf("spec.resolution", "%v is not enforced yet, so it is refused; want STATIC", se.Resolution)
	}
	d.servicePorts(se.Ports)
	if se.WorkloadSelector != nil {
		if len(se.WorkloadSelector.Labels) == 0 {
			d.failAt("spec.workloadSelector.labels", "is empty, which would choose every workload")
		}
		d.labels("spec.workloadSelector.labels", se.WorkloadSelector.Labels)
		if se.Location != networking.ServiceEntry_MESH_INTERNAL {
			d.failAt("spec.workloadSelector", "wants location: MESH_INTERNAL")
		}
		if len(se.Endpoints) > 0 {
			d.failAt("spec.workloadSelector", "excludes endpoints")
		}
	}
	ports := map[string]bool{}
	for _, p := range se.Ports {
		ports[p.Name] = true
	}
	for i, e := range se.Endpoints {
		d.workload(e, fmt.Sprintf("spec.endpoints[%d]", i), ports)
	}
}

func (d *reader) servicePorts(ports []*networking.ServicePort) {
	if len(ports) == 0 {
		d.failAt("spec.ports", "is missing")
	}
	numbers, names := map[uint32]int{}, map[string]int{}
	for i, p := range ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if p.Number == 0 || p.Number > math.MaxUint16 {
			d.failf(at+".number", "%d, want 1 to 65535", p.Number)
		}
		if p.TargetPort > math.MaxUint16 {
			d.failf(at+".targetPort", "%d, want 1 to 65535", p.TargetPort)
		}
		if p.Name == "" {
			d.failAt(at+".name", "is missing")
		}
		if _, err := model.ParseProtocol(p.Protocol); err != nil {
			d.failAt(at+".protocol", err.Error())
		}
		if first, twice := numbers[p.Number]; twice {
			d.failf(at+".number", "%d is taken by ports[%d]", p.Number, first)
		}
		if first, twice := names[p.Name]; twice {
			d.failf(at+".name", "%q is taken by ports[%d]", p.Name, first)
		}
		numbers[p.Number], names[p.Name] = i, i
	}
}

// workload checks an endpoint or a WorkloadEntry; ports, when not nil, are the
// names its ports may have.
func (d *reader) workload(e *networking.WorkloadEntry, path string, ports map[string]bool) {
	if e.Address == "" {
		d.failAt(path+".address", "is missing")
	} else if a, err := netip.ParseAddr(e.Address); err != nil || a.Zone() != "" || a.IsUnspecified() {
		d.failf(path+".address", "%q, want an IP address: names are not resolved yet", e.Address)
	}
	for name, port := range e.Ports {
		at := fmt.Sprintf("%s.ports[%s]", path, name)
		if port == 0 || port > math.MaxUint16 {
			d.failf(at, "%d, want 1 to 65535", port)
		}
		if ports != nil && !ports[name] {
			d.failAt(at, "no service port has this name")
		}
	}
	d.labels(path+".labels", e.Labels)
	if strings.Count(e.Locality, "/") > 2 {
		d.failf(path+".locality", "%q, want region/zone/subzone", e.Locality)
	}
	// Envoy refuses a locality whose weights sum to more than 2^32-1.
	const maxWeight = 1_000_000
	if e.Weight > maxWeight {
		d.failf(path+".weight", "%d, want 0 to %d", e.Weight, maxWeight)
	}
}

// Registry is what the ServiceEntry and WorkloadEntry rules of a set say, as one
// full update of a source. A host in several ServiceEntries of the set has the
// ports and endpoints of all; the oldest names a port's protocol.
func Registry(s Set) model.Update {
	update := model.Update{Full: true}
	var entries []*Rule
	byNamespace := map[string][]*Rule{} // of WorkloadEntries
	for _, r := range s.All() {
		switch spec := r.Spec.(type) {
		case *networking.ServiceEntry:
			entries = append(entries, r)
		case *networking.WorkloadEntry:
			byNamespace[r.Namespace] = append(byNamespace[r.Namespace], r)
			update.Workloads = append(update.Workloads, workloadOf(r, spec))
		}
	}
	slices.SortStableFunc(entries, func(a, b *Rule) int {
		if a.older(b) {
			return -1
		}
		return 1
	})
	services := map[model.Host]*model.Service{}
	for _, r := range entries {
		se := r.Spec.(*networking.ServiceEntry)
		endpoints := se.Endpoints
		if se.WorkloadSelector != nil {
			endpoints = nil
			want := model.NewLabels(se.WorkloadSelector.Labels)
			for _, w := range byNamespace[r.Namespace] {
				if we := w.Spec.(*networking.WorkloadEntry); model.NewLabels(we.Labels).Contains(want) {
					endpoints = append(endpoints, we)
				}
			}
		}
		for _, name := range se.Hosts {
			host := model.Host(strings.ToLower(name))
			svc := services[host]
			if svc == nil {
				svc = &model.Service{Host: host, Name: name, Namespace: r.Namespace}
				services[host] = svc
				update.Services = append(update.Services, svc)
			}
			addEntry(svc, se, endpoints)
		}
	}
	for _, svc := range services {
		slices.SortFunc(svc.Ports, func(a, b model.Port) int { return cmp.Compare(a.Number, b.Number) })
		slices.SortFunc(svc.Addresses, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		slices.SortStableFunc(svc.Endpoints, func(a, b model.Endpoint) int {
			return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
		})
		svc.Endpoints = slices.CompactFunc(svc.Endpoints, func(a, b model.Endpoint) bool {
			return a.Address == b.Address && a.Port == b.Port
		})
	}
	slices.SortFunc(update.Services, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	return update
}

func addEntry(svc *model.Service, se *networking.ServiceEntry, endpoints []*networking.WorkloadEntry) {
	for _, text := range se.Addresses {
		addr, err := netip.ParseAddr(text)
		if prefix := netip.PrefixFrom(addr, addr.BitLen()); err == nil && !slices.Contains(svc.Addresses, prefix) {
			svc.Addresses = append(svc.Addresses, prefix)
		}
	}
	for _, p := range se.Ports {
		number := uint16(p.Number)
		if _, taken := svc.Port(number); !taken {
			protocol, _ := model.ParseProtocol(p.Protocol) // checked by serviceEntry
			svc.Ports = append(svc.Ports, model.Port{Number: number, Protocol: protocol, Name: p.Name})
		}
		for _, e := range endpoints {
			addr, err := netip.ParseAddr(e.Address)
			if err != nil {
				continue // checked by workload
			}
			port := cmp.Or(e.Ports[p.Name], p.TargetPort, p.Number)
			svc.Endpoints = append(svc.Endpoints, model.Endpoint{
				Address: netip.AddrPortFrom(addr.Unmap(), uint16(port)), Port: number, Weight: e.Weight,
				Labels: model.NewLabels(e.Labels), Locality: localityOf(e.Locality),
			})
		}
	}
}

func workloadOf(r *Rule, we *networking.WorkloadEntry) *model.Workload {
	w := &model.Workload{
		Name: r.Namespace + "/" + r.Name, Namespace: r.Namespace, App: we.Labels["app"],
		Labels: model.NewLabels(we.Labels), Locality: localityOf(we.Locality), Weight: we.Weight,
	}
	if addr, err := netip.ParseAddr(we.Address); err == nil {
		w.Address = addr.Unmap()
	}
	return w
}

func localityOf(s string) model.Locality {
	parts := append(strings.SplitN(s, "/", 3), "", "")
	return model.Locality{Region: parts[0], Zone: parts[1], SubZone: parts[2]}
}
