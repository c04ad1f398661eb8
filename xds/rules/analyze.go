package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Severity grades a finding.
type Severity uint8

// Severities. An Error means that requests fail by the rule as it stands.
const (
	Warning Severity = iota
	Error
)

// String is the lower-case name.
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is what Analyze has to say of one rule in the company of the others.
type Finding struct {
	Severity Severity
	Rule     Key
	Path     string // "spec.http[0].route[1].destination.subset"; empty for the whole rule
	Text     string
}

// String is "warning: kind/namespace/name: path: text".
func (f Finding) String() string {
	parts := []string{f.Severity.String(), string(f.Rule), f.Path, f.Text}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ": ")
}

// Analyze checks the rules of a set against each other and against the services
// that exist; service may be nil when they are not known. Findings do not keep a
// set from being used: rules and services may come in any order. They ascend by
// rule and path.
func Analyze(s Set, service func(model.Host) *model.Service) []Finding {
	a := analysis{set: s, service: service}
	for _, r := range s.All() {
		switch r.Kind {
		case VirtualService:
			a.virtualService(r)
		case DestinationRule:
			a.destinationRule(r)
		}
	}
	slices.SortStableFunc(a.findings, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(x.Rule, y.Rule), cmp.Compare(x.Path, y.Path))
	})
	return a.findings
}

type analysis struct {
	set      Set
	service  func(model.Host) *model.Service
	findings []Finding
}

func (a *analysis) add(s Severity, r *Rule, path, format string, args ...any) {
	a.findings = append(a.findings, Finding{s, r.Key(), path, fmt.Sprintf(format, args...)})
}

func (a *analysis) exists(h model.Host) bool {
	return a.service != nil && a.service(h) != nil
}

func (a *analysis) virtualService(r *Rule) {
	vs := r.VirtualService()
	for i, name := range vs.GetHosts() {
		if winner := a.winner(&a.set.d.virtual, r, name); winner != r {
			a.add(Warning, r, fmt.Sprintf("spec.hosts[%d]", i), "%s is ruled by %s, which is older; this rule has no effect on it", name, winner.Key())
		}
	}
	for i, route := range vs.GetHttp() {
		for j, m := range route.GetMatch() {
			a.regexes(r, fmt.Sprintf("spec.http[%d].match[%d]", i, j), m)
		}
	}
	for _, t := range destinations(vs) {
		name := t.destination.GetHost()
		host := ResolveHost(name, r.Namespace, a.exists)
		bare, registry, part := host.CutRegistry()
		var svc *model.Service
		if a.service != nil {
			if svc = a.service(bare); svc == nil {
				a.add(Warning, r, t.path+".host", "no registry holds %s now", name)
			} else if part && !slices.Contains(svc.Registries, registry) {
				a.add(Warning, r, t.path+".host", "registry %s does not hold %s now", registry, bare)
			}
		}
		if port := t.destination.GetPort().GetNumber(); svc != nil && port != 0 {
			if _, ok := svc.Port(uint16(port)); !ok {
				a.add(Warning, r, t.path+".port.number", "%s has no port %d now", bare, port)
			}
		}
		if t.destination.GetSubset() != "" {
			a.subset(r, t, bare, svc)
		}
	}
}

// envoyProgram is the size of program that Envoy accepts without being told
// otherwise. It counts bytes where regexProgram counts runes, so this is less than
// its 100.
const envoyProgram = 80

// regexes warns of expressions that sidecars carry out and a plain Envoy refuses,
// with all routes of the host.
func (a *analysis) regexes(r *Rule, path string, m *networking.HTTPMatchRequest) {
	look := func(at string, s *networking.StringMatch) {
		if n, err := regexProgram(s.GetRegex()); err == nil && n > envoyProgram {
			a.add(Warning, r, path+at+".regex", "compiles to about %d instructions; an Envoy refuses more than 100 unless its runtime sets re2.max_program_size.error_level", n)
		}
	}
	look(".uri", m.GetUri())
	look(".method", m.GetMethod())
	look(".authority", m.GetAuthority())
	for name, s := range m.GetHeaders() {
		look(fmt.Sprintf(".headers[%s]", name), s)
	}
}

// subset looks for the subset in every destination rule of the host that some
// client may see: which one a client gets depends on its namespace.
func (a *analysis) subset(r *Rule, t target, host model.Host, svc *model.Service) {
	subset := t.destination.GetSubset()
	namespace := r.Namespace
	if svc != nil {
		namespace = svc.Namespace
	}
	dr := a.set.DestinationRule(host, r.Namespace, namespace)
	if dr == nil {
		if full, ok := completeHost(host, r.Namespace); ok && svc == nil {
			dr = a.set.DestinationRule(full, r.Namespace, namespace)
		}
	}
	switch {
	case dr == nil:
		a.add(Error, r, t.path+".subset", "no DestinationRule defines subset %s of %s", subset, host)
	case !HasSubset(dr, subset):
		a.add(Error, r, t.path+".subset", "%s does not define subset %s", dr.Key(), subset)
	}
}

// HasSubset reports whether a destination rule defines the subset; the rule may be nil.
func HasSubset(r *Rule, name string) bool {
	for _, s := range r.DestinationRule().GetSubsets() {
		if s.Name == name {
			return true
		}
	}
	return false
}

func (a *analysis) destinationRule(r *Rule) {
	name := r.DestinationRule().GetHost()
	if winner := a.winner(a.set.d.dest[r.Namespace], r, name); winner != r {
		a.add(Warning, r, "spec.host", "%s has %s, which is older; this rule has no effect", name, winner.Key())
		return
	}
	if a.service == nil || strings.HasPrefix(name, "*") {
		return
	}
	host := ResolveHost(name, r.Namespace, a.exists)
	svc := a.service(host)
	switch {
	case svc == nil:
		a.add(Warning, r, "spec.host", "no registry holds %s now", name)
	case r.Namespace != svc.Namespace && r.Namespace != RootNamespace:
		a.add(Warning, r, "spec.host", "%s lives in namespace %s, so this rule concerns only clients in %s", name, svc.Namespace, r.Namespace)
	default:
		for i, s := range r.DestinationRule().GetSubsets() {
			want := model.NewLabels(s.Labels)
			if len(svc.Endpoints) > 0 && !slices.ContainsFunc(svc.Endpoints, func(e model.Endpoint) bool { return e.Labels.Contains(want) }) {
				a.add(Warning, r, fmt.Sprintf("spec.subsets[%d]", i), "no endpoint carries %s now", want)
			}
		}
	}
}

// winner is the rule that an index holds for a host as r writes it.
func (a *analysis) winner(x *hostIndex, r *Rule, name string) *Rule {
	h := model.Host(strings.ToLower(name))
	if suffix, ok := strings.CutPrefix(string(h), "*"); ok {
		for _, w := range x.wild {
			if w.suffix == suffix {
				return w.rule
			}
		}
	}
	if full, ok := completeHost(h, r.Namespace); ok && x.short[full] == r && !a.exists(h) {
		return r // it is the short name of another Kubernetes host than the older rule's
	}
	return x.exact[h]
}
