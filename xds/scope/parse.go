package scope

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Bounds of what a client may say of itself. Kubernetes allows names of 253 and
// label values of 63 bytes; registries' labels run longer.
const (
	maxIDBytes    = 1024
	maxNameBytes  = 253
	maxLabels     = 64
	maxLabelBytes = 1024
	maxInbound    = 64
	maxEgress     = 1024
)

// sidecarPrefix begins the node id of Istio's and our own sidecars:
// "sidecar~<ip>~<workload>.<namespace>~<domain>".
const sidecarPrefix = "sidecar~"

// Parse checks a node. The error joins all mistakes and names their fields.
func Parse(n *corev3.Node) (*Node, error) {
	if n == nil {
		return nil, errors.New("node: is missing")
	}
	p := &parser{fields: n.GetMetadata().GetFields()}
	out := &Node{
		ID: p.name("node.id", n.GetId(), maxIDBytes), Cluster: p.name("node.cluster", n.GetCluster(), maxNameBytes),
		Namespace: p.text("NAMESPACE"), App: p.text("APP_NAME"), Workload: p.text("WORKLOAD_NAME"),
		Labels: p.labels("LABELS"), Inbound: p.inbound("INBOUND"), Egress: p.egress("EGRESS"),
		Locality: model.Locality{
			Region:  p.name("node.locality.region", n.GetLocality().GetRegion(), maxNameBytes),
			Zone:    p.name("node.locality.zone", n.GetLocality().GetZone(), maxNameBytes),
			SubZone: p.name("node.locality.sub_zone", n.GetLocality().GetSubZone(), maxNameBytes),
		},
	}
	if n.GetId() == "" {
		p.fail("node.id", "is missing")
	}
	switch {
	case strings.HasPrefix(strings.ToLower(n.GetUserAgentName()), "grpc"):
		out.Kind = GRPC
	case strings.HasPrefix(out.ID, sidecarPrefix):
		out.Kind = Sidecar
	}
	p.fromID(out)
	if out.Namespace == "" {
		out.Namespace = "default"
	}
	if out.App == "" {
		out.App, _ = out.Labels.Get("app")
	}
	if proxy := p.text("HTTP_PROXY"); proxy != "" {
		out.HTTPProxy = p.addrPort("node.metadata.HTTP_PROXY", proxy)
	}
	p.distinct(out)
	if err := errors.Join(p.errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// fromID fills workload and namespace from an id of Istio's form, where the
// metadata does not say them.
func (p *parser) fromID(n *Node) {
	parts := strings.Split(n.ID, "~")
	if len(parts) != 4 {
		return
	}
	workload, namespace, ok := strings.Cut(parts[2], ".")
	if n.Namespace == "" && ok {
		n.Namespace = p.name("node.id", namespace, maxNameBytes)
	}
	if n.Workload == "" {
		n.Workload = workload
	}
}

type parser struct {
	fields map[string]*structpb.Value
	errs   []error
}

func (p *parser) fail(field, format string, args ...any) {
	const maxErrors = 32
	if len(p.errs) < maxErrors {
		p.errs = append(p.errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
}

// name checks a piece of text that ends up in names and logs.
func (p *parser) name(field, s string, maxBytes int) string {
	switch {
	case len(s) > maxBytes:
		p.fail(field, "%d bytes, want at most %d", len(s), maxBytes)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		p.fail(field, "%q, want text without control characters", s)
	default:
		return s
	}
	return ""
}

func (p *parser) text(field string) string {
	v, ok := p.fields[field]
	if !ok || isNull(v) {
		return ""
	}
	s, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok {
		p.fail("node.metadata."+field, "want text")
		return ""
	}
	return p.name("node.metadata."+field, s.StringValue, maxNameBytes)
}

func isNull(v *structpb.Value) bool {
	_, null := v.GetKind().(*structpb.Value_NullValue)
	return null || v.GetKind() == nil
}

func (p *parser) labels(field string) model.Labels {
	v, ok := p.fields[field]
	if !ok || isNull(v) {
		return model.Labels{}
	}
	path := "node.metadata." + field
	s, ok := v.GetKind().(*structpb.Value_StructValue)
	if !ok {
		p.fail(path, "want a mapping of text to text")
		return model.Labels{}
	}
	fields := s.StructValue.GetFields()
	if len(fields) > maxLabels {
		p.fail(path, "%d labels, want at most %d", len(fields), maxLabels)
		return model.Labels{}
	}
	labels := make(map[string]string, len(fields))
	for key, value := range fields {
		text, ok := value.GetKind().(*structpb.Value_StringValue)
		if !ok {
			p.fail(fmt.Sprintf("%s[%.64q]", path, key), "want text")
			continue
		}
		key = p.name(path, key, maxLabelBytes)
		labels[key] = p.name(fmt.Sprintf("%s[%.64q]", path, key), text.StringValue, maxLabelBytes)
	}
	return model.NewLabels(labels)
}

// entries returns the mappings of a list field, each with its path. Unknown keys
// are mistakes: a misspelt key would silently change what is served.
func (p *parser) entries(field string, limit int, keys ...string) []entry {
	v, ok := p.fields[field]
	if !ok || isNull(v) {
		return nil
	}
	path := "node.metadata." + field
	list, ok := v.GetKind().(*structpb.Value_ListValue)
	if !ok {
		p.fail(path, "want a list")
		return nil
	}
	values := list.ListValue.GetValues()
	if len(values) > limit {
		p.fail(path, "%d items, want at most %d", len(values), limit)
		return nil
	}
	var all []entry
	for i, item := range values {
		at := fmt.Sprintf("%s[%d]", path, i)
		fields, ok := item.GetKind().(*structpb.Value_StructValue)
		if !ok {
			p.fail(at, "want a mapping")
			continue
		}
		for key := range fields.StructValue.GetFields() {
			if !slices.Contains(keys, key) {
				p.fail(fmt.Sprintf("%s.%.64s", at, key), "no such field, want %s", strings.Join(keys, ", "))
			}
		}
		all = append(all, entry{p, at, fields.StructValue.GetFields()})
	}
	return all
}

type entry struct {
	p      *parser
	path   string
	fields map[string]*structpb.Value
}

// text is the value of key, empty when it is missing.
func (e entry) text(key string) string {
	v, ok := e.fields[key]
	if !ok || isNull(v) {
		return ""
	}
	s, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok {
		e.p.fail(e.path+"."+key, "want text")
		return ""
	}
	return e.p.name(e.path+"."+key, s.StringValue, maxIDBytes)
}

// addrPort is a required field; false when it was reported.
func (e entry) addrPort(key string) (netip.AddrPort, bool) {
	s := e.text(key)
	a := e.p.addrPort(e.path+"."+key, s)
	return a, a.IsValid()
}

func (p *parser) addrPort(path, s string) netip.AddrPort {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		p.fail(path, "%q, want ip:port", s)
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (p *parser) inbound(field string) []Inbound {
	var all []Inbound
	for _, e := range p.entries(field, maxInbound, "app", "listen", "protocol") {
		app, ok1 := e.addrPort("app")
		listen, ok2 := e.addrPort("listen")
		protocol, err := model.ParseProtocol(e.text("protocol"))
		if err != nil {
			p.fail(e.path+".protocol", "%v", err)
		}
		if ok1 && ok2 && err == nil {
			all = append(all, Inbound{app, listen, protocol})
		}
	}
	return all
}

func (p *parser) egress(field string) []Egress {
	var all []Egress
	for _, e := range p.entries(field, maxEgress, "host", "port", "address") {
		host, err := model.ParseHost(e.text("host"))
		if err != nil {
			p.fail(e.path+".host", "%v", err)
			continue
		}
		number := e.fields["port"].GetNumberValue()
		if number != math.Trunc(number) || number < 1 || number > math.MaxUint16 {
			p.fail(e.path+".port", "%v, want 1 to 65535", number)
			continue
		}
		port := uint16(number)
		text := e.text("address")
		listen, err := netip.ParseAddrPort(text)
		if err != nil {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				p.fail(e.path+".address", "%q, want ip or ip:port", text)
				continue
			}
			listen = netip.AddrPortFrom(addr, port)
		}
		if listen.Port() == 0 || listen.Addr().Zone() != "" {
			p.fail(e.path+".address", "%q, want ip or ip:port", text)
			continue
		}
		all = append(all, Egress{host, port, netip.AddrPortFrom(listen.Addr().Unmap(), listen.Port())})
	}
	return all
}

// distinct reports addresses and application ports that are used twice: the names
// of listeners and inbound clusters are made of them.
func (p *parser) distinct(n *Node) {
	listens, apps := map[netip.AddrPort]string{}, map[uint16]string{}
	claim := func(path string, at netip.AddrPort) {
		if first, taken := listens[at]; taken {
			p.fail(path, "%v is taken by %s", at, first)
			return
		}
		listens[at] = path
	}
	if n.HTTPProxy.IsValid() {
		claim("node.metadata.HTTP_PROXY", n.HTTPProxy)
	}
	for i, in := range n.Inbound {
		path := fmt.Sprintf("node.metadata.INBOUND[%d]", i)
		claim(path+".listen", in.Listen)
		if first, taken := apps[in.App.Port()]; taken {
			p.fail(path+".app", "port %d is taken by %s", in.App.Port(), first)
			continue
		}
		apps[in.App.Port()] = path + ".app"
	}
	for i, e := range n.Egress {
		claim(fmt.Sprintf("node.metadata.EGRESS[%d].address", i), e.Listen)
	}
}
