// Package storetest is the suite that every rule store must pass.
//
// An implementation's test calls Run with a function that opens the same data
// again and again. The suite only uses the contract of store.Store.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/store"
)

// Opener opens the data of one test: each call opens what the earlier ones wrote.
type Opener func() (store.Store, error)

// Run tests the implementation. fresh returns an Opener over new, empty data.
func Run(t *testing.T, fresh func(t *testing.T) Opener) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, open Opener)
	}{
		{"an empty store has revision 0 and no rules", testEmpty},
		{"a batch is one revision and all of it is there", testBatch},
		{"a batch that conflicts writes nothing and names every conflict", testConflicts},
		{"expected revisions hold for a rule and for the store", testExpect},
		{"history keeps every state, deletions included", testHistory},
		{"history pages", testPages},
		{"a rule keeps its creation time until it is deleted", testCreated},
		{"the rules at an old revision can be read", testAt},
		{"bad batches are refused with all mistakes", testInvalid},
		{"all is there after it was opened again", testReopen},
		{"watch wakes on a change and ends with ctx and Close", testWatch},
		{"of many writers with one expectation one wins", testRace},
		{"text of any kind comes back as it was", testText},
		{"a closed store says so", testClosed},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, fresh(t)) })
	}
}

func mustOpen(t *testing.T, open Opener) store.Store {
	t.Helper()
	s, err := open()
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// when is a time that every database keeps exactly: microseconds.
var when = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

func key(name string) store.Key {
	return store.Key{Kind: "virtualservice", Namespace: "default", Name: name}
}

func put(name, text string) store.Change { return store.Change{Key: key(name), YAML: text} }

func remove(name string) store.Change { return store.Change{Key: key(name), Delete: true} }

func apply(t *testing.T, s store.Store, reason string, changes ...store.Change) store.Revision {
	t.Helper()
	r, err := s.Apply(t.Context(), store.Batch{Author: "ada", Reason: reason, Time: when, Changes: changes})
	if err != nil {
		t.Fatalf("apply %s: %v", reason, err)
	}
	return r
}

func record(name, text, reason string, r store.Revision, deleted bool) store.Record {
	return store.Record{Key: key(name), YAML: text, Author: "ada", Reason: reason, Revision: r, Time: when, Created: when, Deleted: deleted}
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func list(t *testing.T, s store.Store) store.Listing {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	return l
}

func testEmpty(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	same(t, "list", store.Listing{}, list(t, s))
	if _, err := s.Get(t.Context(), key("none")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("get: %v, want ErrNotFound", err)
	}
	if r, err := s.Apply(t.Context(), store.Batch{Author: "ada"}); err != nil || r != 0 {
		t.Errorf("empty batch: revision %d, %v, want 0", r, err)
	}
	h, err := s.History(t.Context(), store.HistoryQuery{})
	if err != nil || len(h) != 0 {
		t.Errorf("history: %v, %v, want none", h, err)
	}
}

func testBatch(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	if r := apply(t, s, "first", put("b", "b1"), put("a", "a1")); r != 1 {
		t.Errorf("revision %d, want 1", r)
	}
	if r := apply(t, s, "second", put("a", "a2"), remove("b")); r != 2 {
		t.Errorf("revision %d, want 2", r)
	}
	same(t, "list", store.Listing{Revision: 2, Records: []store.Record{record("a", "a2", "second", 2, false)}}, list(t, s))
	if r, err := s.Revision(t.Context()); err != nil || r != 2 {
		t.Errorf("revision %d, %v, want 2", r, err)
	}
	got, err := s.Get(t.Context(), key("a"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "get", record("a", "a2", "second", 2, false), got)
	if _, err := s.Get(t.Context(), key("b")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("get of a deleted rule: %v, want ErrNotFound", err)
	}
}

func testConflicts(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	apply(t, s, "first", put("a", "a1"))
	_, err := s.Apply(t.Context(), store.Batch{Author: "bob", Changes: []store.Change{
		put("c", "c1"),
		{Key: key("a"), YAML: "a2", Expect: store.Absent},
		remove("gone"),
	}})
	if _, ok := errors.AsType[*store.ConflictError](err); !ok {
		t.Fatalf("got %v, want a *ConflictError", err)
	}
	for _, want := range []string{"virtualservice/default/a exists already, at revision 1", "virtualservice/default/gone does not exist"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %q", err, want)
		}
	}
	same(t, "list", store.Listing{Revision: 1, Records: []store.Record{record("a", "a1", "first", 1, false)}}, list(t, s))
}

func testExpect(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	apply(t, s, "one", put("a", "a1"))
	apply(t, s, "two", put("b", "b1"))
	try := func(b store.Batch) error {
		b.Author = "bob"
		_, err := s.Apply(t.Context(), b)
		return err
	}
	conflicts := []store.Batch{
		{Changes: []store.Change{{Key: key("a"), YAML: "x", Expect: 2}}},
		{Changes: []store.Change{{Key: key("a"), Delete: true, Expect: 2}}},
		{Changes: []store.Change{{Key: key("none"), YAML: "x", Expect: 1}}},
		{Expect: 1, Changes: []store.Change{put("a", "x")}},
		{Expect: 3},
	}
	for i, b := range conflicts {
		if _, ok := errors.AsType[*store.ConflictError](try(b)); !ok {
			t.Errorf("conflicts[%d]: want a *ConflictError", i)
		}
	}
	for i, b := range []store.Batch{
		{Expect: 2, Changes: []store.Change{{Key: key("a"), YAML: "a2", Expect: 1}}},
		{Changes: []store.Change{{Key: key("b"), Delete: true, Expect: 2}}},
		{Changes: []store.Change{{Key: key("b"), YAML: "b2", Expect: store.Absent}}},
	} {
		if err := try(b); err != nil {
			t.Errorf("right[%d]: %v", i, err)
		}
	}
}

func testInvalid(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	_, err := s.Apply(t.Context(), store.Batch{Reason: "a\nb", Changes: []store.Change{
		put("a", "1"), put("a", "2"), put("b", ""), {Key: store.Key{Kind: "k"}, YAML: "\xff"},
		put("big", strings.Repeat("x", store.MaxYAMLBytes+1)),
		{Key: key("d"), Delete: true, Expect: store.Absent},
	}})
	if _, ok := errors.AsType[*store.InvalidError](err); !ok {
		t.Fatalf("got %v, want an *InvalidError", err)
	}
	for _, want := range []string{
		"author is empty", "control character U+000A", "changes[1]: virtualservice/default/a is in the batch twice",
		"changes[2]: virtualservice/default/b: text is empty", "changes[3]: namespace is empty", "changes[3]: name is empty",
		"changes[3]: k//: text is not UTF-8", "changes[4]: virtualservice/default/big: text has 262145 bytes",
		"changes[5]: deletes virtualservice/default/d and expects it to be absent",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %q", err, want)
		}
	}
	same(t, "list", store.Listing{}, list(t, s))
}

func testReopen(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	apply(t, s, "one", put("a", "a1"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, open)
	same(t, "list", store.Listing{Revision: 1, Records: []store.Record{record("a", "a1", "one", 1, false)}}, list(t, s))
	if r := apply(t, s, "two", remove("a")); r != 2 {
		t.Errorf("revision %d, want 2", r)
	}
}

func testWatch(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	type result struct {
		r   store.Revision
		err error
	}
	watch := func(ctx context.Context, after store.Revision) <-chan result {
		got := make(chan result, 1)
		go func() {
			r, err := s.Watch(ctx, after)
			got <- result{r, err}
		}()
		return got
	}
	first := watch(t.Context(), 0)
	apply(t, s, "one", put("a", "a1"))
	if got := <-first; got.err != nil || got.r != 1 {
		t.Errorf("watch: %+v, want revision 1", got)
	}
	if got := <-watch(t.Context(), 0); got.err != nil || got.r != 1 {
		t.Errorf("watch of the past: %+v, want revision 1 at once", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := watch(ctx, 1)
	cancel()
	if got := <-waiting; !errors.Is(got.err, context.Canceled) {
		t.Errorf("watch: %v, want context.Canceled", got.err)
	}
	waiting = watch(t.Context(), 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-waiting; !errors.Is(got.err, store.ErrClosed) {
		t.Errorf("watch: %v, want ErrClosed", got.err)
	}
}

func testRace(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	apply(t, s, "one", put("a", "a1"))
	var wg sync.WaitGroup
	results := make([]error, 16)
	for i := range results {
		wg.Go(func() {
			_, results[i] = s.Apply(t.Context(), store.Batch{Author: "ada", Changes: []store.Change{
				{Key: key("a"), YAML: fmt.Sprint(i), Expect: 1},
			}})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		if err == nil {
			won++
		} else if _, ok := errors.AsType[*store.ConflictError](err); !ok {
			t.Errorf("got %v, want a *ConflictError", err)
		}
	}
	if won != 1 {
		t.Errorf("%d writers won, want 1", won)
	}
}

func testText(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	texts := []string{"'; DROP TABLE changes; --", "a: \"ü€𐍈\"\r\n\tb: |\n  x\n", strings.Repeat("é", store.MaxYAMLBytes/2), "\x00nul"}
	for i, text := range texts {
		apply(t, s, "text", put(fmt.Sprint(i), text))
		got, err := s.Get(t.Context(), key(fmt.Sprint(i)))
		if err != nil || got.YAML != text {
			t.Errorf("texts[%d]: %d bytes came back as %d, %v", i, len(text), len(got.YAML), err)
		}
	}
}

func testClosed(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, applied := s.Apply(t.Context(), store.Batch{Author: "ada", Changes: []store.Change{put("a", "1")}})
	_, got := s.Get(t.Context(), key("a"))
	_, listed := s.List(t.Context())
	_, at := s.At(t.Context(), 0)
	_, history := s.History(t.Context(), store.HistoryQuery{})
	_, revision := s.Revision(t.Context())
	_, watched := s.Watch(t.Context(), 0)
	for i, err := range []error{applied, got, listed, at, history, revision, watched} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("call %d: %v, want ErrClosed", i, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}
