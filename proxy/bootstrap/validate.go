package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// nodeName is what may stand between the tildes and dots of a node id.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.:]{0,251}[A-Za-z0-9])?$`)

// Validate reports every mistake at once, each with the path of its key.
func (c *Config) Validate() error {
	v := validator{}
	v.workload(c)
	if len(c.MeshServer) == 0 {
		v.add("meshserver", "is empty, want at least one address")
	}
	for i, a := range c.MeshServer {
		if a.Port() == 0 {
			v.add(fmt.Sprintf("meshserver[%d]", i), "no port")
		}
	}
	if c.Lease < 3*time.Second || c.Lease > time.Hour {
		v.add("lease", "%v, want 3s to 1h", c.Lease)
	}
	v.listens(c)
	v.egress(c)
	if !c.Loopback.IsValid() || !c.Loopback.Addr().Is4() || !c.Loopback.Addr().IsLoopback() || c.Loopback.Bits() < 8 || c.Loopback.Bits() > 29 {
		v.add("loopback", "%v, want a prefix within 127.0.0.0/8 of at most 29 bits", c.Loopback)
	}
	if !c.Admin.Off() && !c.Admin.Addr().IsLoopback() {
		v.add("admin", "%v, want a loopback address: whoever reaches it controls the sidecar", c.Admin)
	}
	if c.DataDir == "" {
		v.add("dataDir", "is empty")
	}
	if c.DrainTime < 0 {
		v.add("drainTime", "%v, want at least 0", c.DrainTime)
	}
	if c.Limits.Connections < 0 {
		v.add("limits.connections", "%d, want at least 0", c.Limits.Connections)
	}
	if c.AccessLog.BufferBytes < 0 {
		v.add("accessLog.bufferBytes", "%d, want at least 0", c.AccessLog.BufferBytes)
	}
	return errors.Join(v.errs...)
}

type validator struct{ errs []error }

func (v *validator) add(path, format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

func (v *validator) workload(c *Config) {
	w := &c.Workload
	for _, name := range []struct{ path, value string }{
		{"workload.namespace", w.Namespace}, {"workload.app", w.App},
	} {
		if !nodeName.MatchString(name.value) {
			v.add(name.path, "%q, want letters, digits and -_.: up to 253 bytes", name.value)
		}
	}
	if w.Name != "" && !nodeName.MatchString(w.Name) {
		v.add("workload.name", "%q, want letters, digits and -_.: up to 253 bytes", w.Name)
	}
	switch {
	case !w.Address.IsValid() || w.Address.IsUnspecified() || w.Address.IsMulticast() || w.Address.Zone() != "":
		v.add("workload.address", "%v, want the address at which others reach the workload", w.Address)
	case w.Address.IsLoopback():
		for _, a := range c.MeshServer {
			if a.IsValid() && !a.Addr().IsLoopback() {
				v.add("workload.address", "%v cannot be reached from other hosts, but MeshServer is at %v", w.Address, a)
				break
			}
		}
	}
}

// listens checks inbound and that no two listeners want the same address.
func (v *validator) listens(c *Config) {
	taken := map[netip.AddrPort]string{}
	take := func(path string, a netip.AddrPort) {
		if !a.IsValid() {
			return
		}
		if a.Port() == 0 {
			v.add(path, "%v, want a port", a)
			return
		}
		for other, by := range taken {
			same := other.Addr() == a.Addr() || other.Addr().IsUnspecified() || a.Addr().IsUnspecified()
			if other.Port() == a.Port() && same {
				v.add(path, "%v is taken by %s", a, by)
				return
			}
		}
		taken[a] = path
	}
	take("admin", c.Admin.AddrPort)
	take("metrics", c.Metrics.AddrPort)
	take("readiness", c.Readiness.AddrPort)
	take("httpProxy", c.HTTPProxy.AddrPort)
	for i, in := range c.Inbound {
		at := fmt.Sprintf("inbound[%d]", i)
		if !in.App.IsValid() || in.App.Port() == 0 || in.App.Addr().IsUnspecified() {
			v.add(at+".app", "%v, want the address and port where the application listens", in.App)
		}
		if !in.Listen.IsValid() {
			v.add(at+".listen", "is missing")
		}
		take(at+".listen", in.Listen)
		if in.Listen.IsValid() && in.Listen == in.App {
			v.add(at+".listen", "%v is the application's own address", in.Listen)
		}
		if in.Service != "" {
			if _, err := model.ParseHost(in.Service); err != nil {
				v.add(at+".service", "%v", err)
			}
			if in.ServicePort == 0 && in.Protocol.DefaultPort() == 0 {
				v.add(at+".servicePort", "is missing: protocol %v has no port of its own", in.Protocol)
			}
		} else if in.ServicePort != 0 {
			v.add(at+".servicePort", "without service")
		}
	}
}

func (v *validator) egress(c *Config) {
	type key struct {
		host model.Host
		port uint16
	}
	seen := map[key]int{}
	for i, e := range c.Egress {
		at := fmt.Sprintf("egress[%d]", i)
		host, err := model.ParseHost(e.Host)
		if err != nil {
			v.add(at+".host", "%v", err)
		}
		port := e.port()
		if port == 0 {
			v.add(at+".port", "is missing: protocol %v has no port of its own", e.Protocol)
		}
		if first, twice := seen[key{host, port}]; twice && err == nil {
			v.add(at, "%s:%d is egress[%d] already", host, port, first)
		}
		seen[key{host, port}] = i
		if e.Address.IsValid() && (!e.Address.IsLoopback() || !e.Address.Is4()) {
			v.add(at+".address", "%v, want an address within 127.0.0.0/8", e.Address)
		}
	}
}

func (e *Egress) port() uint16 {
	if e.Port != 0 {
		return e.Port
	}
	return e.Protocol.DefaultPort()
}
