package manage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/generate"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

// What a dry run lists of changed resources: so many, and so many bytes of them.
const (
	maxChanges     = 500
	maxChangeBytes = 16 << 20
)

// maxAttempts is how often a change is planned anew because someone else wrote
// between the reading and the writing.
const maxAttempts = 5

// maxRevision is the largest revision a store counts to.
const maxRevision = math.MaxInt64

// plan is what a request makes of the rules that are there.
type plan struct {
	changes []store.Change
	results []*api.RuleResult
}

// intent is what all changing requests say beside what they change.
type intent struct {
	author, reason string
	expected       uint64
	dryRun         bool
}

func (s *ruleService) Apply(ctx context.Context, req *api.ApplyRequest) (*api.ApplyResponse, error) {
	parsed, err := rules.Parse(requestName, []byte(req.Yaml))
	if err != nil {
		return nil, err
	}
	if len(parsed) == 0 {
		return nil, badRequest("yaml: holds no rule")
	}
	expected := map[rules.Key]uint64{}
	var errs []error
	for text, revision := range req.Expected {
		k, err := rules.ParseKey(text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("expected: %w", err))
		case !slices.ContainsFunc(parsed, func(r *rules.Rule) bool { return r.Key() == k }):
			errs = append(errs, fmt.Errorf("expected: %s is not in the text", k))
		default:
			expected[k] = revision
		}
	}
	if len(errs) > 0 {
		return nil, &requestError{errors.Join(errs...)}
	}
	return s.change(ctx, intent{req.Author, req.Reason, req.ExpectedRevision, req.DryRun}, func(now store.Listing) (plan, error) {
		return s.planApply(parsed, expected, now)
	})
}

