package watch

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Rules say how Consul's instances become endpoints. All functions are pure.
type Rules struct {
	// Host names the host of a service; nil takes the service's own name.
	Host func(service, datacenter string) (string, error)
	// Namespace is the mesh namespace of the services.
	Namespace string
	// Protocol is what travels where an instance's meta names none.
	Protocol model.Protocol
	// ServicePorts overrides Protocol.DefaultPort. A protocol without either
	// (tcp) uses the instance's own port.
	ServicePorts map[model.Protocol]uint16
	// Tags and Meta choose instances: those that carry them all.
	Tags []string
	Meta map[string]string
}

// reserved is the service under which Consul's servers list themselves.
const reserved = "consul"

// Wants reports whether a service of the catalog is to be followed; reason is
// set when it cannot be, though it should.
func (r *Rules) Wants(service string, tags []string, datacenter string) (yes bool, reason string) {
	if service == reserved {
		return false, ""
	}
	for _, t := range r.Tags {
		if !slices.Contains(tags, t) {
			return false, ""
		}
	}
	if _, err := r.host(service, datacenter); err != nil {
		return false, err.Error()
	}
	// The agent's HTTP router would redirect such a path to another service.
	if path.Clean("/"+service) != "/"+service {
		return false, fmt.Sprintf("service %q cannot be asked for by path", service)
	}
	return true, ""
}

func (r *Rules) host(service, datacenter string) (model.Host, error) {
	name := service
	if r.Host != nil {
		var err error
		if name, err = r.Host(service, datacenter); err != nil {
			return "", err
		}
	}
	return model.ParseHost(name)
}

// part is what one service of one data centre contributes to a host.
type part struct {
	name      string
	ports     []model.Port
	endpoints []model.Endpoint // ascending by address, then port
	// instances are the addresses by identity: an instance that suddenly cannot
	// be read, those in unread, keeps what was known of it.
	instances map[wire.Key]netip.AddrPort
	unread    []wire.Key
	rejected  []model.Rejected
}

// keep takes over from the part before the instances that could not be read.
func (p *part) keep(before *part) {
	if before == nil || len(p.unread) == 0 {
		return
	}
	for _, key := range p.unread {
		addr, ok := before.instances[key]
		if !ok {
			continue
		}
		p.instances[key] = addr
		for _, ep := range before.endpoints {
			if ep.Address != addr {
				continue
			}
			p.endpoints = append(p.endpoints, ep)
			if port, ok := find(before.ports, ep.Port); ok {
				p.ports = unionPorts(p.ports, []model.Port{port})
			}
		}
	}
	p.endpoints = distinct(p.endpoints)
}

// maxRejected bounds what is kept of the reasons of one service.
const maxRejected = 20

func (p *part) reject(where, format string, args ...any) {
	if len(p.rejected) < maxRejected {
		p.rejected = append(p.rejected, model.Rejected{Where: where, Reason: fmt.Sprintf(format, args...)})
	}
}

// part turns an answer into a part; nil when no instance of the service is an
// ordinary one that the filters want.
func (r *Rules) part(datacenter, service string, in wire.Instances) *part {
	host, err := r.host(service, datacenter)
	if err != nil {
		return nil // Wants refused it before, with the reason
	}
	p := &part{name: service, instances: make(map[wire.Key]netip.AddrPort, len(in.Entries))}
	if r.Host != nil {
		p.name = string(host)
	}
	for _, bad := range in.Rejected {
		p.reject(fmt.Sprintf("%s[%d]", service, bad.At), "%s", bad.Reason)
		if bad.Key != (wire.Key{}) {
			p.unread = append(p.unread, bad.Key)
		}
	}
	wanted := 0
	for i := range in.Entries {
		e := &in.Entries[i]
		if !r.chosen(e.Service) {
			continue
		}
		wanted++
		where := service + "/" + e.Service.ID
		ep, port, err := r.endpoint(e, datacenter)
		if err != nil {
			p.reject(where, "%v", err)
			p.unread = append(p.unread, e.Key())
			continue
		}
		labels, left := labelsOf(e, cmp.Or(e.Node.Datacenter, datacenter))
		if left > 0 {
			p.reject(where, "labels exceed %d bytes: %d of them are left out", maxLabelBytes, left)
		}
		ep.Labels = labels
		if old, ok := find(p.ports, port.Number); !ok {
			p.ports = append(p.ports, port)
		} else if old.Protocol != port.Protocol {
			p.reject(where, "speaks %v on service port %d, which other instances serve as %v", port.Protocol, port.Number, old.Protocol)
		}
		p.endpoints = append(p.endpoints, ep)
		p.instances[e.Key()] = ep.Address
	}
	if wanted == 0 && len(in.Rejected) == 0 {
		return nil
	}
	slices.SortFunc(p.ports, func(a, b model.Port) int { return cmp.Compare(a.Number, b.Number) })
	p.endpoints = distinct(p.endpoints)
	return p
}

