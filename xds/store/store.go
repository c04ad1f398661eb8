// Package store keeps rules at rest, with their whole history.
//
// A Store is a sequence of revisions. A revision is one batch of changes by one
// author for one reason, committed as a whole; it numbers every record that the
// batch touched. Nothing is ever overwritten: deleting and rolling back are
// changes like any other. xds/manage writes; whoever compiles rules lists them
// and waits in Watch. All methods may be called from any goroutine.
//
// The package knows nothing of what a rule means: it keeps the text that the user
// wrote. Implementations live in folders below, and each passes storetest.Run.
// Why one counter for all rules, and why nothing is compacted: RATIONALE.md.
package store

import (
	"context"
	"time"
)

// Revision numbers a committed batch: 1 is the first, 0 is the empty store.
type Revision uint64

// Key names a rule. Kind is lower case ("virtualservice").
type Key struct{ Kind, Namespace, Name string }

// String renders "kind/namespace/name".
func (k Key) String() string { return k.Kind + "/" + k.Namespace + "/" + k.Name }

// Record is one state of one rule.
type Record struct {
	Key
	YAML     string // as the user wrote it; of a deletion, the text that was deleted
	Author   string
	Reason   string
	Revision Revision // that made this state
	Time     time.Time
	// Created is when the rule came to be: it survives updates, and a rule that
	// was deleted and made again is new. Rules for one host are ranked by it.
	Created time.Time
	Deleted bool
}

// Expect is what a change wants to find.
type Expect int64

// Any finds the change right whatever is there; Absent wants no rule of that key.
// A positive Expect is the revision that the rule must be at.
const (
	Any    Expect = 0
	Absent Expect = -1
)

// Change writes or deletes one rule.
type Change struct {
	Key
	YAML   string // ignored when Delete is set
	Delete bool
	Expect Expect
	// Created, when not zero, becomes the record's: a roll-back brings back the
	// rank as well. Zero keeps that of the live rule, or is the batch's time.
	Created time.Time
}

// Batch is what one Apply commits.
type Batch struct {
	Author string // required
	Reason string
	Time   time.Time // zero means now
	// Expect, when not 0, is the revision that the whole store must be at.
	Expect  Revision
	Changes []Change // each key once; at most MaxChanges
}

// Listing is the set of live rules at one revision, ascending by key.
type Listing struct {
	Revision Revision
	Records  []Record
}

// HistoryQuery chooses what History returns.
type HistoryQuery struct {
	// Key of one rule; the zero Key means all rules.
	Key Key
	// Before, when not 0, leaves out that revision and newer ones.
	Before Revision
	// After, when not zero, keeps those records of revision Before whose key is
	// greater. Before and After of the last record of a page lead to the next.
	After Key
	// Limit is the most records to return; 0 means DefaultHistory, the most is
	// MaxHistory.
	Limit int
}

// Limits of what one call may carry.
const (
	MaxChanges     = 10_000
	MaxYAMLBytes   = 256 << 10
	MaxTextBytes   = 1024 // author, reason, and each part of a key
	DefaultHistory = 100
	MaxHistory     = 1000
)

// Store is rules at rest.
//
// Errors: ErrNotFound, *ConflictError, *InvalidError, *FaultError and ErrClosed
// are told apart; ctx errors are wrapped.
type Store interface {
	// Apply commits all changes of b, or none, and returns the new revision. An
	// acknowledged batch survives the death of the process and of the machine.
	// A batch without changes returns the revision that is there. Deleting a
	// rule that is not there is a *ConflictError.
	Apply(ctx context.Context, b Batch) (Revision, error)
	// Get returns the live rule of k.
	Get(ctx context.Context, k Key) (Record, error)
	// List returns all live rules.
	List(ctx context.Context) (Listing, error)
	// At returns the rules that were live at r: ErrNotFound when r is yet to come.
	At(ctx context.Context, r Revision) (Listing, error)
	// History returns states, deletions included, newest first.
	History(ctx context.Context, q HistoryQuery) ([]Record, error)
	// Revision is where the store is.
	Revision(ctx context.Context) (Revision, error)
	// Watch blocks until the store is beyond after, and returns where it is. It
	// also sees what other processes commit.
	Watch(ctx context.Context, after Revision) (Revision, error)
	// Close waits for open calls and frees the store; later calls, and Watch
	// calls under way, return ErrClosed. It may be called twice.
	Close() error
}
