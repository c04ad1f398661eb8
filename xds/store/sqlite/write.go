package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/store"
)

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, b store.Batch) (store.Revision, error) {
	if err := b.Check(); err != nil {
		return 0, fmt.Errorf("apply rules: %w", err)
	}
	if err := s.enter(); err != nil {
		return 0, fmt.Errorf("apply rules: %w", err)
	}
	defer s.leave()
	rev, err := s.apply(ctx, b)
	if err != nil {
		return 0, s.fault("apply rules", err)
	}
	if len(b.Changes) > 0 {
		s.wake()
	}
	return rev, nil
}

func (s *Store) apply(ctx context.Context, b store.Batch) (store.Revision, error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	at, err := revision(ctx, tx)
	if err != nil {
		return 0, err
	}
	if b.Expect != 0 && b.Expect != at {
		return 0, &store.ConflictError{Want: store.Expect(b.Expect), Have: at}
	}
	if len(b.Changes) == 0 {
		return at, nil
	}
	next := at + 1
	when := b.Time
	if when.IsZero() {
		when = time.Now()
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO revisions (revision, time_us, author, reason) VALUES (?, ?, ?, ?)",
		next, when.UnixMicro(), b.Author, b.Reason); err != nil {
		return 0, err
	}
	var conflicts []error // all of them: the writer sees at once what to merge
	for _, c := range b.Changes {
		conflict, err := write(ctx, tx, next, when, c)
		if err != nil {
			return 0, err
		}
		if conflict != nil {
			conflicts = append(conflicts, conflict)
		}
	}
	if len(conflicts) > 0 {
		return 0, errors.Join(conflicts...)
	}
	return next, tx.Commit()
}

// write adds one change to revision next of that time, unless the rule is not as
// expected.
func write(ctx context.Context, tx *sql.Tx, next store.Revision, when time.Time, c store.Change) (conflict, err error) {
	var have store.Revision
	var text string
	var created int64
	var deleted bool
	err = tx.QueryRowContext(ctx, `SELECT revision, yaml, created_us, deleted FROM changes
		WHERE kind = ? AND namespace = ? AND name = ? ORDER BY revision DESC LIMIT 1`,
		c.Kind, c.Namespace, c.Name).Scan(&have, &text, &created, &deleted)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if deleted {
		have = 0
	}
	wrong := c.Expect == store.Absent && have != 0 ||
		c.Expect > 0 && store.Revision(c.Expect) != have ||
		c.Delete && have == 0
	if wrong {
		return &store.ConflictError{Key: c.Key, Want: c.Expect, Have: have}, nil
	}
	if !c.Delete {
		text = c.YAML
	}
	switch {
	case !c.Created.IsZero():
		created = c.Created.UnixMicro()
	case have == 0:
		created = when.UnixMicro()
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO changes (revision, kind, namespace, name, yaml, created_us, deleted) VALUES (?, ?, ?, ?, ?, ?, ?)",
		next, c.Kind, c.Namespace, c.Name, text, created, c.Delete)
	return nil, err
}
