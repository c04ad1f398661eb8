package catalog

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// join is one inbound port of a workload: endpoints registered at the
// application's address are reached at listen.
type join struct {
	source   *source
	workload *model.Workload
	listen   netip.AddrPort
}

// join indexes the inbound ports of w and marks the hosts they serve.
func (c *Catalog) join(src *source, w *model.Workload, touched map[model.Host]struct{}) {
	for _, in := range w.Inbound {
		for _, at := range joinedAt(w, in) {
			list := append(slices.Clip(c.joins[at]), join{src, w, listenAt(w, in)})
			slices.SortStableFunc(list, func(a, b join) int {
				if d := c.byPriority(a.source, b.source); d != 0 {
					return d
				}
				return strings.Compare(a.workload.Name, b.workload.Name)
			})
			c.joins[at] = list
			c.touchHostsAt(at, touched)
		}
	}
}

// unjoin takes the inbound ports of w out of the index.
func (c *Catalog) unjoin(src *source, w *model.Workload, touched map[model.Host]struct{}) {
	for _, in := range w.Inbound {
		for _, at := range joinedAt(w, in) {
			c.dropJoin(src, w, at)
			c.touchHostsAt(at, touched)
		}
	}
}

// joinedAt are the addresses at which registries may hold the port: the
// application's own, and the listener's where a sidecar registered itself.
func joinedAt(w *model.Workload, in model.Inbound) []netip.AddrPort {
	app, listen := registeredAt(w, in), listenAt(w, in)
	if app == listen {
		return []netip.AddrPort{app}
	}
	return []netip.AddrPort{app, listen}
}

func (c *Catalog) dropJoin(src *source, w *model.Workload, at netip.AddrPort) {
	rest := slices.DeleteFunc(slices.Clone(c.joins[at]), func(j join) bool {
		return j.source == src && j.workload.Name == w.Name
	})
	if len(rest) == 0 {
		delete(c.joins, at)
	} else {
		c.joins[at] = rest
	}
}

func (c *Catalog) touchHostsAt(at netip.AddrPort, touched map[model.Host]struct{}) {
	for _, host := range c.hostsAt[at] {
		touched[host] = struct{}{}
	}
}

// registeredAt is the address under which registries know the application
// behind an inbound port: the workload's, never the loopback that its sidecar
// dials, since another machine's 127.0.0.1 is another application.
func registeredAt(w *model.Workload, in model.Inbound) netip.AddrPort {
	return netip.AddrPortFrom(w.Address, in.App.Port())
}

func listenAt(w *model.Workload, in model.Inbound) netip.AddrPort {
	ip := in.Listen.Addr()
	if ip.IsUnspecified() || !ip.IsValid() {
		ip = w.Address
	}
	return netip.AddrPortFrom(ip, in.Listen.Port())
}

// joinEndpoint sends an endpoint through the sidecar of its workload, if it has
// one. What the registry says of it stays; the workload fills what the registry
// does not know (the version of a Spring application, say).
func (c *Catalog) joinEndpoint(e *model.Endpoint) {
	list := c.joins[e.Address]
	if len(list) == 0 {
		return
	}
	w := list[0].workload
	if e.Address != list[0].listen {
		e.Registered, e.Address = e.Address, list[0].listen
	}
	e.Workload, e.MeshTLS = w.Name, w.MeshTLS
	e.Labels = w.Labels.With(e.Labels)
	if w.App != "" {
		if _, ok := e.Labels.Get("app"); !ok {
			e.Labels = e.Labels.With(model.NewLabels(map[string]string{"app": w.App}))
		}
	}
	if e.Locality == (model.Locality{}) {
		e.Locality = w.Locality
	}
	e.Health = max(e.Health, w.Health)
}
