package generate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// pod is a sidecar with a label that no other has.
func pod(i int) string {
	return fmt.Sprintf(`{"id": "sidecar~10.0.0.1~web-%[1]d.default~x", "metadata": {"LABELS": {"app": "web", "pod": "p%[1]d"}}}`, i)
}

// about makes a rule that answers callers from these pods by itself.
func about(t *testing.T, pods ...int) rules.Set {
	t.Helper()
	var matches []string
	for _, i := range pods {
		matches = append(matches, fmt.Sprintf("{sourceLabels: {pod: p%d}}", i))
	}
	return parse(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec:
  hosts: [cart]
  http: [{match: [`+strings.Join(matches, ", ")+`], directResponse: {status: 418}}]
`)
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// answered says of which feeds the rule is in force.
func answered(feeds []*resource.Feed) (in []int) {
	for i, f := range feeds {
		if r := f.Snapshot().Get(resource.Route, "cart:80"); r != nil && len(r.Origins) > 0 {
			in = append(in, i)
		}
	}
	return in
}

func TestARuleAboutOnePodMakesTwoClients(t *testing.T) {
	for _, early := range []bool{true, false} {
		m := newMesh(t, rules.Set{})
		m.apply(model.Update{Full: true, Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1")}})
		if early {
			m.setRules(about(t, 7))
		}
		var feeds []*resource.Feed
		for i := range 1500 {
			feeds = append(feeds, m.join(pod(i)))
		}
		if !early {
			m.setRules(about(t, 7))
		}
		if d := cmp.Diff([]int{7}, answered(feeds)); d != "" || len(m.outs) != 2 {
			t.Errorf("rules first %v: %d sets of outbound resources, want 2; the rule is in force for (-want +got):\n%s", early, len(m.outs), d)
		}
	}
}

func TestClientsWithoutRoomShareOne(t *testing.T) {
	const limit = 4 // three pods and those without labels
	m := newMesh(t, rules.Set{})
	m.limits.clients = limit
	m.apply(model.Update{Full: true, Services: []*model.Service{service("cart", http80, "10.0.0.1:80 v1")}})
	var feeds []*resource.Feed
	for i := range 10 {
		feeds = append(feeds, m.join(pod(i)))
	}
	preview, err := m.Preview(about(t, upTo(10)...))
	if err != nil || len(preview.Scopes) != limit-1 {
		t.Errorf("preview: %d scopes would change, want %d, %v", len(preview.Scopes), limit-1, err)
	}
	m.setRules(about(t, upTo(10)...)) // they move
	in := answered(feeds)
	if len(in) != limit-1 || len(m.outs) != limit || m.unlabelled != 10-len(in) {
		t.Fatalf("rule in force for %v of 10, %d sets of outbound resources, %d without labels; want %d", in, len(m.outs), m.unlabelled, limit)
	}
	m.apply(model.Update{Services: []*model.Service{service("other", http80, "10.0.0.2:80 v1")}})
	if d := cmp.Diff(in, answered(feeds)); d != "" {
		t.Errorf("who keeps its labels changed by itself (-was +is):\n%s", d)
	}
	for _, f := range feeds {
		if f.Snapshot().Get(resource.Cluster, "outbound|80||other") == nil {
			t.Error("a scope without its labels is not served")
		}
	}
	feeds = append(feeds, m.join(pod(10))) // and they come
	if m.setRules(about(t, upTo(11)...)); len(m.outs) != limit || len(answered(feeds)) != limit-1 {
		t.Errorf("%d sets of outbound resources for %v", len(m.outs), answered(feeds))
	}
	if _, err := m.Join(node(t, `{"id": "envoy"}`)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("another kind beyond the limit: got %v", err)
	}

	for _, f := range feeds[:10] {
		m.Leave(f)
	}
	m.apply(model.Update{Services: []*model.Service{service("third", http80)}})
	if d := cmp.Diff([]int{0}, answered(feeds[10:])); d != "" || m.unlabelled != 0 {
		t.Errorf("when there is room again (-want +got):\n%s%d without labels", d, m.unlabelled)
	}
}

func TestCrowd(t *testing.T) {
	c := newCrowd(5)
	client := func(namespace, pod string) scope.Client {
		out := scope.Client{Namespace: namespace}
		if pod != "" {
			out.Labels = model.NewLabels(map[string]string{"pod": pod})
		}
		return out
	}
	for _, tt := range []struct {
		namespace, pod string
		want           bool
	}{
		{"a", "1", true}, {"a", "1", true}, {"b", "1", true}, {"a", "2", true},
		{"a", "3", false}, // two places are kept
		{"c", "", false},
		{"a", "", true}, {"b", "", true}, {"b", "", true},
		{"b", "2", false},
	} {
		if got := c.add(client(tt.namespace, tt.pod)); got != tt.want {
			t.Errorf("%s/%s: got %v, want %v", tt.namespace, tt.pod, got, tt.want)
		}
	}
}
