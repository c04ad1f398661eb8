package manage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

// requestName is what the parser calls the text of a request.
const requestName = "request"

// maxNodes is how many nodes Get names that did not take a rule.
const maxNodes = 20

// Sources of a rule.
const (
	fromAPI  = "api"
	fromFile = "file"
)

type ruleService struct {
	*Server

	mu     sync.Mutex
	parsed map[store.Key]*rules.Rule // of the listing read last
}

// readable returns the rules of a listing; what cannot be read is left out, as the
// Loader leaves it out.
func (s *ruleService) readable(l store.Listing) rules.Set {
	s.mu.Lock()
	old := s.parsed
	s.mu.Unlock()
	next := make(map[store.Key]*rules.Rule, len(l.Records))
	all := make([]*rules.Rule, 0, len(l.Records))
	for _, rec := range l.Records {
		r := old[rec.Key]
		if r == nil || r.Revision != int64(rec.Revision) {
			var err error
			if r, err = parseRecord(rec); err != nil {
				continue // the Loader reports it, and List shows it as a warning
			}
		}
		next[rec.Key] = r
		all = append(all, r)
	}
	s.mu.Lock()
	s.parsed = next
	s.mu.Unlock()
	return rules.NewSet(all...)
}

// inForce is the set that proxies get: the store's rules and those from files.
func (s *ruleService) inForce(stored rules.Set) rules.Set { return stored.Union(s.cfg.FileRules()) }

// findings are the warnings of a set by rule.
func (s *ruleService) findings(set rules.Set) map[rules.Key][]string {
	view := s.cfg.Catalog.View()
	byRule := map[rules.Key][]string{}
	for _, f := range rules.Analyze(set, view.Service) {
		byRule[f.Rule] = append(byRule[f.Rule], warning(f))
	}
	return byRule
}

// warning is a finding without the rule, which the answer names already.
func warning(f rules.Finding) string {
	f.Rule = ""
	return f.String()
}

func parseKey(text string) (rules.Key, error) {
	k, err := rules.ParseKey(text)
	if err != nil {
		return "", &requestError{err}
	}
	return k, nil
}

func (s *ruleService) Get(ctx context.Context, req *api.GetRuleRequest) (*api.Rule, error) {
	k, err := parseKey(req.Rule)
	if err != nil {
		return nil, err
	}
	l, err := s.cfg.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	set := s.inForce(s.readable(l))
	var out *api.Rule
	if i := slices.IndexFunc(l.Records, func(r store.Record) bool { return r.Key == storeKey(k) }); i >= 0 {
		out = ruleOf(l.Records[i])
		out.Warnings = unreadable(set, l.Records[i])
	} else if r := s.cfg.FileRules().Get(k); r != nil {
		out = fileRule(r)
	} else {
		return nil, fmt.Errorf("rule %s: %w", k, store.ErrNotFound)
	}
	out.Warnings = append(out.Warnings, s.findings(set)[k]...)
	progress := s.cfg.Proxies.Applied(string(k))[string(k)]
	out.Applied = appliedOf(progress)
	out.Applied.Pending = s.pending(out)
	out.Applied.WaitingNodes = progress.Waiting[:min(len(progress.Waiting), maxNodes)]
	out.Applied.RefusedNodes = progress.Refused[:min(len(progress.Refused), maxNodes)]
	return out, nil
}

