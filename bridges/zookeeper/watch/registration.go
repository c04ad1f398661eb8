package watch

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// registration is one endpoint as one entry states it.
type registration struct {
	address  netip.AddrPort
	protocol model.Protocol
	port     uint16 // of the service
	weight   uint32
	health   model.Health
	labels   model.Labels
	locality model.Locality
	changed  time.Time
	variant  string // Dubbo: "group/version"; else ""
}

// node is what one entry of the registry came to. It never changes.
type node struct {
	registrations []registration
	reject        string // why it, or a part of it, was left out; "" when nothing was
	foreign       bool   // Dubbo 3's application level, which is left alone
	unreadable    bool   // no watch stands on its data
}

// keep gives n, of which nothing is known, what it last registered.
func (n *node) keep(last *node) {
	if last == nil || len(last.registrations) == 0 {
		return
	}
	n.registrations = last.registrations
	n.reject += "; its last known registration stays"
}

// maxLabelBytes bounds the labels of one endpoint: 100,000 endpoints must fit a
// small machine, and labels go into every xDS resource.
const maxLabelBytes = 1024

// firstLabels are kept before any other when an entry has too many.
var firstLabels = []string{"app", "version", "group", "tag", "zone", "region", "unit"}

// newLabels makes labels of m. What does not fit is left out, the largest first,
// and named.
func newLabels(m map[string]string) (labels model.Labels, leftOut []string) {
	rank := func(key string) int {
		if i := slices.Index(firstLabels, key); i >= 0 {
			return i
		}
		return len(firstLabels)
	}
	size := func(key string) int { return len(key) + len(m[key]) + 2 }
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(size(a), size(b)), cmp.Compare(a, b))
	})
	kept, total := make(map[string]string, len(m)), 0
	for _, key := range keys {
		if total+size(key) > maxLabelBytes {
			leftOut = append(leftOut, key)
			continue
		}
		total += size(key)
		kept[key] = m[key]
	}
	return model.NewLabels(kept), leftOut
}

// setLabels gives r its labels and returns the complaint about what was left out.
func (r *registration) setLabels(m map[string]string) error {
	var leftOut []string
	r.labels, leftOut = newLabels(m)
	r.locality = model.Locality{Region: m["region"], Zone: m["zone"]}
	if len(leftOut) == 0 {
		return nil
	}
	return fmt.Errorf("labels are over %d bytes, left out: %s", maxLabelBytes, strings.Join(leftOut, ", "))
}

// unlabelled are Dubbo's parameters that do not become labels, beside secrets:
// they differ by process or are said otherwise. methods, a csv that may be long,
// is among them.
var unlabelled = map[string]bool{
	"methods": true, "pid": true, "timestamp": true, "side": true, "interface": true, "dubbo": true, "category": true,
	"anyhost": true, "bind.ip": true, "bind.port": true, "register.ip": true, "application": true, "dubbo.tag": true,
	"weight": true, "enabled": true, "disabled": true,
}

// fromProvider reads a Dubbo provider's node name; iface is the interface it is
// listed under.
func fromProvider(name, iface string, ports map[string]uint16) *node {
	p, err := wire.ParseProvider(name)
	if err != nil {
		return &node{reject: oneLine(err)}
	}
	if p.Interface() != iface {
		return &node{reject: fmt.Sprintf("provider of interface %.128q, want %q", p.Interface(), iface)}
	}
	protocol, port, err := servicePort(p.Protocol, ports)
	if err != nil {
		return &node{reject: oneLine(err)}
	}
	r := registration{
		address: p.Address, protocol: protocol, port: port, changed: p.Registered(),
		variant: p.Params["group"] + "/" + p.Params["version"],
	}
	weight, stated, weightErr := p.Weight()
	switch {
	case weightErr == nil && stated && weight == 0, !p.Enabled():
		r.health = model.Draining
	case weightErr == nil:
		r.weight = weight
	}
	m := make(map[string]string, len(p.Params))
	for key, value := range p.Params {
		if !unlabelled[strings.ToLower(key)] && !bridges.IsSecret(key) && !strings.HasPrefix(key, "default.") && value != "" {
			m[key] = value
		}
	}
	for label, key := range map[string]string{"app": "application", "tag": "dubbo.tag"} {
		if value := p.Params[key]; value != "" {
			m[label] = value
		}
	}
	n := &node{}
	if err := errors.Join(weightErr, r.setLabels(m)); err != nil {
		n.reject = oneLine(err)
	}
	n.registrations = []registration{r}
	return n
}

// fromInstance reads the data of a Curator instance; mtime is when it was last
// written, in ms.
func fromInstance(data []byte, mtime int64, service string, ports map[string]uint16) *node {
	i, err := wire.ParseInstance(data)
	if i.Class == wire.ClassDubbo {
		return &node{foreign: true}
	}
	if err != nil {
		return &node{reject: oneLine(err)}
	}
	if i.Class != wire.ClassSpring {
		return &node{reject: fmt.Sprintf("payload.@class is %.128q, want %q", i.Class, wire.ClassSpring)}
	}
	r := registration{changed: time.UnixMilli(mtime).UTC()}
	weight, stated, weightErr := i.Weight()
	switch {
	case i.Status() == "OUT_OF_SERVICE", !i.Enabled, weightErr == nil && stated && weight == 0:
		r.health = model.Draining
	case i.Status() != "UP":
		r.health = model.Unhealthy
	}
	if weightErr == nil && stated {
		r.weight = weight * model.DefaultWeight // Spring's default weight is 1
	}
	m := make(map[string]string, len(i.Metadata)+1)
	m["app"] = service
	for key, value := range i.Metadata {
		if key != "instance_status" && key != "weight" && value != "" && !bridges.IsSecret(key) {
			m[key] = value
		}
	}
	n := &node{}
	complaints := []error{weightErr, r.setLabels(m)}
	add := func(listens uint16, name string) {
		r := r
		r.address = netip.AddrPortFrom(i.Address, listens)
		if r.protocol, r.port, err = servicePort(name, ports); err != nil {
			complaints = append(complaints, err)
			return
		}
		n.registrations = append(n.registrations, r)
	}
	if i.Port != 0 && i.Port != i.SSLPort {
		add(i.Port, "http")
	}
	if i.SSLPort != 0 {
		add(i.SSLPort, "tls")
	}
	if err := errors.Join(complaints...); err != nil {
		n.reject = oneLine(err)
	}
	return n
}

// servicePort returns what a protocol's name in the registry means to callers.
func servicePort(name string, ports map[string]uint16) (model.Protocol, uint16, error) {
	protocol, err := model.ParseProtocol(name)
	if name == "rest" {
		protocol, err = model.HTTP, nil
	}
	port, set := ports[name]
	if !set && err == nil {
		port = protocol.DefaultPort()
	}
	if port == 0 {
		return 0, 0, fmt.Errorf("protocol %.64q has no service port: set one in servicePorts", name)
	}
	return protocol, port, nil // TCP when the name is unknown
}
