package status_test

import (
	"fmt"
	"iter"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/status"
)

// fake is a source with fixed answers.
type fake struct {
	clients []status.Client
	rollout map[string]map[string]status.Stage
}

func (f fake) Clients(match func(*corev3.Node) bool, _ bool) iter.Seq[status.Client] {
	return func(yield func(status.Client) bool) {
		for _, c := range f.clients {
			if match(c.Node) && !yield(c) {
				return
			}
		}
	}
}

func (f fake) Rollout(only func(string) bool) map[string]map[string]status.Stage {
	all := map[string]map[string]status.Stage{}
	for o, nodes := range f.rollout {
		if only(o) {
			all[o] = nodes
		}
	}
	return all
}

func TestNewestRefusalsAreKept(t *testing.T) {
	r := status.NewRegistry()
	const n = 1500
	for i := range n {
		r.Record(status.Refusal{Name: fmt.Sprint(i)})
		if i%100 != 0 {
			continue
		}
		if newest := r.Refusals()[0].Name; newest != fmt.Sprint(i) {
			t.Fatalf("newest refusal %s, want %d", newest, i)
		}
	}
	all := r.Refusals()
	for i, f := range all {
		if want := fmt.Sprint(n - 1 - i); f.Name != want {
			t.Fatalf("refusal %d is %s, want %s", i, f.Name, want)
		}
	}
	if len(all) < 100 || len(all) > 1000 {
		t.Errorf("%d refusals are kept, want some hundreds", len(all))
	}
}

func TestAppliedCountsANodeOnce(t *testing.T) {
	r := status.NewRegistry()
	r.Attach(fake{rollout: map[string]map[string]status.Stage{
		"rule": {"n1": status.Applied, "n2": status.Applied, "n3": status.Waiting}, "other": {"n1": status.Applied},
	}})
	r.Attach(fake{rollout: map[string]map[string]status.Stage{"rule": {"n2": status.Refused}}})
	want := map[string]status.Progress{
		"rule":    {Applied: 1, Total: 3, Waiting: []string{"n3"}, Refused: []string{"n2"}},
		"unheard": {},
	}
	if d := cmp.Diff(want, r.Applied("rule", "unheard")); d != "" {
		t.Errorf("progress (-want +got):\n%s", d)
	}
	if all := r.Applied(); len(all) != 2 {
		t.Errorf("progress of %d rules, want 2", len(all))
	}
}

func TestClientsAreSorted(t *testing.T) {
	r := status.NewRegistry()
	node := func(id string) status.Client { return status.Client{Node: &corev3.Node{Id: id}} }
	r.Attach(fake{clients: []status.Client{node("c"), node("a")}})
	r.Attach(fake{clients: []status.Client{node("b")}})
	var got []string
	for _, c := range r.Clients(func(n *corev3.Node) bool { return n.GetId() != "a" }, false) {
		got = append(got, c.Node.GetId())
	}
	if !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("clients %v, want b and c", got)
	}
}
