package builtin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// check validates a workload and normalises its addresses in place; it returns the hosts
// that it announces, each once. The error names every mistake and wraps ErrInvalid.
func check(w *model.Workload, ttl time.Duration) ([]model.Host, error) {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf(field+": "+format, args...))
	}
	checkName(w.Name, "name", true, bad)
	checkName(w.App, "app", false, bad)
	checkName(w.Namespace, "namespace", false, bad)
	if ttl < minTTL || ttl > maxTTL {
		bad("ttl", "%v, want %v to %v", ttl, minTTL, maxTTL)
	}
	w.Address = w.Address.Unmap()
	if a := w.Address; !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		bad("address", "%v, want the IP at which others reach the workload", a)
	}
	if n := w.Labels.Bytes(); n > maxLabelBytes {
		bad("labels", "%d bytes, want at most %d", n, maxLabelBytes)
	}
	for k, v := range w.Labels.All() {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			bad("labels", "%q=%q is no UTF-8", k, v)
		}
	}
	if w.Weight > maxWeight {
		bad("weight", "%d, want at most %d", w.Weight, maxWeight)
	}
	if w.Health > model.Unhealthy {
		bad("health", "%d is none", uint8(w.Health))
	}
	if len(w.Inbound) > maxInbound {
		bad("inbound", "%d ports, want at most %d", len(w.Inbound), maxInbound)
		return nil, invalid(w.Name, errs)
	}
	var hosts []model.Host
	for i := range w.Inbound {
		in := &w.Inbound[i]
		field := fmt.Sprintf("inbound[%d].", i)
		in.App, in.Listen = unmap(in.App), unmap(in.Listen)
		checkApp(in, w.Address, field, bad)
		checkListen(in, w.Address, field, bad)
		for j := range i {
			other := &w.Inbound[j]
			if other.App.Port() == in.App.Port() {
				bad(field+"app", "port %d is inbound[%d]'s too; the registry tells them apart by port", in.App.Port(), j)
			}
			if in.Listen.IsValid() && overlap(other.Listen, in.Listen) {
				bad(field+"listen", "%v is inbound[%d]'s too", in.Listen, j)
			}
			if in.Service != "" && strings.EqualFold(other.Service, in.Service) && servicePort(other) == servicePort(in) && other.Protocol != in.Protocol {
				bad(field+"protocol", "%v, but inbound[%d] announces the same service and port as %v", in.Protocol, j, other.Protocol)
			}
		}
		if in.Service == "" {
			continue
		}
		h, err := model.ParseHost(in.Service)
		if err != nil {
			bad(field+"service", "%w", err)
		} else if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
		if servicePort(in) == 0 {
			bad(field+"servicePort", "is 0; %v has no default", in.Protocol)
		}
	}
	return hosts, invalid(w.Name, errs)
}

// unmap makes an IPv4 address of one that IPv6 wraps: others compare with ==.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// checkApp checks where the application listens. It is registered at the port of
// address, so it must be reached there: its sidecar dials it on this machine.
func checkApp(in *model.Inbound, address netip.Addr, field string, bad func(field, format string, args ...any)) {
	if !in.App.IsValid() {
		bad(field+"app", "is missing")
		return
	}
	if in.App.Port() == 0 {
		bad(field+"app", "%v has no port", in.App)
	}
	if ip := in.App.Addr(); address.IsValid() && ip != address && !ip.IsLoopback() && !ip.IsUnspecified() {
		bad(field+"app", "%v is of another machine, want a loopback address, 0.0.0.0, :: or the workload's %v", in.App, address)
	}
}

// checkListen checks where the sidecar listens against where the application does
// and where others reach the workload.
func checkListen(in *model.Inbound, address netip.Addr, field string, bad func(field, format string, args ...any)) {
	if in.Protocol > model.Bolt {
		bad(field+"protocol", "%d is none", uint8(in.Protocol))
	}
	if !in.Listen.IsValid() { // no sidecar
		if in.Service == "" {
			bad(field+"listen", "is missing, and so is service: the entry says nothing")
		}
		return
	}
	if in.Listen.Port() == 0 {
		bad(field+"listen", "has no port")
		return
	}
	if in.Listen.Addr().IsLoopback() && address.IsValid() && !address.IsLoopback() {
		bad(field+"listen", "%v is loopback, but the workload is reached at %v", in.Listen, address)
	}
	if overlap(in.App, in.Listen) {
		bad(field+"listen", "%v is where the application listens (%v)", in.Listen, in.App)
	}
}

// overlap reports whether two sockets cannot both be bound.
func overlap(a, b netip.AddrPort) bool {
	if !a.IsValid() || !b.IsValid() || a.Port() != b.Port() {
		return false
	}
	return a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()
}

// checkName takes what is readable in a URL, a label and a log line.
func checkName(s, field string, needed bool, bad func(field, format string, args ...any)) {
	if s == "" {
		if needed {
			bad(field, "is empty")
		}
		return
	}
	if len(s) > maxNameBytes {
		bad(field, "%d bytes, want at most %d", len(s), maxNameBytes)
		return
	}
	for _, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune("-._:/@", rune(c)) {
			bad(field, "%q has %q, want letters, digits and -._:/@", s, c)
			return
		}
	}
}

func invalid(name string, errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	shown := name
	if len(shown) > maxNameBytes {
		shown = shown[:maxNameBytes]
	}
	for i, err := range errs {
		errs[i] = fmt.Errorf("workload %q: %w", shown, err)
	}
	return fmt.Errorf("%w\n%w", ErrInvalid, errors.Join(errs...))
}
