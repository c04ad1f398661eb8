package rules

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Set is an immutable set of rules, at most one a Key, indexed by the hosts they
// concern. The zero value is empty. Making a Set costs time in proportion to its
// size: add many rules in one With.
type Set struct{ d *setData }

// setData is complete when its Set is handed out and never changes afterwards.
type setData struct {
	byKey   map[Key]*Rule
	all     []*Rule // ascending by key
	virtual hostIndex
	dest    map[string]*hostIndex // by namespace
	parts   map[model.Host][]string
}

// NewSet returns a set of those rules; of two with one Key the later is kept.
func NewSet(all ...*Rule) Set { return Set{}.With(all...) }

// With returns s with those rules added or replaced.
func (s Set) With(all ...*Rule) Set {
	m := make(map[Key]*Rule, s.Len()+len(all))
	for _, r := range s.All() {
		m[r.Key()] = r
	}
	for _, r := range all {
		m[r.Key()] = r
	}
	return build(m)
}

// Without returns s without those keys; unknown ones are ignored.
func (s Set) Without(keys ...Key) Set {
	m := map[Key]*Rule{}
	for _, r := range s.All() {
		m[r.Key()] = r
	}
	for _, k := range keys {
		delete(m, k)
	}
	return build(m)
}

// Union returns the rules of both; where both hold a Key, the rule of s stays.
func (s Set) Union(other Set) Set { return other.With(s.All()...) }

// Len is the number of rules.
func (s Set) Len() int { return len(s.All()) }

// All returns the rules ascending by key. The slice must not be modified.
func (s Set) All() []*Rule {
	if s.d == nil {
		return nil
	}
	return s.d.all
}

// Get returns the rule of that key, or nil.
func (s Set) Get(k Key) *Rule {
	if s.d == nil {
		return nil
	}
	return s.d.byKey[k]
}

// VirtualService returns the rule that routes requests to host, or nil: the one
// that names it exactly, else as the short name of a Kubernetes host, else by the
// longest matching wildcard; the oldest among equals. A "@<registry>" is ignored.
func (s Set) VirtualService(host model.Host) *Rule {
	if s.d == nil {
		return nil
	}
	return s.d.virtual.find(host)
}

// DestinationRule returns the rule for connections to host from a client in
// namespace client, or nil. As in Istio the client's namespace is asked first,
// then the service's, then RootNamespace; within one, hosts are found as
// VirtualService finds them.
func (s Set) DestinationRule(host model.Host, client, service string) *Rule {
	if s.d == nil {
		return nil
	}
	for _, ns := range []string{client, service, RootNamespace} {
		if r := s.d.dest[ns].find(host); r != nil {
			return r
		}
	}
	return nil
}

// SourceLabels are the labels that any rule matches callers by: the values it
// names, by key. What else a caller is labelled with makes no difference.
func (s Set) SourceLabels() map[string]map[string]struct{} {
	pairs := map[string]map[string]struct{}{}
	for _, r := range s.All() {
		for _, m := range sourceMatches(r.VirtualService()) {
			for key, value := range m.GetSourceLabels() {
				if pairs[key] == nil {
					pairs[key] = map[string]struct{}{}
				}
				pairs[key][value] = struct{}{}
			}
		}
	}
	return pairs
}

// RegistryParts are the registries that any rule addresses a part of host by
// ("<host>@<registry>"), ascending.
func (s Set) RegistryParts(host model.Host) []string {
	if s.d == nil {
		return nil
	}
	return s.d.parts[host]
}

// RoutedHosts are the hosts that virtual services name without a wildcard, as
// written, ascending; short names are not completed.
func (s Set) RoutedHosts() []model.Host {
	if s.d == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.d.virtual.exact))
}

// Affected are the hosts that the difference between two sets may concern by
// naming them. Hosts of rules that lead to these hosts are not part of it.
type Affected struct {
	Hosts    []model.Host // by name; ascending
	suffixes []string     // by wildcard
}

// ByWildcard reports whether any host can be concerned beside Hosts.
func (a Affected) ByWildcard() bool { return len(a.suffixes) > 0 }

// Contains reports whether h is concerned by a wildcard.
func (a Affected) Contains(h model.Host) bool {
	return slices.ContainsFunc(a.suffixes, func(suffix string) bool { return strings.HasSuffix(string(h), suffix) })
}

