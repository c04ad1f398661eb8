package generate

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// Diff is what a set of rules would change for the scopes that are connected now.
type Diff struct {
	Scopes []ScopeDiff // those that would change, by name
	Live   int         // scopes that were looked at
}

// ScopeDiff is what would change for one scope.
type ScopeDiff struct {
	Scope   string
	Streams int // that would get it
	Changes []Change
}

// Change is one resource. Before is nil when it would be added, After when it
// would be removed.
type Change struct {
	Key           resource.Key
	Before, After *resource.Resource
}

// Preview computes what candidate would change, without publishing. Services that
// ServiceEntries of the candidate would add are not part of it: they come through
// the catalog.
func (g *Generator) Preview(candidate rules.Set) (Diff, error) {
	g.mu.Lock()
	w, outs := g.world, maps.Clone(g.outs)
	lives := make([]live, 0, len(g.lives))
	for _, l := range g.lives {
		lives = append(lives, *l)
	}
	g.mu.Unlock()

	affected := rules.Affects(w.set, candidate)
	w.set, w.labels = candidate, candidate.SourceLabels()
	p := newPass(w, outs)
	steps, next := map[*outbound]step{}, map[scope.Client]*outbound{}
	for client, o := range outs {
		s := p.step(o, work{rules: &affected})
		if !s.proxies {
			s.out.proxies = map[string]*resource.Resource{} // the generator fills the other under its lock
		}
		steps[o], next[client] = s, s.out
	}
	d := Diff{Live: len(lives)}
	here := make([]*live, len(lives))
	for i := range lives {
		here[i] = &lives[i]
	}
	clients := assign(w, here, outs, g.limits.clients)
	for _, l := range here {
		before := l.snapshot()
		pub, _ := p.move(l, clients[l], steps, next, false)
		sd := ScopeDiff{Scope: l.node.Name(), Streams: l.refs}
		for _, k := range pub.changed {
			sd.Changes = append(sd.Changes, Change{k, before.Get(k.Type, k.Name), pub.snap.Get(k.Type, k.Name)})
		}
		if len(sd.Changes) > 0 {
			slices.SortFunc(sd.Changes, func(a, b Change) int {
				return cmp.Or(cmp.Compare(a.Key.Type, b.Key.Type), cmp.Compare(a.Key.Name, b.Key.Name))
			})
			d.Scopes = append(d.Scopes, sd)
		}
	}
	slices.SortFunc(d.Scopes, func(a, b ScopeDiff) int { return cmp.Compare(a.Scope, b.Scope) })
	var errs []error
	for _, f := range p.report.failures {
		errs = append(errs, fmt.Errorf("translate %s: %w", f.host, f.err))
	}
	return d, errors.Join(errs...)
}
