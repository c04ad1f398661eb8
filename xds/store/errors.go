package store

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// ErrNotFound says that there is no such live rule, or no such revision.
var ErrNotFound = errors.New("not found")

// ErrClosed says that the store was closed.
var ErrClosed = errors.New("store is closed")

// ConflictError says that the store is not as the writer expected; nothing was
// written. Read again and decide anew.
type ConflictError struct {
	Key  Key    // zero when the whole store was expected at a revision
	Want Expect // of the store: its revision
	Have Revision
}

func (e *ConflictError) Error() string {
	switch {
	case e.Key == Key{}:
		return fmt.Sprintf("the rules are at revision %d, not %d as expected: someone changed them meanwhile", e.Have, e.Want)
	case e.Want == Absent:
		return fmt.Sprintf("%v exists already, at revision %d", e.Key, e.Have)
	case e.Have == 0 && e.Want > 0:
		return fmt.Sprintf("%v does not exist, expected it at revision %d", e.Key, e.Want)
	case e.Have == 0:
		return fmt.Sprintf("%v does not exist", e.Key)
	}
	return fmt.Sprintf("%v is at revision %d, not %d as expected: someone changed it meanwhile", e.Key, e.Have, e.Want)
}

// InvalidError says what is wrong with a batch or a query, whatever is stored.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns all mistakes.
func (e *InvalidError) Unwrap() error { return e.Err }

// Fault is the sort of trouble that the storage below is in.
type Fault uint8

// Faults. Only Busy heals by itself.
const (
	Broken  Fault = iota // cannot be read or written for another reason
	Full                 // no room left
	Busy                 // locked by someone else for too long
	Corrupt              // what is there is damaged
)

// FaultError says that the storage failed, and how to mend it.
type FaultError struct {
	Fault Fault
	Op    string // "apply rules"
	Where string // the file or database
	Mend  string // what an operator does about it
	Err   error
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("%s: %s: %v; %s", e.Op, e.Where, e.Err, e.Mend)
}

// Unwrap returns the error of the storage below.
func (e *FaultError) Unwrap() error { return e.Err }

// Check reports every mistake in b as an *InvalidError. Implementations call it
// before they write.
func (b Batch) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if b.Author == "" {
		bad("author is empty: every change needs one")
	}
	checkText(bad, "author", b.Author)
	checkText(bad, "reason", b.Reason)
	if n := len(b.Changes); n > MaxChanges {
		bad("%d changes in one batch, want at most %d", n, MaxChanges)
	}
	seen := make(map[Key]bool, len(b.Changes))
	for i, c := range b.Changes {
		if seen[c.Key] {
			bad("changes[%d]: %v is in the batch twice", i, c.Key)
		}
		seen[c.Key] = true
		for _, part := range []struct{ name, text string }{{"kind", c.Kind}, {"namespace", c.Namespace}, {"name", c.Name}} {
			if part.text == "" {
				bad("changes[%d]: %s is empty", i, part.name)
			}
			checkText(bad, fmt.Sprintf("changes[%d]: %s", i, part.name), part.text)
		}
		switch {
		case c.Expect < Absent:
			bad("changes[%d]: expected revision %d, want a revision", i, c.Expect)
		case c.Delete && c.Expect == Absent:
			bad("changes[%d]: deletes %v and expects it to be absent", i, c.Key)
		case c.Delete:
		case c.YAML == "":
			bad("changes[%d]: %v: text is empty", i, c.Key)
		case len(c.YAML) > MaxYAMLBytes:
			bad("changes[%d]: %v: text has %d bytes, want at most %d", i, c.Key, len(c.YAML), MaxYAMLBytes)
		case !utf8.ValidString(c.YAML):
			bad("changes[%d]: %v: text is not UTF-8", i, c.Key)
		}
	}
	if len(errs) > 0 {
		return &InvalidError{errors.Join(errs...)}
	}
	return nil
}

func checkText(bad func(string, ...any), what, text string) {
	if len(text) > MaxTextBytes {
		bad("%s has %d bytes, want at most %d", what, len(text), MaxTextBytes)
		return
	}
	if !utf8.ValidString(text) {
		bad("%s %q is not UTF-8", what, text)
		return
	}
	for _, r := range text {
		if unicode.IsControl(r) {
			bad("%s %q holds the control character %U", what, text, r)
			return
		}
	}
}

// Check fills the default of q.Limit and reports a mistake as an *InvalidError.
func (q *HistoryQuery) Check() error {
	switch {
	case q.After != Key{} && q.Before == 0:
		return &InvalidError{fmt.Errorf("after %v without a revision", q.After)}
	case q.Limit == 0:
		q.Limit = DefaultHistory
	case q.Limit < 0 || q.Limit > MaxHistory:
		return &InvalidError{fmt.Errorf("limit %d, want 1 to %d", q.Limit, MaxHistory)}
	}
	return nil
}