// Affects compares the rules of two sets.
func Affects(before, after Set) Affected {
	hosts, suffixes := map[model.Host]bool{}, map[string]bool{}
	add := func(name, namespace string) {
		h, _, _ := model.Host(strings.ToLower(name)).CutRegistry()
		if suffix, ok := strings.CutPrefix(string(h), "*"); ok {
			suffixes[suffix] = true
			return
		}
		hosts[h] = true
		if full, ok := completeHost(h, namespace); ok {
			hosts[full] = true
		}
	}
	look := func(s, other Set) {
		for _, r := range s.All() {
			if other.Get(r.Key()).Same(r) {
				continue
			}
			for _, h := range r.VirtualService().GetHosts() {
				add(h, r.Namespace)
			}
			for _, t := range destinations(r.VirtualService()) {
				add(t.destination.GetHost(), r.Namespace) // its parts may have clusters, or no longer
			}
			if dr := r.DestinationRule(); dr != nil {
				add(dr.GetHost(), r.Namespace)
			}
		}
	}
	look(before, after)
	look(after, before)
	return Affected{slices.Sorted(maps.Keys(hosts)), slices.Collect(maps.Keys(suffixes))}
}

func build(m map[Key]*Rule) Set {
	d := &setData{byKey: m, dest: map[string]*hostIndex{}, parts: map[model.Host][]string{}}
	d.all = slices.SortedFunc(maps.Values(m), func(a, b *Rule) int { return cmp.Compare(a.Key(), b.Key()) })
	for _, r := range d.all {
		switch r.Kind {
		case VirtualService:
			for _, h := range r.VirtualService().GetHosts() {
				d.virtual.add(h, r)
			}
			for _, dest := range destinations(r.VirtualService()) {
				d.addPart(dest.destination.GetHost(), r.Namespace)
			}
		case DestinationRule:
			if d.dest[r.Namespace] == nil {
				d.dest[r.Namespace] = &hostIndex{}
			}
			d.dest[r.Namespace].add(r.DestinationRule().GetHost(), r)
		}
	}
	d.virtual.sort()
	for _, index := range d.dest {
		index.sort()
	}
	for h := range d.parts {
		slices.Sort(d.parts[h])
		d.parts[h] = slices.Compact(d.parts[h])
	}
	return Set{d}
}

func (d *setData) addPart(name, namespace string) {
	host, registry, ok := model.Host(strings.ToLower(name)).CutRegistry()
	if !ok {
		return
	}
	d.parts[host] = append(d.parts[host], registry)
	if full, ok := completeHost(host, namespace); ok {
		d.parts[full] = append(d.parts[full], registry)
	}
}

// clusterDomain ends the hosts of Kubernetes services.
const clusterDomain = ".svc.cluster.local"

// completeHost makes a Kubernetes host of a short name; ok is false for a name
// that is not short.
func completeHost(h model.Host, namespace string) (model.Host, bool) {
	if h == "" || strings.ContainsAny(string(h), ".*:/@") {
		return "", false
	}
	return h + model.Host("."+namespace+clusterDomain), true
}

// ResolveHost finds what a rule of that namespace means by name: the host of that
// very name when exists says so, else the Kubernetes host of that short name when
// that exists, else the name itself. A "@<registry>" is kept.
func ResolveHost(name, namespace string, exists func(model.Host) bool) model.Host {
	h := model.Host(strings.ToLower(name))
	bare, registry, part := h.CutRegistry()
	if full, ok := completeHost(bare, namespace); ok && !exists(bare) && exists(full) {
		if part {
			return full.AtRegistry(registry)
		}
		return full
	}
	return h
}

// hostIndex finds the rule for a host. Filled by add, then sort, then only read.
type hostIndex struct {
	exact map[model.Host]*Rule
	short map[model.Host]*Rule // completed short names
	wild  []wildcard           // longest suffix first
}

type wildcard struct {
	suffix string // ".acme.com", or empty for "*"
	rule   *Rule
}

func (x *hostIndex) add(name string, r *Rule) {
	h := model.Host(strings.ToLower(name))
	if suffix, ok := strings.CutPrefix(string(h), "*"); ok {
		x.wild = append(x.wild, wildcard{suffix, r})
		return
	}
	if x.exact == nil {
		x.exact, x.short = map[model.Host]*Rule{}, map[model.Host]*Rule{}
	}
	keepOldest(x.exact, h, r)
	if full, ok := completeHost(h, r.Namespace); ok {
		keepOldest(x.short, full, r)
	}
}

func keepOldest(m map[model.Host]*Rule, h model.Host, r *Rule) {
	if old := m[h]; old == nil || r.older(old) {
		m[h] = r
	}
}

func (x *hostIndex) sort() {
	slices.SortStableFunc(x.wild, func(a, b wildcard) int {
		if c := cmp.Compare(len(b.suffix), len(a.suffix)); c != 0 {
			return c
		}
		if a.rule.older(b.rule) {
			return -1
		}
		return 1
	})
}

func (x *hostIndex) find(h model.Host) *Rule {
	if x == nil {
		return nil
	}
	h, _, _ = h.CutRegistry()
	if r := x.exact[h]; r != nil {
		return r
	}
	if r := x.short[h]; r != nil {
		return r
	}
	for _, w := range x.wild {
		if strings.HasSuffix(string(h), w.suffix) && len(h) > len(w.suffix) {
			return w.rule
		}
	}
	return nil
}
