package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// applicationID marks the file as ours in its header, so that another program's
// database is never migrated: "Ismr".
const applicationID = 0x49736d72

// migrations[i] brings a file from user_version i to i+1. Entries never change
// once released; new ones are appended.
var migrations = [...]string{`
CREATE TABLE revisions (
	revision INTEGER PRIMARY KEY,
	time_us  INTEGER NOT NULL,
	author   TEXT NOT NULL,
	reason   TEXT NOT NULL
) STRICT;
CREATE TABLE changes (
	revision   INTEGER NOT NULL REFERENCES revisions,
	kind       TEXT NOT NULL,
	namespace  TEXT NOT NULL,
	name       TEXT NOT NULL,
	yaml       TEXT NOT NULL,
	created_us INTEGER NOT NULL,
	deleted    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX changes_by_key ON changes (kind, namespace, name, revision);
CREATE INDEX changes_by_revision ON changes (revision);
`}

var errForeign = errors.New("this is a database of another program")

// newerError says that a newer release wrote the file.
type newerError struct{ have, known int }

func (e *newerError) Error() string {
	return fmt.Sprintf("its schema is version %d, this release knows up to %d", e.have, e.known)
}

// damageError is what SQLite's own check found.
type damageError struct{ found string }

func (e *damageError) Error() string { return "its content is damaged: " + e.found }

// migrate checks that the file is sound and ours, and brings it up to date in one
// transaction.
func migrate(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	var version, app, tables int
	var sound string
	for _, q := range []struct {
		query string
		into  any
	}{
		{"PRAGMA quick_check(1)", &sound},
		{"PRAGMA user_version", &version},
		{"PRAGMA application_id", &app},
		{"SELECT count(*) FROM sqlite_master", &tables},
	} {
		if err := tx.QueryRowContext(ctx, q.query).Scan(q.into); err != nil {
			return err
		}
	}
	switch {
	case sound != "ok":
		return &damageError{sound}
	case app != applicationID && tables > 0:
		return errForeign
	case version > len(migrations):
		return &newerError{version, len(migrations)}
	case version == len(migrations):
		return nil
	}
	for _, step := range migrations[version:] {
		if _, err := tx.ExecContext(ctx, step); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	header := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, len(migrations))
	if _, err := tx.ExecContext(ctx, header); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return tx.Commit()
}
