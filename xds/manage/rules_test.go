package manage_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/generate"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
)

const cartRoute, cartSubsets = "virtualservice/default/cart", "destinationrule/default/cart"

func TestApplySaysWhatBecameOfEachRule(t *testing.T) {
	m := start(t, nil)
	m.addService("zk", "cart", "10.0.0.1:80", "10.0.0.2:80")
	first := m.apply(t, docs(route("cart", 90), subsets("cart")))
	if d := cmp.Diff(cartRoute+" CREATED\n"+cartSubsets+" CREATED\n", outcomes(first)); d != "" {
		t.Errorf("first (-want +got):\n%s", d)
	}
	second := m.apply(t, docs(route("cart", 50), subsets("cart")))
	if d := cmp.Diff(cartRoute+" UPDATED\n"+cartSubsets+" UNCHANGED\n", outcomes(second)); d != "" {
		t.Errorf("second (-want +got):\n%s", d)
	}
	third := m.apply(t, docs(route("cart", 50), subsets("cart")))
	if first.Revision != 1 || second.Revision != 2 || third.Revision != 2 {
		t.Errorf("revisions %d, %d, %d, want 1, 2, 2", first.Revision, second.Revision, third.Revision)
	}
	if second.Results[1].Revision != 1 || len(second.Results[0].Warnings) != 0 {
		t.Errorf("results %v, want the unchanged rule at revision 1 and no warnings", second.Results)
	}
	got, err := m.Rules.Get(t.Context(), &api.GetRuleRequest{Rule: "VirtualService/cart"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Kind != "VirtualService" || got.Author != "ada" || got.Reason != "test" || got.Revision != 2 || got.Source != "api" || !strings.Contains(got.Yaml, "weight: 50") {
		t.Errorf("got %v", got)
	}
}

func TestApplyRefusesWithEveryMistake(t *testing.T) {
	m := start(t, nil)
	bad := strings.ReplaceAll(route("cart", 90), "weight: 90", "weight: -1")
	other := strings.ReplaceAll(subsets("cart"), "host: cart", "hosts: cart")
	_, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: docs(bad, other, route("fine", 10)), Author: "ada"})
	wantCode(t, err, connect.CodeInvalidArgument, cartRoute, cartSubsets, "spec.http[0].route[0].weight", "spec.hosts")
	problems := api.Problems(err)
	if len(problems) < 2 || problems[0].Line == 0 || !strings.Contains(problems[0].Message, "weight") {
		t.Errorf("problems %v, want both with lines", problems)
	}
	if l, err := m.store.List(t.Context()); err != nil || len(l.Records) != 0 {
		t.Errorf("stored %v, %v, want nothing", l, err)
	}
	for name, req := range map[string]*api.ApplyRequest{
		"author is empty":  {Yaml: route("cart", 1)},
		"holds no rule":    {Yaml: "# nothing\n", Author: "ada"},
		"is not in the te": {Yaml: route("cart", 1), Author: "ada", Expected: map[string]uint64{"virtualservice/default/other": 1}},
	} {
		_, err := m.Rules.Apply(t.Context(), req)
		wantCode(t, err, connect.CodeInvalidArgument, name)
	}
}

func TestExpectedRevisionsProtectAgainstLostUpdates(t *testing.T) {
	m := start(t, nil)
	m.apply(t, route("cart", 90))
	m.apply(t, route("other", 90))
	try := func(change func(*api.ApplyRequest)) error {
		req := &api.ApplyRequest{Yaml: route("cart", 10), Author: "bob"}
		change(req)
		_, err := m.Rules.Apply(t.Context(), req)
		return err
	}
	wantCode(t, try(func(r *api.ApplyRequest) { r.ExpectedRevision = 1 }), connect.CodeAborted, "the rules are at revision 2, not 1")
	wantCode(t, try(func(r *api.ApplyRequest) { r.Expected = map[string]uint64{cartRoute: 2} }), connect.CodeAborted, "is at revision 1, not 2")
	wantCode(t, try(func(r *api.ApplyRequest) { r.Expected = map[string]uint64{cartRoute: 0} }), connect.CodeAborted, "exists already")
	if err := try(func(r *api.ApplyRequest) { r.Expected = map[string]uint64{cartRoute: 1}; r.ExpectedRevision = 2 }); err != nil {
		t.Errorf("right expectations: %v", err)
	}
}