func (s *ruleService) Delete(ctx context.Context, req *api.DeleteRulesRequest) (*api.ApplyResponse, error) {
	if len(req.Rules) == 0 {
		return nil, badRequest("rules: none is named")
	}
	var keys []rules.Key
	var errs []error
	for _, text := range req.Rules {
		k, err := rules.ParseKey(text)
		if err != nil {
			errs = append(errs, err)
		} else if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if len(errs) > 0 {
		return nil, &requestError{errors.Join(errs...)}
	}
	return s.change(ctx, intent{req.Author, req.Reason, req.ExpectedRevision, req.DryRun}, func(now store.Listing) (plan, error) {
		return s.planDelete(keys, now)
	})
}

func (s *ruleService) Rollback(ctx context.Context, req *api.RollbackRequest) (*api.ApplyResponse, error) {
	switch {
	case req.ToRevision == 0: // a field that was forgotten or misspelt would delete every rule
		return nil, badRequest("to_revision: is missing: name the revision to go back to; to take rules out, delete them")
	case req.ToRevision > maxRevision:
		return nil, badRequest("to_revision: %d, want at most %d", req.ToRevision, uint64(maxRevision))
	}
	var key rules.Key
	if req.Rule != "" {
		var err error
		if key, err = parseKey(req.Rule); err != nil {
			return nil, err
		}
		known, err := s.cfg.Store.History(ctx, store.HistoryQuery{Key: storeKey(key), Limit: 1})
		if err != nil {
			return nil, err
		}
		if len(known) == 0 {
			return nil, fmt.Errorf("roll back rule %s: %w: it was never written through the Mesh API", key, store.ErrNotFound)
		}
	}
	then, err := s.cfg.Store.At(ctx, store.Revision(req.ToRevision))
	if err != nil {
		return nil, fmt.Errorf("roll back: %w", err)
	}
	in := intent{req.Author, req.Reason, req.ExpectedRevision, req.DryRun}
	if in.reason == "" {
		in.reason = fmt.Sprintf("roll back to revision %d", req.ToRevision)
	}
	return s.change(ctx, in, func(now store.Listing) (plan, error) { return s.planRollback(key, then, now) })
}

// byKey indexes a listing.
func byKey(l store.Listing) map[store.Key]store.Record {
	m := make(map[store.Key]store.Record, len(l.Records))
	for _, r := range l.Records {
		m[r.Key] = r
	}
	return m
}

func (s *ruleService) planApply(parsed []*rules.Rule, expected map[rules.Key]uint64, now store.Listing) (plan, error) {
	live, files := byKey(now), s.cfg.FileRules()
	var p plan
	var errs []error
	for _, r := range parsed {
		key := r.Key()
		have, exists := live[storeKey(key)]
		if want, given := expected[key]; given && want != uint64(have.Revision) {
			wanted := store.Expect(want)
			if want == 0 {
				wanted = store.Absent
			}
			errs = append(errs, &store.ConflictError{Key: storeKey(key), Want: wanted, Have: have.Revision})
			continue
		}
		if !exists && files.Get(key) != nil {
			errs = append(errs, forbidden("%s comes from a file of the server: change it there", key))
			continue
		}
		result := &api.RuleResult{Rule: string(key), Outcome: api.Outcome_UPDATED, Revision: uint64(have.Revision)}
		change := store.Change{Key: storeKey(key), YAML: r.YAML, Expect: store.Expect(have.Revision)}
		switch {
		case !exists:
			result.Outcome, change.Expect = api.Outcome_CREATED, store.Absent
		case have.YAML == r.YAML:
			result.Outcome = api.Outcome_UNCHANGED
		}
		p.results = append(p.results, result)
		if result.Outcome != api.Outcome_UNCHANGED {
			p.changes = append(p.changes, change)
		}
	}
	return p, errors.Join(errs...)
}

func (s *ruleService) planDelete(keys []rules.Key, now store.Listing) (plan, error) {
	live, files := byKey(now), s.cfg.FileRules()
	var p plan
	var errs []error
	for _, key := range keys {
		have, exists := live[storeKey(key)]
		switch {
		case exists:
			p.results = append(p.results, &api.RuleResult{Rule: string(key), Outcome: api.Outcome_DELETED})
			p.changes = append(p.changes, store.Change{Key: have.Key, Delete: true, Expect: store.Expect(have.Revision)})
		case files.Get(key) != nil:
			errs = append(errs, forbidden("%s comes from a file of the server: remove it there", key))
		default:
			errs = append(errs, fmt.Errorf("rule %s: %w", key, store.ErrNotFound))
		}
	}
	return p, errors.Join(errs...)
}

// planRollback makes of now what was then: of one rule, or of all when key is empty.
func (s *ruleService) planRollback(key rules.Key, then, now store.Listing) (plan, error) {
	before, live, files := byKey(then), byKey(now), s.cfg.FileRules()
	touched := map[store.Key]bool{}
	for _, l := range []store.Listing{then, now} {
		for _, rec := range l.Records {
			if key == "" || ruleKey(rec.Key) == key {
				touched[rec.Key] = true
			}
		}
	}
	if key != "" {
		touched[storeKey(key)] = true
	}
	var p plan
	var errs []error
	for k := range touched {
		old, was := before[k]
		have, is := live[k]
		result := &api.RuleResult{Rule: k.String(), Outcome: api.Outcome_UNCHANGED, Revision: uint64(have.Revision)}
		p.results = append(p.results, result)
		change := store.Change{Key: k, YAML: old.YAML, Created: old.Created, Expect: store.Expect(have.Revision)}
		switch {
		case !was && !is, was && is && old.YAML == have.YAML && old.Created.Equal(have.Created):
			continue
		case !was:
			result.Outcome, change.Delete, change.Created = api.Outcome_DELETED, true, time.Time{}
		case !is && files.Get(ruleKey(k)) != nil:
			errs = append(errs, forbidden("%v comes from a file of the server: change it there", k))
			continue
		case !is:
			result.Outcome, change.Expect = api.Outcome_CREATED, store.Absent
		default:
			result.Outcome = api.Outcome_UPDATED
		}
		if was {
			if _, err := parseRecord(old); err != nil {
				errs = append(errs, forbidden("%v as of revision %d cannot be read by this release: %v", k, then.Revision, err))
			}
		}
		p.changes = append(p.changes, change)
	}
	slices.SortFunc(p.results, func(a, b *api.RuleResult) int { return cmp.Compare(a.Rule, b.Rule) })
	slices.SortFunc(p.changes, func(a, b store.Change) int { return cmp.Compare(a.Key.String(), b.Key.String()) })
	return p, errors.Join(errs...)
}

// change plans against what is there and commits, planning anew when someone else
// wrote meanwhile. With dryRun it says what would happen.
func (s *ruleService) change(ctx context.Context, in intent, planFor func(store.Listing) (plan, error)) (*api.ApplyResponse, error) {
	for attempt := 1; ; attempt++ {
		now, err := s.cfg.Store.List(ctx)
		if err != nil {
			return nil, err
		}
		if in.expected != 0 && store.Revision(in.expected) != now.Revision {
			return nil, &store.ConflictError{Want: store.Expect(in.expected), Have: now.Revision}
		}
		p, err := planFor(now)
		if err != nil {
			return nil, err
		}
		resp, next, err := s.foretell(now, p)
		if err != nil {
			return nil, err
		}
		if in.dryRun {
			resp.DryRun = true
			return resp, s.preview(resp, next)
		}
		if len(p.changes) == 0 {
			return resp, nil
		}
		rev, err := s.cfg.Store.Apply(ctx, store.Batch{
			Author: in.author, Reason: in.reason, Time: time.Now(), Expect: store.Revision(in.expected), Changes: p.changes,
		})
		if _, conflict := errors.AsType[*store.ConflictError](err); conflict && attempt < maxAttempts {
			continue
		}
		if err != nil {
			return nil, err
		}
		resp.Revision = uint64(rev)
		for _, r := range resp.Results {
			if r.Outcome != api.Outcome_UNCHANGED {
				r.Revision = uint64(rev)
			}
		}
		s.cfg.Log.Info("rules changed", "revision", uint64(rev), "author", in.author, "reason", in.reason, "changes", len(p.changes))
		return resp, nil
	}
}

// after is the set in force once changes are committed over now.
func (s *ruleService) after(now store.Listing, changes []store.Change) (rules.Set, error) {
	next := byKey(now)
	for _, c := range changes {
		if c.Delete {
			delete(next, c.Key)
			continue
		}
		rec := store.Record{Key: c.Key, YAML: c.YAML, Created: cmp.Or(c.Created, next[c.Key].Created)}
		if rec.Created.IsZero() {
			rec.Created = time.Now()
		}
		next[c.Key] = rec
	}
	unchanged := s.readable(now)
	all := make([]*rules.Rule, 0, len(next))
	for k, rec := range next {
		if r := unchanged.Get(ruleKey(k)); r != nil && r.Revision == int64(rec.Revision) {
			all = append(all, r)
			continue
		}
		r, err := parseRecord(rec)
		if err != nil && rec.Revision == 0 {
			return rules.Set{}, err // it is part of the request
		}
		if err == nil {
			all = append(all, r)
		}
	}
	return s.inForce(rules.NewSet(all...)), nil
}

// foretell fills the answer with warnings, and returns the set that is to come.
func (s *ruleService) foretell(now store.Listing, p plan) (*api.ApplyResponse, rules.Set, error) {
	next, err := s.after(now, p.changes)
	if err != nil {
		return nil, rules.Set{}, err
	}
	before, after := s.findings(s.inForce(s.readable(now))), s.findings(next)
	resp := &api.ApplyResponse{Revision: uint64(now.Revision), Results: p.results}
	for _, r := range p.results {
		r.Warnings = after[rules.Key(r.Rule)]
		delete(after, rules.Key(r.Rule))
	}
	for key, warnings := range after {
		for _, w := range warnings {
			if !slices.Contains(before[key], w) {
				resp.Warnings = append(resp.Warnings, fmt.Sprintf("%s: %s", key, w))
			}
		}
	}
	slices.Sort(resp.Warnings)
	return resp, next, nil
}

// preview adds what proxies would get.
func (s *ruleService) preview(resp *api.ApplyResponse, next rules.Set) error {
	for _, r := range resp.Results {
		if r.Outcome != api.Outcome_UNCHANGED {
			r.Revision = 0
		}
	}
	if s.cfg.Preview == nil {
		return nil
	}
	diff, err := s.cfg.Preview.Preview(next)
	if err != nil {
		return fmt.Errorf("dry run: %w", err)
	}
	resp.Scopes = uint32(diff.Live)
	size := 0
	for _, scope := range diff.Scopes {
		for _, c := range scope.Changes {
			if len(resp.Changes) == maxChanges || size > maxChangeBytes {
				resp.ChangesOmitted++
				continue
			}
			out := changeOf(c)
			out.Scope, out.Proxies = scope.Scope, uint32(scope.Streams)
			size += proto.Size(out)
			resp.Changes = append(resp.Changes, out)
		}
	}
	return nil
}

func changeOf(c generate.Change) *api.ResourceChange {
	out := &api.ResourceChange{Type: c.Key.Type.String(), Name: c.Key.Name, Kind: api.ResourceChange_CHANGED}
	if c.Before == nil {
		out.Kind = api.ResourceChange_ADDED
	} else {
		out.Before = bodyOf(c.Before)
	}
	if c.After == nil {
		out.Kind = api.ResourceChange_REMOVED
	} else {
		out.After = bodyOf(c.After)
	}
	return out
}
