package proxy

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/isthmus-mesh/isthmus/proxy/listener"
	"github.com/isthmus-mesh/isthmus/proxy/snapshot"
	"github.com/isthmus-mesh/isthmus/xds/client"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// handler hands what the control plane sends to the store.
type handler struct{ store *snapshot.Store }

// Apply implements client.Handler.
func (h handler) Apply(ch client.Change) []client.Rejection {
	change := snapshot.Change{Type: ch.Type, Removed: slices.Concat(ch.Removed, ch.Missing)}
	for _, r := range ch.Updated {
		change.Updated = append(change.Updated, snapshot.Resource{Name: r.Name, Version: r.Version, Body: r.Body})
	}
	var out []client.Rejection
	for _, refused := range h.store.Apply(change) {
		for _, reason := range refused.Reasons {
			out = append(out, client.Rejection{Name: refused.Name, Field: reason.Path, Reason: reason.Reason})
		}
	}
	return out
}

// newClient makes the control plane's client, which resumes with what is held and
// asks for the listeners of egress services by name.
func (p *Proxy) newClient(onDemand map[string]netip.AddrPort) (*client.Client, error) {
	cfg := client.Config{
		Node:        p.cfg.Bootstrap.Node(p.cfg.Version),
		DialOptions: p.cfg.DialOptions,
		Handler:     handler{p.store},
		Initial:     map[resource.Type][]client.Named{},
		Subscribe:   map[resource.Type][]string{},
		Log:         p.cfg.Log,
		Registerer:  p.cfg.Registry,
	}
	for _, a := range p.cfg.Bootstrap.MeshServer {
		cfg.Targets = append(cfg.Targets, a.String())
	}
	for name := range onDemand {
		cfg.Subscribe[resource.Listener] = append(cfg.Subscribe[resource.Listener], name)
	}
	for t := range resource.Type(resource.NumTypes) {
		for _, r := range p.store.Held(t) {
			cfg.Initial[t] = append(cfg.Initial[t], client.Named{Name: r.Name, Version: r.Version, Body: r.Body})
		}
	}
	return client.New(cfg)
}

// load takes over what an earlier process kept, but for on-demand listeners that
// nobody asks for any longer.
func (p *Proxy) load(onDemand map[string]netip.AddrPort) error {
	n, err := p.store.Load()
	if err != nil || n == 0 {
		return err
	}
	var stale []string
	for name, l := range p.store.Listeners() {
		if _, wanted := onDemand[name]; l.OnDemand && !wanted {
			stale = append(stale, name)
		}
	}
	p.store.Apply(snapshot.Change{Type: resource.Listener, Removed: stale})
	p.kept.Store(int64(n))
	p.cfg.Log.Info("last configuration taken over", "resources", n, "changed", p.store.Changed())
	return nil
}

// addresses gives every egress service its loopback address. All ports of a host
// share one.
func (p *Proxy) addresses() (map[string]netip.AddrPort, error) {
	b := &p.cfg.Bootstrap
	allocator, err := listener.NewAllocator(b.Loopback, filepath.Join(b.DataDir, loopbackFile))
	if err != nil {
		return nil, err
	}
	wanted := b.Wanted()
	fixed := map[model.Host]netip.Addr{}
	var reserved []netip.Addr
	for _, w := range wanted {
		if host, _, ok := resource.ParseHostPort(w.Listener); ok && w.Address.IsValid() {
			fixed[host] = w.Address
			reserved = append(reserved, w.Address)
		}
	}
	var services []string
	for _, w := range wanted {
		if host, _, _ := resource.ParseHostPort(w.Listener); !fixed[host].IsValid() {
			services = append(services, string(host))
		}
	}
	allocated, err := allocator.Allocate(services, reserved...)
	if len(allocated) < len(slices.Compact(slices.Sorted(slices.Values(services)))) {
		return nil, err
	}
	if err != nil {
		p.cfg.Log.Error("loopback addresses not kept", "error", err)
	}
	out := make(map[string]netip.AddrPort, len(wanted))
	for _, w := range wanted {
		host, _, _ := resource.ParseHostPort(w.Listener)
		addr := w.Address
		if !addr.IsValid() {
			addr = fixed[host]
		}
		if !addr.IsValid() {
			addr = allocated[string(host)]
		}
		out[w.Listener] = netip.AddrPortFrom(addr, w.Port)
	}
	return out, nil
}

// connectionLimit is four fifths of the files that the process may open: most
// callers' connections are idle at any time and have no upstream connection.
func connectionLimit() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<20 {
		return 1 << 20 * 4 / 5
	}
	return max(1, int(limit.Cur)*4/5)
}

// some joins the first few of names for a sentence.
func some(names []string) string {
	const shown = 5
	if len(names) <= shown {
		return strings.Join(names, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(names[:shown], "; "), len(names)-shown)
}
