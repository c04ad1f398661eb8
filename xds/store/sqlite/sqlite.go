// Package sqlite is the embedded rule store: one SQLite file and no server.
//
// Open makes or migrates the file; the Store it returns implements store.Store and
// may be used from any goroutine. One process owns a file at a time.
//
// Why WAL, synchronous=FULL and a lock file: xds/store/RATIONALE.md.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	driver "modernc.org/sqlite"

	"github.com/isthmus-mesh/isthmus/xds/store"
)

// pollInterval is how often Watch looks for what another process committed (a
// restored backup, an operator's own SQL). Own commits wake it at once.
const pollInterval = 2 * time.Second

// busyTimeout bounds the wait for another program's lock, say a backup.
const busyTimeout = 5 * time.Second

// readers is the number of connections that read beside the one that writes.
const readers = 4

// Store is a rule store in one SQLite file. Make it with Open.
type Store struct {
	path string
	lock *os.File
	poll time.Duration

	write *sql.DB // one connection
	read  *sql.DB

	mu      sync.Mutex
	changed chan struct{} // closed and replaced by every commit
	closed  bool
	done    chan struct{} // closed by Close
	calls   sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// Open opens or creates the store at path, with its folder, and brings its schema
// up to date. The file is readable by its owner only. Errors are
// *store.FaultError where the file is the trouble.
func Open(ctx context.Context, path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open rule store: %w", err)
	}
	s := &Store{path: abs, poll: pollInterval, changed: make(chan struct{}), done: make(chan struct{})}
	if err := s.prepareFile(); err != nil {
		return nil, err
	}
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, s.free())
	}
	return s, nil
}

// prepareFile makes the folder, takes the lock and creates the file with its mode;
// SQLite gives its side files the same mode.
func (s *Store) prepareFile() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return s.fault("open rule store", err)
	}
	lock, err := lockFile(s.path + ".lock")
	if err != nil {
		return s.fault("open rule store", err)
	}
	s.lock = lock
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Close())
	}
	if err != nil {
		return errors.Join(s.fault("open rule store", err), s.free())
	}
	return nil
}

func (s *Store) connect(ctx context.Context) error {
	write, err := driver.NewConnector(dataSource(s.path, "immediate"))
	if err != nil {
		return fmt.Errorf("open rule store: %w", err)
	}
	read, err := driver.NewConnector(dataSource(s.path, "deferred", "query_only(1)"))
	if err != nil {
		return fmt.Errorf("open rule store: %w", err)
	}
	s.write, s.read = sql.OpenDB(write), sql.OpenDB(read)
	s.write.SetMaxOpenConns(1)
	s.read.SetMaxOpenConns(readers)
	if err := migrate(ctx, s.write); err != nil {
		return s.fault("open rule store", err)
	}
	return nil
}

// dataSource names the file with its settings.
func dataSource(path, txLock string, pragmas ...string) string {
	q := url.Values{"_txlock": {txLock}, "_pragma": append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
		"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
	}, pragmas...)}
	// The path is escaped: a question mark in it would start the parameters.
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	s.calls.Wait()
	return s.free()
}

func (s *Store) free() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} { // the last one checkpoints the log
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// enter admits a call until leave, unless the store is closed.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	s.calls.Add(1)
	return nil
}

func (s *Store) leave() { s.calls.Done() }

// wake tells Watch that something was committed.
func (s *Store) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Store) change() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}
