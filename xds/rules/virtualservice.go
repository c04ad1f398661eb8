package rules

import (
	"fmt"
	"iter"
	"math"
	"regexp/syntax"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// sourceMatch is what HTTP and TCP matches share: who calls.
type sourceMatch interface {
	GetPort() uint32
	GetSourceLabels() map[string]string
	GetSourceNamespace() string
	GetGateways() []string
}

// sourceMatches yields every match of a virtual service, with its path.
func sourceMatches(vs *networking.VirtualService) iter.Seq2[string, sourceMatch] {
	return func(yield func(string, sourceMatch) bool) {
		for i, r := range vs.GetHttp() {
			for j, m := range r.GetMatch() {
				if !yield(fmt.Sprintf("spec.http[%d].match[%d]", i, j), m) {
					return
				}
			}
		}
		for i, r := range vs.GetTcp() {
			for j, m := range r.GetMatch() {
				if !yield(fmt.Sprintf("spec.tcp[%d].match[%d]", i, j), m) {
					return
				}
			}
		}
	}
}

// MatchesCallers reports whether a virtual service matches callers by labels or
// namespace; the rule may be nil.
func MatchesCallers(r *Rule) bool {
	for _, m := range sourceMatches(r.VirtualService()) {
		if len(m.GetSourceLabels()) > 0 || m.GetSourceNamespace() != "" {
			return true
		}
	}
	return false
}

// target is a destination of a virtual service with its path.
type target struct {
	path        string
	destination *networking.Destination
}

// destinations are all destinations of a virtual service.
func destinations(vs *networking.VirtualService) []target {
	var all []target
	for i, r := range vs.GetHttp() {
		for j, d := range r.GetRoute() {
			all = append(all, target{fmt.Sprintf("spec.http[%d].route[%d].destination", i, j), d.GetDestination()})
		}
	}
	for i, r := range vs.GetTcp() {
		for j, d := range r.GetRoute() {
			all = append(all, target{fmt.Sprintf("spec.tcp[%d].route[%d].destination", i, j), d.GetDestination()})
		}
	}
	return all
}

// Destinations are all destinations of a virtual service, in its order.
func Destinations(vs *networking.VirtualService) []*networking.Destination {
	var all []*networking.Destination
	for _, t := range destinations(vs) {
		all = append(all, t.destination)
	}
	return all
}

// check finds what is wrong with a decoded rule beyond its shape.
func (d *reader) check(r *Rule) {
	switch spec := r.Spec.(type) {
	case *networking.VirtualService:
		d.virtualService(spec)
	case *networking.DestinationRule:
		d.destinationRule(spec)
	case *networking.ServiceEntry:
		d.serviceEntry(spec)
	case *networking.WorkloadEntry:
		d.workload(spec, "spec", nil)
	}
}

func (d *reader) failf(path, format string, args ...any) {
	d.failAt(path, fmt.Sprintf(format, args...))
}

// only reports values of a Default field that are not its default.
func (d *reader) only(path string, values []string, want string) {
	for i, v := range values {
		if v != want {
			d.failf(fmt.Sprintf("%s[%d]", path, i), "%q is not enforced yet, so it is refused; want %q", v, want)
		}
	}
}

func (d *reader) host(path, name string, wildcard bool) {
	bare := name
	if wildcard && strings.HasPrefix(name, "*") {
		if name == "*" {
			return
		}
		if !strings.HasPrefix(name, "*.") {
			d.failf(path, "%q, want the wildcard as *.suffix", name)
			return
		}
		bare = name[2:]
	}
	if _, err := model.ParseHost(bare); err != nil {
		d.failAt(path, err.Error())
	}
}

func (d *reader) virtualService(vs *networking.VirtualService) {
	if len(vs.Hosts) == 0 {
		d.failAt("spec.hosts", "is missing")
	}
	seen := map[string]bool{}
	for i, h := range vs.Hosts {
		path := fmt.Sprintf("spec.hosts[%d]", i)
		d.host(path, h, true)
		if folded := strings.ToLower(h); seen[folded] {
			d.failf(path, "%q is listed twice", h)
		} else {
			seen[folded] = true
		}
	}
	d.only("spec.gateways", vs.Gateways, "mesh")
	d.only("spec.exportTo", vs.ExportTo, "*")
	if len(vs.Http) == 0 && len(vs.Tcp) == 0 {
		d.failAt("spec", "has neither http nor tcp routes")
	}
	for path, m := range sourceMatches(vs) {
		if m.GetPort() > math.MaxUint16 {
			d.failf(path+".port", "%d, want 1 to 65535", m.GetPort())
		}
		d.only(path+".gateways", m.GetGateways(), "mesh")
		d.labels(path+".sourceLabels", m.GetSourceLabels())
	}
	for i, r := range vs.Http {
		d.httpRoute(fmt.Sprintf("spec.http[%d]", i), r)
	}
	for i := 0; i+1 < len(vs.Http); i++ {
		if len(vs.Http[i].Match) == 0 {
			d.failf(fmt.Sprintf("spec.http[%d]", i+1), "is never reached: http[%d] matches everything", i)
			break
		}
	}
	for i, r := range vs.Tcp {
		path := fmt.Sprintf("spec.tcp[%d]", i)
		if i > 0 && len(vs.Tcp[i-1].Match) == 0 {
			d.failf(path, "is never reached: tcp[%d] matches everything", i-1)
		}
		weights := make([]int32, len(r.Route))
		for j, dest := range r.Route {
			weights[j] = dest.Weight
			d.destination(fmt.Sprintf("%s.route[%d].destination", path, j), dest.Destination)
		}
		d.weights(path+".route", weights)
	}
}

func (d *reader) destination(path string, dest *networking.Destination) {
	if dest.GetHost() == "" {
		d.failAt(path+".host", "is missing")
		return
	}
	host, registry, part := strings.Cut(dest.Host, "@")
	d.host(path+".host", host, false)
	if part {
		if err := checkName(strings.ToLower(registry)); err != nil {
			d.failf(path+".host", "registry %v", err)
		}
	}
	if dest.Subset != "" {
		d.subsetName(path+".subset", dest.Subset)
	}
	if dest.Port != nil && (dest.Port.Number == 0 || dest.Port.Number > math.MaxUint16) {
		d.failf(path+".port.number", "%d, want 1 to 65535", dest.Port.Number)
	}
}

// weights checks the weights of one route: Envoy wants their sum in 1 to 2^32-1.
func (d *reader) weights(path string, weights []int32) {
	if len(weights) == 0 {
		d.failAt(path, "is missing")
	}
	var sum int64
	for i, w := range weights {
		if w < 0 {
			d.failf(fmt.Sprintf("%s[%d].weight", path, i), "%d, want 0 to %d", w, math.MaxInt32)
			return
		}
		sum += int64(w)
	}
	if len(weights) > 1 && (sum == 0 || sum > math.MaxUint32) {
		d.failf(path, "weights sum to %d, want 1 to %d", sum, uint32(math.MaxUint32))
	}
}

func (d *reader) httpRoute(path string, r *networking.HTTPRoute) {
	var actions []string
	for name, set := range map[string]bool{"directResponse": r.DirectResponse != nil, "redirect": r.Redirect != nil, "route": len(r.Route) > 0} {
		if set {
			actions = append(actions, name)
		}
	}
	slices.Sort(actions)
	if len(actions) != 1 {
		have := "none"
		if len(actions) > 0 {
			have = strings.Join(actions, " and ")
		}
		d.failf(path, "has %s, want exactly one of route, redirect, directResponse", have)
	}
	if len(r.Route) == 0 {
		for name, set := range map[string]bool{"rewrite": r.Rewrite != nil, "retries": r.Retries != nil, "timeout": r.Timeout != nil} {
			if set {
				d.failAt(path+"."+name, "has no effect without route")
			}
		}
	}
	for i, m := range r.Match {
		d.httpMatch(fmt.Sprintf("%s.match[%d]", path, i), m)
	}
	weights := make([]int32, len(r.Route))
	for i, dest := range r.Route {
		at := fmt.Sprintf("%s.route[%d]", path, i)
		weights[i] = dest.Weight
		d.destination(at+".destination", dest.Destination)
		d.headers(at+".headers", dest.Headers)
	}
	if len(r.Route) > 0 {
		d.weights(path+".route", weights)
	}
	d.headers(path+".headers", r.Headers)
	d.duration(path+".timeout", r.Timeout, 0)
	d.retries(path+".retries", r.Retries)
	d.rewrite(path+".rewrite", r.Rewrite)
	d.redirect(path+".redirect", r.Redirect)
	d.directResponse(path+".directResponse", r.DirectResponse)
}

func (d *reader) httpMatch(path string, m *networking.HTTPMatchRequest) {
	d.stringMatch(path+".uri", m.Uri)
	if exact, ok := m.Uri.GetMatchType().(*networking.StringMatch_Exact); ok && !strings.HasPrefix(exact.Exact, "/") {
		d.failf(path+".uri.exact", "%q, want a path that begins with /", exact.Exact)
	}
	if prefix, ok := m.Uri.GetMatchType().(*networking.StringMatch_Prefix); ok && !strings.HasPrefix(prefix.Prefix, "/") {
		d.failf(path+".uri.prefix", "%q, want a path that begins with /", prefix.Prefix)
	}
	d.stringMatch(path+".method", m.Method)
	d.stringMatch(path+".authority", m.Authority)
	for _, of := range []struct {
		name string
		m    *networking.StringMatch
	}{{"uri", m.Uri}, {"method", m.Method}, {"authority", m.Authority}} {
		if of.m != nil && of.m.MatchType == nil {
			d.failAt(path+"."+of.name, "is empty, want exact, prefix or regex")
		}
	}
	for name, value := range m.Headers {
		at := fmt.Sprintf("%s.headers[%s]", path, name)
		d.headerName(at, name)
		d.stringMatch(at, value)
	}
}

// Bounds of an expression: its text in bytes, and the program it compiles to in
// instructions. Envoy counts the program too (see Analyze).
const (
	maxRegexBytes   = 1024
	maxRegexProgram = 4096
)

// regexProgram is the number of instructions that an expression compiles to.
func regexProgram(expr string) (int, error) {
	parsed, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return 0, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return 0, err
	}
	return len(program.Inst), nil
}

func (d *reader) stringMatch(path string, m *networking.StringMatch) {
	switch v := m.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		if v.Prefix == "" {
			d.failAt(path+".prefix", "is empty")
		}
	case *networking.StringMatch_Regex:
		if v.Regex == "" {
			d.failAt(path+".regex", "is empty")
		} else if len(v.Regex) > maxRegexBytes {
			d.failf(path+".regex", "%d bytes, want at most %d", len(v.Regex), maxRegexBytes)
		} else if n, err := regexProgram(v.Regex); err != nil {
			d.failAt(path+".regex", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		} else if n > maxRegexProgram {
			d.failf(path+".regex", "compiles to %d instructions, want at most %d", n, maxRegexProgram)
		}
	}
}

func (d *reader) labels(path string, labels map[string]string) {
	for k, v := range labels {
		if k == "" || len(k) > 317 || len(v) > 1024 || strings.ContainsRune(k+v, 0) {
			d.failf(fmt.Sprintf("%s[%s]", path, k), "want a key of 1 to 317 and a value of at most 1024 bytes, without NUL")
		}
	}
}