func TestWritersWithoutExpectationsAllSucceed(t *testing.T) {
	m := start(t, nil)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			resp, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: docs(route("cart", i), route(fmt.Sprint("own", i), i)), Author: fmt.Sprint("w", i)})
			if err != nil || len(resp.Results) != 2 {
				t.Errorf("writer %d: %v, %v", i, resp, err)
			}
		})
	}
	wg.Wait()
	h, err := m.Rules.History(t.Context(), &api.HistoryRequest{Rule: cartRoute})
	if err != nil || len(h.Rules) != 4 || h.NextPageToken != "" {
		t.Errorf("history %v, %v, want 4 states", h, err)
	}
}

func TestDeleteHistoryAndRollback(t *testing.T) {
	m := start(t, nil)
	m.apply(t, docs(route("cart", 90), subsets("cart")))
	m.apply(t, route("cart", 50))
	deleted, err := m.Rules.Delete(t.Context(), &api.DeleteRulesRequest{Rules: []string{cartSubsets, cartSubsets}, Author: "bob", Reason: "oops"})
	if err != nil {
		t.Fatal(err)
	}
	if outcomes(deleted) != cartSubsets+" DELETED\n" {
		t.Errorf("deleted %s", outcomes(deleted))
	}
	if len(deleted.Warnings) == 0 || !strings.HasPrefix(deleted.Warnings[0], cartRoute) || !strings.Contains(deleted.Warnings[0], "subset v1") {
		t.Errorf("warnings %q, want that the route lost its subsets", deleted.Warnings)
	}
	_, err = m.Rules.Delete(t.Context(), &api.DeleteRulesRequest{Rules: []string{cartSubsets, cartRoute}, Author: "bob"})
	wantCode(t, err, connect.CodeNotFound, cartSubsets)

	back, err := m.Rules.Rollback(t.Context(), &api.RollbackRequest{ToRevision: 1, Author: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(cartSubsets+" CREATED\n"+cartRoute+" UPDATED\n", outcomes(back)); d != "" || back.Revision != 4 {
		t.Errorf("rolled back to revision %d (-want +got):\n%s", back.Revision, d)
	}
	got, err := m.Rules.Get(t.Context(), &api.GetRuleRequest{Rule: cartRoute})
	if err != nil || !strings.Contains(got.Yaml, "weight: 90") || got.Reason != "roll back to revision 1" {
		t.Errorf("got %v, %v, want weight 90 again", got, err)
	}
	first, err := m.Rules.History(t.Context(), &api.HistoryRequest{Rule: cartSubsets})
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, r := range first.Rules {
		states = append(states, fmt.Sprint(r.Revision, " ", r.Deleted, " ", r.Author))
	}
	if d := cmp.Diff([]string{"4 false ada", "3 true bob", "1 false ada"}, states); d != "" {
		t.Errorf("history (-want +got):\n%s", d)
	}
	if c := first.Rules[0].Created.AsTime(); !c.Equal(first.Rules[2].Created.AsTime()) {
		t.Errorf("created %v after the roll-back, want %v as before", c, first.Rules[2].Created.AsTime())
	}

	one, err := m.Rules.Rollback(t.Context(), &api.RollbackRequest{Rule: cartRoute, ToRevision: 2, Author: "ada"})
	if err != nil || outcomes(one) != cartRoute+" UPDATED\n" {
		t.Errorf("roll back of one: %v, %v", one, err)
	}
	for _, rule := range []string{"", cartRoute} {
		_, err = m.Rules.Rollback(t.Context(), &api.RollbackRequest{Rule: rule, Author: "ada"})
		wantCode(t, err, connect.CodeInvalidArgument, "to_revision: is missing")
		_, err = m.Rules.Rollback(t.Context(), &api.RollbackRequest{Rule: rule, ToRevision: 1 << 63, Author: "ada"})
		wantCode(t, err, connect.CodeInvalidArgument, "to_revision: 9223372036854775808")
		_, err = m.Rules.History(t.Context(), &api.HistoryRequest{Rule: rule, Before: 1 << 63})
		wantCode(t, err, connect.CodeInvalidArgument, "before: 9223372036854775808")
		if _, err = m.Rules.History(t.Context(), &api.HistoryRequest{Rule: rule, Before: 1<<63 - 1}); err != nil {
			t.Errorf("history before the last revision there can be: %v", err)
		}
	}
	if l, err := m.Rules.List(t.Context(), &api.ListRulesRequest{}); err != nil || len(l.Rules) != 2 {
		t.Errorf("after what was refused: %v, %v, want both rules", l, err)
	}
	_, err = m.Rules.Rollback(t.Context(), &api.RollbackRequest{ToRevision: 99, Author: "ada"})
	wantCode(t, err, connect.CodeNotFound, "revision 99")
	_, err = m.Rules.Rollback(t.Context(), &api.RollbackRequest{Rule: "virtualservice/default/never", ToRevision: 1, Author: "ada"})
	wantCode(t, err, connect.CodeNotFound, "never written")
}

func TestRollbackLeavesRulesOfFilesAlone(t *testing.T) {
	files := &atomic.Pointer[rules.Set]{}
	files.Store(&rules.Set{})
	m := start(t, func(c *manage.Config) { c.FileRules = func() rules.Set { return *files.Load() } })
	m.apply(t, docs(route("cart", 90), subsets("cart")))
	if _, err := m.Rules.Delete(t.Context(), &api.DeleteRulesRequest{Rules: []string{cartRoute, cartSubsets}, Author: "ada"}); err != nil {
		t.Fatal(err)
	}
	parsed, err := rules.Parse("cart.yaml", []byte(route("cart", 50)))
	if err != nil {
		t.Fatal(err)
	}
	set := rules.NewSet(parsed...)
	files.Store(&set)
	for _, rule := range []string{"", cartRoute} {
		_, err := m.Rules.Rollback(t.Context(), &api.RollbackRequest{Rule: rule, ToRevision: 1, Author: "ada"})
		wantCode(t, err, connect.CodeFailedPrecondition, cartRoute+" comes from a file of the server")
	}
	if l, err := m.store.List(t.Context()); err != nil || len(l.Records) != 0 {
		t.Errorf("stored %v, %v, want nothing", l.Records, err)
	}
	back, err := m.Rules.Rollback(t.Context(), &api.RollbackRequest{Rule: cartSubsets, ToRevision: 1, Author: "ada"})
	if err != nil || outcomes(back) != cartSubsets+" CREATED\n" {
		t.Errorf("the rule that no file holds: %v, %v", back, err)
	}
}

// fixedPreview answers with the same changes, and records what it was asked.
type fixedPreview struct {
	diff  generate.Diff
	asked rules.Set
}

func (p *fixedPreview) Preview(next rules.Set) (generate.Diff, error) {
	p.asked = next
	return p.diff, nil
}

func TestDryRunShowsChangesAndStoresNothing(t *testing.T) {
	cluster := func(name string) *resource.Resource {
		r, err := resource.New(resource.Cluster, name, &clusterv3.Cluster{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	preview := &fixedPreview{diff: generate.Diff{Live: 3, Scopes: []generate.ScopeDiff{{Scope: "default", Streams: 7, Changes: []generate.Change{
		{Key: resource.Key{Type: resource.Cluster, Name: "new"}, After: cluster("new")},
		{Key: resource.Key{Type: resource.Cluster, Name: "gone"}, Before: cluster("gone")},
	}}}}}
	m := start(t, func(c *manage.Config) { c.Preview = preview })
	resp, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: route("cart", 90), DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.DryRun || outcomes(resp) != cartRoute+" CREATED\n" || resp.Results[0].Revision != 0 || resp.Revision != 0 {
		t.Errorf("got %v", resp)
	}
	if len(resp.Results[0].Warnings) == 0 {
		t.Error("no warning, want that the subsets are not defined")
	}
	if resp.Scopes != 3 || len(resp.Changes) != 2 || resp.Changes[0].Proxies != 7 || resp.Changes[0].Kind != api.ResourceChange_ADDED || resp.Changes[1].Kind != api.ResourceChange_REMOVED ||
		resp.Changes[0].After.Fields["name"].GetStringValue() != "new" || resp.Changes[1].After != nil {
		t.Errorf("changes %v", resp.Changes)
	}
	if preview.asked.Len() != 1 || preview.asked.Get(cartRoute) == nil {
		t.Errorf("preview was asked about %d rules, want the new one", preview.asked.Len())
	}
	if r, err := m.store.Revision(t.Context()); err != nil || r != 0 {
		t.Errorf("store at revision %d, %v, want 0", r, err)
	}
}

func TestListPagesAndFilters(t *testing.T) {
	fileRules, err := rules.Parse("files", []byte(subsets("from-file")))
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, func(c *manage.Config) {
		c.FileRules = func() rules.Set { return rules.NewSet(fileRules...) }
	})
	m.status.Attach(&streams{rollout: map[string]map[string]status.Stage{
		"virtualservice/default/a": {"n1": status.Applied, "n2": status.Waiting, "n3": status.Refused},
	}})
	m.apply(t, docs(route("c", 1), route("a", 1), route("b", 1), subsets("a")))
	var keys []string
	req := &api.ListRulesRequest{PageSize: 2}
	for {
		resp, err := m.Rules.List(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.Rules {
			keys = append(keys, r.Kind+"/"+r.Name+"/"+r.Source)
		}
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			break
		}
	}
	if d := cmp.Diff([]string{
		"DestinationRule/a/api", "DestinationRule/from-file/file", "VirtualService/a/api", "VirtualService/b/api", "VirtualService/c/api",
	}, keys); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	resp, err := m.Rules.List(t.Context(), &api.ListRulesRequest{Kind: "virtualservice"})
	if err != nil || len(resp.Rules) != 3 || resp.Revision != 1 {
		t.Fatalf("virtual services %v, %v, want 3", resp, err)
	}
	if a := resp.Rules[0].Applied; a.Applied != 1 || a.Total != 3 || a.Waiting != 1 || a.Refused != 1 {
		t.Errorf("applied %v, want 1 of 3, 1 waiting, 1 refused", a)
	}
	got, err := m.Rules.Get(t.Context(), &api.GetRuleRequest{Rule: "virtualservice/a"})
	if err != nil || !slices.Equal(got.Applied.RefusedNodes, []string{"n3"}) || !slices.Equal(got.Applied.WaitingNodes, []string{"n2"}) {
		t.Errorf("got %v, %v, want the nodes", got, err)
	}
	for _, err := range []error{
		second(m.Rules.List(t.Context(), &api.ListRulesRequest{Kind: "nonsense"})),
		second(m.Rules.List(t.Context(), &api.ListRulesRequest{PageSize: 1001})),
		second(m.Rules.Get(t.Context(), &api.GetRuleRequest{Rule: "virtualservice"})),
	} {
		wantCode(t, err, connect.CodeInvalidArgument)
	}
	_, err = m.Rules.Get(t.Context(), &api.GetRuleRequest{Rule: "virtualservice/zzz"})
	wantCode(t, err, connect.CodeNotFound)

	_, err = m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: subsets("from-file"), Author: "ada"})
	wantCode(t, err, connect.CodeFailedPrecondition, "comes from a file")
	_, err = m.Rules.Delete(t.Context(), &api.DeleteRulesRequest{Rules: []string{"destinationrule/from-file"}, Author: "ada"})
	wantCode(t, err, connect.CodeFailedPrecondition, "remove it there")
}

func second[T any](_ T, err error) error { return err }

func TestCheck(t *testing.T) {
	m := start(t, nil)
	m.apply(t, subsets("cart"))
	resp, err := m.Rules.Check(t.Context(), &api.CheckRequest{Yaml: route("cart", 90)})
	if err != nil || len(resp.Problems) != 0 || len(resp.Results) != 1 {
		t.Fatalf("check: %v, %v", resp, err)
	}
	if w := strings.Join(resp.Results[0].Warnings, "\n"); strings.Contains(w, "subset") || !strings.Contains(w, "no registry holds cart") {
		t.Errorf("warnings %q, want the unknown host and not the subsets that are in force", w)
	}
	alone, err := m.Rules.Check(t.Context(), &api.CheckRequest{Yaml: route("cart", 90), Alone: true})
	if err != nil || !strings.Contains(strings.Join(alone.Results[0].Warnings, "\n"), "subset v1") {
		t.Errorf("check alone: %v, %v, want the missing subset", alone, err)
	}
	wrong, err := m.Rules.Check(t.Context(), &api.CheckRequest{Yaml: "kind: Nonsense\n---\n: :\n"})
	if err != nil || len(wrong.Problems) < 2 {
		t.Errorf("check of nonsense: %v, %v, want every problem", wrong, err)
	}
}

func TestUnreadableRuleIsShownAndItsNeighboursLive(t *testing.T) {
	m := start(t, nil)
	m.apply(t, subsets("cart"))
	if _, err := m.store.Apply(t.Context(), store.Batch{Author: "newer", Changes: []store.Change{
		{Key: store.Key{Kind: "virtualservice", Namespace: "default", Name: "odd"}, YAML: "kind: VirtualService\nfuture: true\n"},
		{Key: store.Key{Kind: "futurerule", Namespace: "default", Name: "x"}, YAML: "kind: FutureRule\n"},
	}}); err != nil {
		t.Fatal(err)
	}
	resp, err := m.Rules.List(t.Context(), &api.ListRulesRequest{})
	if err != nil || len(resp.Rules) != 3 {
		t.Fatalf("list: %v, %v, want 3 rules", resp, err)
	}
	for i, bad := range []bool{false, true, true} {
		got := slices.ContainsFunc(resp.Rules[i].Warnings, func(w string) bool { return strings.Contains(w, "cannot read it") })
		if got != bad {
			t.Errorf("rules[%d] %s: warnings %q, want unreadable %v", i, resp.Rules[i].Name, resp.Rules[i].Warnings, bad)
		}
	}
	if got := m.apply(t, route("cart", 5)); outcomes(got) != cartRoute+" CREATED\n" {
		t.Errorf("apply beside it: %s", outcomes(got))
	}
}

func TestHistoryPagesThroughABatch(t *testing.T) {
	m := start(t, nil)
	m.apply(t, docs(route("a", 1), route("b", 1), route("c", 1)))
	m.apply(t, route("b", 2))
	var seen []string
	req := &api.HistoryRequest{PageSize: 2}
	for {
		resp, err := m.Rules.History(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range resp.Rules {
			seen = append(seen, fmt.Sprint(r.Revision, r.Name))
		}
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			break
		}
	}
	if d := cmp.Diff([]string{"2b", "1a", "1b", "1c"}, seen); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	for _, token := range []string{"x", "0/a/b/c", "1/a/b", "-1/a/b/c"} {
		_, err := m.Rules.History(t.Context(), &api.HistoryRequest{PageToken: token})
		wantCode(t, err, connect.CodeInvalidArgument, "page_token")
	}
}

func TestPagesOfLargeRulesAreCutShort(t *testing.T) {
	m := start(t, nil)
	m.server.SetPageBytes(3 * len(route("r0", 1)))
	const n = 5
	for i := range n {
		write(t, m.store, fmt.Sprintf("r%d", i), route(fmt.Sprintf("r%d", i), 1))
	}
	pages, total := 0, 0
	req := &api.ListRulesRequest{PageSize: 1000}
	for {
		resp, err := m.Rules.List(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		pages, total = pages+1, total+len(resp.Rules)
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			break
		}
	}
	if pages != 2 || total != n {
		t.Errorf("%d rules on %d pages, want %d on 2", total, pages, n)
	}
	pages, total = 0, 0
	history := &api.HistoryRequest{PageSize: 1000}
	for {
		resp, err := m.Rules.History(t.Context(), history)
		if err != nil {
			t.Fatal(err)
		}
		pages, total = pages+1, total+len(resp.Rules)
		if history.PageToken = resp.NextPageToken; history.PageToken == "" {
			break
		}
	}
	if pages != 2 || total != n {
		t.Errorf("%d states on %d pages, want %d on 2", total, pages, n)
	}
}

// TestPendingRule: as long as proxies are served by another revision, what they
// acknowledged says nothing of this one.
func TestPendingRule(t *testing.T) {
	var served rules.Set
	m := start(t, func(c *manage.Config) { c.InForce = func() rules.Set { return served } })
	if _, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: route("cart", 90), Author: "test"}); err != nil {
		t.Fatal(err)
	}
	pending := func() bool {
		t.Helper()
		r, err := m.Rules.Get(t.Context(), &api.GetRuleRequest{Rule: cartRoute})
		if err != nil {
			t.Fatal(err)
		}
		l, err := m.Rules.List(t.Context(), &api.ListRulesRequest{})
		if err != nil || len(l.Rules) != 1 || l.Rules[0].Applied.Pending != r.Applied.Pending {
			t.Fatalf("list %v, %v differs from get %v", l, err, r)
		}
		return r.Applied.Pending
	}
	if !pending() {
		t.Error("a rule that no proxy is served by is not pending")
	}
	parsed, err := rules.Parse("test", []byte(route("cart", 90)))
	if err != nil {
		t.Fatal(err)
	}
	parsed[0].Revision = 1
	served = rules.NewSet(parsed...)
	if pending() {
		t.Error("the revision in force is pending")
	}
	parsed[0].Revision = 7
	served = rules.NewSet(parsed...)
	if !pending() {
		t.Error("another revision in force, and the rule is not pending")
	}
}
