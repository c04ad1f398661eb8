package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/store"
)

// columns are those that scan reads, from changes c and revisions r.
const columns = `c.kind, c.namespace, c.name, c.yaml, r.author, r.reason, c.revision, r.time_us, c.created_us, c.deleted
	FROM changes c JOIN revisions r ON r.revision = c.revision`

// querier is a *sql.DB or a *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func revision(ctx context.Context, q querier) (store.Revision, error) {
	var r store.Revision
	err := q.QueryRowContext(ctx, "SELECT coalesce(max(revision), 0) FROM revisions").Scan(&r)
	return r, err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, k store.Key) (store.Record, error) {
	var rec store.Record
	err := s.reading(ctx, func(tx *sql.Tx) error {
		found, err := records(ctx, tx, "SELECT "+columns+` WHERE c.kind = ? AND c.namespace = ? AND c.name = ?
			ORDER BY c.revision DESC LIMIT 1`, k.Kind, k.Namespace, k.Name)
		if err != nil {
			return err
		}
		if len(found) == 0 || found[0].Deleted {
			return store.ErrNotFound
		}
		rec = found[0]
		return nil
	})
	if err != nil {
		return store.Record{}, s.fault(fmt.Sprintf("get rule %v", k), err)
	}
	return rec, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context) (store.Listing, error) {
	return s.listing(ctx, "list rules", nil)
}

// At implements store.Store.
func (s *Store) At(ctx context.Context, r store.Revision) (store.Listing, error) {
	return s.listing(ctx, fmt.Sprintf("list rules at revision %d", r), &r)
}

func (s *Store) listing(ctx context.Context, op string, at *store.Revision) (store.Listing, error) {
	var l store.Listing
	err := s.reading(ctx, func(tx *sql.Tx) error {
		now, err := revision(ctx, tx)
		if err != nil {
			return err
		}
		l.Revision = now
		if at != nil {
			if l.Revision = *at; *at > now {
				return store.ErrNotFound
			}
		}
		l.Records, err = records(ctx, tx, "SELECT "+columns+` JOIN (
				SELECT kind, namespace, name, max(revision) AS newest FROM changes
				WHERE revision <= ? GROUP BY kind, namespace, name
			) n ON n.kind = c.kind AND n.namespace = c.namespace AND n.name = c.name AND n.newest = c.revision
			WHERE c.deleted = 0 ORDER BY c.kind, c.namespace, c.name`, l.Revision)
		return err
	})
	if err != nil {
		return store.Listing{}, s.fault(op, err)
	}
	return l, nil
}

// History implements store.Store.
func (s *Store) History(ctx context.Context, q store.HistoryQuery) ([]store.Record, error) {
	if err := q.Check(); err != nil {
		return nil, fmt.Errorf("rule history: %w", err)
	}
	where, args := "1", []any{}
	if q.Key != (store.Key{}) {
		where, args = "c.kind = ? AND c.namespace = ? AND c.name = ?", []any{q.Key.Kind, q.Key.Namespace, q.Key.Name}
	}
	if q.Before != 0 {
		older := "c.revision < ?"
		args = append(args, q.Before)
		if q.After != (store.Key{}) {
			older += " OR c.revision = ? AND (c.kind, c.namespace, c.name) > (?, ?, ?)"
			args = append(args, q.Before, q.After.Kind, q.After.Namespace, q.After.Name)
		}
		where += " AND (" + older + ")"
	}
	var found []store.Record
	err := s.reading(ctx, func(tx *sql.Tx) (err error) {
		found, err = records(ctx, tx, "SELECT "+columns+" WHERE "+where+
			" ORDER BY c.revision DESC, c.kind, c.namespace, c.name LIMIT ?", append(args, q.Limit)...)
		return err
	})
	if err != nil {
		return nil, s.fault("rule history", err)
	}
	return found, nil
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) {
	var now store.Revision
	err := s.reading(ctx, func(tx *sql.Tx) (err error) {
		now, err = revision(ctx, tx)
		return err
	})
	if err != nil {
		return 0, s.fault("read revision", err)
	}
	return now, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, after store.Revision) (store.Revision, error) {
	poll := time.NewTicker(s.poll)
	defer poll.Stop()
	for {
		changed := s.change() // before the look, so that no commit falls between
		now, err := s.Revision(ctx)
		if err != nil {
			return 0, fmt.Errorf("watch rules: %w", err)
		}
		if now > after {
			return now, nil
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-s.done:
			return 0, fmt.Errorf("watch rules: %w", store.ErrClosed)
		case <-ctx.Done():
			return 0, fmt.Errorf("watch rules: %w", ctx.Err())
		}
	}
}

// reading runs f over one consistent state of the file.
func (s *Store) reading(ctx context.Context, f func(tx *sql.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	err = f(tx)
	if end := tx.Rollback(); !errors.Is(end, sql.ErrTxDone) { // done: ctx ended it
		err = errors.Join(err, end)
	}
	return err
}

func records(ctx context.Context, q querier, query string, args ...any) ([]store.Record, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []store.Record
	for rows.Next() {
		var r store.Record
		var us, created int64
		if err := rows.Scan(&r.Kind, &r.Namespace, &r.Name, &r.YAML, &r.Author, &r.Reason, &r.Revision, &us, &created, &r.Deleted); err != nil {
			return nil, err
		}
		r.Time, r.Created = time.UnixMicro(us).UTC(), time.UnixMicro(created).UTC()
		all = append(all, r)
	}
	return all, rows.Err()
}