func find(ports []model.Port, number uint16) (model.Port, bool) {
	for _, p := range ports {
		if p.Number == number {
			return p, true
		}
	}
	return model.Port{}, false
}

// chosen leaves out Consul's own proxies and gateways, and what the filters exclude.
func (r *Rules) chosen(s *wire.Service) bool {
	if s.Kind != "" {
		return false
	}
	for _, t := range r.Tags {
		if !slices.Contains(s.Tags, t) {
			return false
		}
	}
	for k, v := range r.Meta {
		if s.Meta[k] != v {
			return false
		}
	}
	return true
}

func (r *Rules) endpoint(e *wire.Entry, datacenter string) (model.Endpoint, model.Port, error) {
	s := e.Service
	if s.SocketPath != "" {
		return model.Endpoint{}, model.Port{}, fmt.Errorf("listens on a Unix socket, which no other machine can reach")
	}
	number := s.Port
	for _, p := range s.Ports {
		if p.Default {
			number = p.Port
		}
	}
	if number < 1 || number > 65535 {
		return model.Endpoint{}, model.Port{}, fmt.Errorf("port is %d, want 1 to 65535", number)
	}
	text := cmp.Or(s.Address, e.Node.Address)
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return model.Endpoint{}, model.Port{}, fmt.Errorf("address %.100q is no IP address; host names are not resolved", text)
	case ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "":
		return model.Endpoint{}, model.Port{}, fmt.Errorf("address %q cannot be dialled from other machines", text)
	}
	ep := model.Endpoint{
		Address:  netip.AddrPortFrom(ip.Unmap(), uint16(number)),
		Locality: localityOf(e, datacenter),
	}
	ep.Health, ep.Weight = condition(e.Checks, s.Weights)
	port := model.Port{Protocol: r.protocol(s.Meta)}
	port.Number = cmp.Or(r.ServicePorts[port.Protocol], port.Protocol.DefaultPort(), uint16(number))
	ep.Port = port.Number
	return ep, port, nil
}

// protocol reads meta "protocol" and, as Spring Cloud Consul writes it,
// "secure". An unknown name is TCP: its bytes are carried and not touched.
func (r *Rules) protocol(meta map[string]string) model.Protocol {
	p := r.Protocol
	if name := meta["protocol"]; name != "" {
		p, _ = model.ParseProtocol(name) // TCP on error
	}
	if strings.EqualFold(meta["secure"], "true") && (p == model.HTTP || p == model.HTTP2) {
		p = model.TLS
	}
	return p
}

func localityOf(e *wire.Entry, datacenter string) model.Locality {
	l := model.Locality{Region: cmp.Or(e.Node.Datacenter, datacenter), Zone: e.Service.Meta["zone"]}
	for _, said := range []*wire.Locality{e.Node.Locality, e.Service.Locality} {
		if said != nil {
			l.Region, l.Zone = cmp.Or(said.Region, l.Region), cmp.Or(said.Zone, l.Zone)
		}
	}
	return l
}

// Check identifiers of maintenance mode, as Consul reserves them.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

// maxWeight is the largest weight Consul takes; with 100,000 endpoints of it the
// sum, in hundredths, is bounded by the translators, not here.
const maxWeight = 65535

// condition is the worst of the checks and the weight that goes with it. Weights
// are in units of model.DefaultWeight: Consul's default is 1. As in Consul's own
// xDS server a weight of 0 takes the endpoint out.
func condition(checks []wire.Check, w *wire.Weights) (model.Health, uint32) {
	health, warning := model.Healthy, false
	for _, c := range checks {
		switch {
		case c.CheckID == nodeMaintenance || strings.HasPrefix(c.CheckID, serviceMaintenance):
			health = max(health, model.Draining)
		case c.Status == "passing":
		case c.Status == "warning":
			warning = true
		default: // critical, and whatever a later version adds
			health = model.Unhealthy
		}
	}
	if w == nil {
		return health, model.DefaultWeight
	}
	weight := w.Passing
	if warning {
		weight = w.Warning
	}
	if weight <= 0 {
		return model.Unhealthy, model.DefaultWeight
	}
	return health, uint32(min(weight, maxWeight)) * model.DefaultWeight
}

// distinct sorts endpoints and keeps one an address and port: the healthiest. A
// node that died and came back under another name leaves its old registration
// behind, critical, at the address that now works.
func distinct(eps []model.Endpoint) []model.Endpoint {
	slices.SortStableFunc(eps, func(a, b model.Endpoint) int {
		return cmp.Or(compare(&a, &b), cmp.Compare(a.Health, b.Health))
	})
	return slices.CompactFunc(eps, func(a, b model.Endpoint) bool { return compare(&a, &b) == 0 })
}

// compare orders by identity.
func compare(a, b *model.Endpoint) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
}