func (s *ruleService) List(ctx context.Context, req *api.ListRulesRequest) (*api.ListRulesResponse, error) {
	kind := rules.Kind(0)
	if req.Kind != "" {
		var err error
		if kind, err = rules.ParseKind(req.Kind); err != nil {
			return nil, &requestError{err}
		}
	}
	l, err := s.cfg.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	set := s.inForce(s.readable(l))
	findings := s.findings(set)
	var all []*api.Rule
	add := func(r *api.Rule) {
		if (req.Namespace == "" || r.Namespace == req.Namespace) && (kind == 0 || r.Kind == kind.String()) {
			all = append(all, r)
		}
	}
	stored := map[rules.Key]bool{}
	for _, rec := range l.Records {
		stored[ruleKey(rec.Key)] = true
		r := ruleOf(rec)
		r.Warnings = unreadable(set, rec)
		add(r)
	}
	for _, r := range s.cfg.FileRules().All() {
		if !stored[r.Key()] {
			add(fileRule(r))
		}
	}
	slices.SortFunc(all, func(a, b *api.Rule) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	items, next, err := page(all, keyOf, req.PageSize, req.PageToken)
	if err != nil {
		return nil, err
	}
	if n := fitting(items, s.pageBytes, func(r *api.Rule) int { return len(r.Yaml) }); n < len(items) {
		items, next = items[:n], keyOf(items[n-1])
	}
	names := make([]string, len(items))
	for i, r := range items {
		names[i] = keyOf(r)
	}
	var applied map[string]status.Progress
	if len(names) > 0 { // no names would mean all
		applied = s.cfg.Proxies.Applied(names...)
	}
	for _, r := range items {
		r.Applied = appliedOf(applied[keyOf(r)])
		r.Applied.Pending = s.pending(r)
		r.Warnings = append(r.Warnings, findings[rules.Key(keyOf(r))]...)
	}
	return &api.ListRulesResponse{Rules: items, Revision: uint64(l.Revision), NextPageToken: next}, nil
}

func (s *ruleService) History(ctx context.Context, req *api.HistoryRequest) (*api.HistoryResponse, error) {
	if req.Before > maxRevision {
		return nil, badRequest("before: %d, want at most %d", req.Before, uint64(maxRevision))
	}
	q := store.HistoryQuery{Before: store.Revision(req.Before), Limit: int(req.PageSize)}
	if req.PageToken != "" {
		if err := historyToken(req.PageToken, &q); err != nil {
			return nil, err
		}
	}
	if req.Rule != "" {
		k, err := parseKey(req.Rule)
		if err != nil {
			return nil, err
		}
		q.Key = storeKey(k)
	}
	records, err := s.cfg.Store.History(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 && req.Rule != "" && q.Before == 0 {
		return nil, fmt.Errorf("history of rule %s: %w: it was never written through the Mesh API", req.Rule, store.ErrNotFound)
	}
	resp := &api.HistoryResponse{}
	n := fitting(records, s.pageBytes, func(r store.Record) int { return len(r.YAML) })
	for _, rec := range records[:n] {
		resp.Rules = append(resp.Rules, ruleOf(rec))
	}
	full := len(records) == cmp.Or(q.Limit, store.DefaultHistory)
	if n > 0 && (full || n < len(records)) {
		last := records[n-1]
		resp.NextPageToken = fmt.Sprintf("%d/%v", last.Revision, last.Key)
	}
	return resp, nil
}

// historyToken reads a token of History: the revision and key of the last record.
func historyToken(token string, q *store.HistoryQuery) error {
	revision, key, _ := strings.Cut(token, "/")
	n, err := strconv.ParseUint(revision, 10, 63)
	parts := strings.Split(key, "/")
	if err != nil || n == 0 || len(parts) != 3 {
		return badRequest("page_token: %q is none of History", token)
	}
	q.Before, q.After = store.Revision(n), store.Key{Kind: parts[0], Namespace: parts[1], Name: parts[2]}
	return nil
}

func (s *ruleService) Check(ctx context.Context, req *api.CheckRequest) (*api.CheckResponse, error) {
	parsed, err := rules.Parse(requestName, []byte(req.Yaml))
	if mistakes, ok := errors.AsType[rules.Mistakes](err); ok {
		return &api.CheckResponse{Problems: problems(mistakes)}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &api.CheckResponse{}
	if req.Alone {
		byRule := map[rules.Key][]string{}
		for _, f := range rules.Analyze(rules.NewSet(parsed...), nil) {
			byRule[f.Rule] = append(byRule[f.Rule], warning(f))
		}
		for _, r := range parsed {
			resp.Results = append(resp.Results, &api.RuleResult{Rule: string(r.Key()), Warnings: byRule[r.Key()]})
		}
		return resp, nil
	}
	l, err := s.cfg.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.planApply(parsed, nil, l)
	if err != nil {
		return nil, err
	}
	next, err := s.after(l, p.changes)
	if err != nil {
		return nil, err
	}
	byRule := s.findings(next)
	for _, r := range p.results {
		r.Warnings, r.Revision = byRule[rules.Key(r.Rule)], 0
	}
	resp.Results = p.results
	return resp, nil
}

func ruleOf(rec store.Record) *api.Rule {
	kind := rec.Kind
	if k, err := rules.ParseKind(rec.Kind); err == nil {
		kind = k.String() // a kind of a newer release keeps its stored name
	}
	return &api.Rule{
		Kind: kind, Namespace: rec.Namespace, Name: rec.Name, Yaml: rec.YAML,
		Author: rec.Author, Reason: rec.Reason, Revision: uint64(rec.Revision), Time: stamp(rec.Time),
		Deleted: rec.Deleted, Created: stamp(rec.Created), Source: fromAPI,
	}
}

func fileRule(r *rules.Rule) *api.Rule {
	return &api.Rule{
		Kind: r.Kind.String(), Namespace: r.Namespace, Name: r.Name, Yaml: r.YAML,
		Author: r.Author, Reason: r.Reason, Created: stamp(r.Created), Source: fromFile,
	}
}

// unreadable warns of a stored rule that is not in force because this release
// cannot read it.
func unreadable(inForce rules.Set, rec store.Record) []string {
	if r := inForce.Get(ruleKey(rec.Key)); r != nil && r.Revision == int64(rec.Revision) {
		return nil
	}
	if _, err := parseRecord(rec); err != nil {
		return []string{"error: not in force, this release cannot read it: " + err.Error()}
	}
	return nil
}

func keyOf(r *api.Rule) string {
	return store.Key{Kind: strings.ToLower(r.Kind), Namespace: r.Namespace, Name: r.Name}.String()
}

// pending reports whether proxies are still served by another revision of r:
// what they acknowledged until then says nothing of this one.
func (s *ruleService) pending(r *api.Rule) bool {
	if s.cfg.InForce == nil {
		return false
	}
	served := s.cfg.InForce().Get(rules.Key(keyOf(r)))
	return served == nil || uint64(served.Revision) != r.Revision
}

func appliedOf(p status.Progress) *api.Applied {
	return &api.Applied{
		Applied: uint32(p.Applied), Total: uint32(p.Total),
		Waiting: uint32(len(p.Waiting)), Refused: uint32(len(p.Refused)),
	}
}
