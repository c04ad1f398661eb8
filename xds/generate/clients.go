package generate

import (
	"cmp"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// crowd is a bounded set of clients. Of every namespace and kind in it there is
// room for the client without labels, so that whoever finds no room for its own
// labels can share that one.
type crowd struct {
	limit  int
	in     map[scope.Client]bool
	wanted map[scope.Client]bool // unlabelled ones that are not in
}

func newCrowd(limit int) *crowd {
	return &crowd{limit: limit, in: map[scope.Client]bool{}, wanted: map[scope.Client]bool{}}
}

// add takes c in and reports whether it is in.
func (c *crowd) add(client scope.Client) bool {
	if c.in[client] {
		return true
	}
	bare := client.Unlabelled()
	room := c.limit - len(c.in) - len(c.wanted)
	need := 1
	switch {
	case client == bare && c.wanted[bare]:
		need = 0
	case client != bare && !c.in[bare] && !c.wanted[bare]:
		need = 2
	}
	if room < need {
		return false
	}
	c.in[client] = true
	if client == bare {
		delete(c.wanted, bare)
	} else if !c.in[bare] {
		c.wanted[bare] = true
	}
	return true
}

// admit returns the client by which a node that joins is served: its own, or the
// one without labels when there are too many. ok is false when there is no room
// for that one either. Called with mu held.
func (g *Generator) admit(n *scope.Node) (client scope.Client, ok bool) {
	own := n.Caller(g.world.labels)
	if g.outs[own] != nil {
		return own, true
	}
	g.dropIdle()
	c := newCrowd(g.limits.clients)
	for client := range g.outs {
		c.add(client)
	}
	for _, client := range []scope.Client{own, own.Unlabelled()} {
		if c.add(client) {
			return client, true
		}
	}
	return scope.Client{}, false
}

// assign says by which client each scope is served from now on: its own as far as
// there is room, those in place first, then those of most scopes.
func assign(w world, lives []*live, outs map[scope.Client]*outbound, limit int) map[*live]scope.Client {
	own, scopes := make(map[*live]scope.Client, len(lives)), map[scope.Client]int{}
	for _, l := range lives {
		own[l] = l.node.Caller(w.labels)
		scopes[own[l]]++
	}
	order := make([]scope.Client, 0, len(scopes))
	for client := range scopes {
		order = append(order, client)
	}
	rank := func(client scope.Client) int {
		switch {
		case client == client.Unlabelled():
			return 0
		case outs[client] != nil:
			return 1
		}
		return 2
	}
	slices.SortFunc(order, func(a, b scope.Client) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(scopes[b], scopes[a]), strings.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Labels.String(), b.Labels.String()))
	})
	c := newCrowd(limit)
	for _, client := range order { // a place for every namespace and kind
		if bare := client.Unlabelled(); !c.in[bare] {
			c.wanted[bare] = true
		}
	}
	for _, client := range order {
		c.add(client)
	}
	for l, client := range own {
		if !c.in[client] {
			own[l] = client.Unlabelled()
		}
	}
	return own
}

// crowded counts the scopes that share a client because there was no room for
// their own. Called with mu held.
func (g *Generator) crowded() int {
	n := 0
	for _, l := range g.lives {
		if l.out.client.Labels != l.node.Caller(g.world.labels).Labels {
			n++
		}
	}
	return n
}
