package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/store"
)

func testHistory(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	apply(t, s, "make", put("a", "a1"))
	apply(t, s, "other", put("b", "b1"))
	apply(t, s, "drop", remove("a"))
	apply(t, s, "back", put("a", "a1"))
	h, err := s.History(t.Context(), store.HistoryQuery{Key: key("a")})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "history of a", []store.Record{
		record("a", "a1", "back", 4, false),
		record("a", "a1", "drop", 3, true),
		record("a", "a1", "make", 1, false),
	}, h)
	all, err := s.History(t.Context(), store.HistoryQuery{})
	if err != nil || len(all) != 4 || all[2].Name != "b" {
		t.Errorf("history of all: %v, %v, want 4 with b third", all, err)
	}
}

func testCreated(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	at := func(hours int) time.Time { return when.Add(time.Duration(hours) * time.Hour) }
	for i, b := range []struct {
		change store.Change
		want   time.Time
	}{
		{put("a", "1"), at(0)},
		{put("a", "2"), at(0)},
		{remove("a"), at(0)},
		{put("a", "3"), at(3)},
		{store.Change{Key: key("a"), YAML: "1", Created: at(0)}, at(0)},
		{put("a", "4"), at(0)},
	} {
		if _, err := s.Apply(t.Context(), store.Batch{Author: "ada", Time: at(i), Changes: []store.Change{b.change}}); err != nil {
			t.Fatal(err)
		}
		h, err := s.History(t.Context(), store.HistoryQuery{Limit: 1})
		if err != nil || len(h) != 1 {
			t.Fatalf("history: %v, %v", h, err)
		}
		if !h[0].Created.Equal(b.want) || !h[0].Time.Equal(at(i)) {
			t.Errorf("change %d: created %v at %v, want %v at %v", i, h[0].Created, h[0].Time, b.want, at(i))
		}
	}
}

func testPages(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	for i := range 5 {
		apply(t, s, fmt.Sprint(i), put("a", fmt.Sprint(i)))
	}
	var seen []store.Revision
	for q := (store.HistoryQuery{Key: key("a"), Limit: 2}); ; {
		page, err := s.History(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			seen = append(seen, r.Revision)
		}
		q.Before = page[len(page)-1].Revision
	}
	same(t, "revisions", []store.Revision{5, 4, 3, 2, 1}, seen)
	apply(t, s, "batch", put("c", "1"), put("b", "1"), put("d", "1"), put("a", "x"))
	var names []string
	for q := (store.HistoryQuery{Limit: 3}); ; {
		page, err := s.History(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			names = append(names, fmt.Sprint(r.Revision, r.Name))
		}
		last := page[len(page)-1]
		q.Before, q.After = last.Revision, last.Key
	}
	same(t, "records", []string{"6a", "6b", "6c", "6d", "5a", "4a", "3a", "2a", "1a"}, names)
	for _, limit := range []int{-1, store.MaxHistory + 1} {
		_, err := s.History(t.Context(), store.HistoryQuery{Limit: limit})
		if _, ok := errors.AsType[*store.InvalidError](err); !ok {
			t.Errorf("limit %d: %v, want an *InvalidError", limit, err)
		}
	}
}

func testAt(t *testing.T, open Opener) {
	s := mustOpen(t, open)
	apply(t, s, "one", put("a", "a1"), put("b", "b1"))
	apply(t, s, "two", put("a", "a2"), remove("b"))
	apply(t, s, "three", put("c", "c1"))
	at, err := s.At(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "at 1", store.Listing{Revision: 1, Records: []store.Record{
		record("a", "a1", "one", 1, false), record("b", "b1", "one", 1, false),
	}}, at)
	at, err = s.At(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "at 2", store.Listing{Revision: 2, Records: []store.Record{record("a", "a2", "two", 2, false)}}, at)
	if at, err := s.At(t.Context(), 0); err != nil || len(at.Records) != 0 {
		t.Errorf("at 0: %v, %v, want empty", at, err)
	}
	if _, err := s.At(t.Context(), 4); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("at a revision to come: %v, want ErrNotFound", err)
	}
}
