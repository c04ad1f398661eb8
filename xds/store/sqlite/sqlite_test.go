package sqlite

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	driver "modernc.org/sqlite"

	"github.com/isthmus-mesh/isthmus/xds/store"
	"github.com/isthmus-mesh/isthmus/xds/store/storetest"
)

// childEnv makes the test binary a writer that is to be killed.
const childEnv = "ISTHMUS_STORE_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(writeUntilKilled(path))
	}
	goleak.VerifyTestMain(m)
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Opener {
		path := filepath.Join(t.TempDir(), "a folder? 100%", "rules.db")
		return func() (store.Store, error) { return Open(t.Context(), path) }
	})
}

// writeUntilKilled writes one rule after the other and says which are acknowledged.
func writeUntilKilled(path string) int {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		l, err := s.List(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		name := fmt.Sprintf("r%d", l.Revision+1)
		r, err := s.Apply(ctx, store.Batch{Author: "child", Reason: "kill test", Changes: []store.Change{
			{Key: store.Key{Kind: "virtualservice", Namespace: "default", Name: name}, YAML: "text of " + name},
		}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(uint64(r), name)
	}
}

func TestKillLosesNoAcknowledgedRule(t *testing.T) {
	const writes = 200
	path := filepath.Join(t.TempDir(), "rules.db")
	acknowledged := map[string]store.Revision{}
	kills := 0
	for len(acknowledged) < writes {
		kills++
		killWriter(t, path, 1+rand.IntN(40), time.Duration(rand.IntN(3000))*time.Microsecond, acknowledged)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]store.Record{}
	for _, r := range l.Records {
		found[r.Name] = r
	}
	for name, rev := range acknowledged {
		if got := found[name]; got.Revision != rev || got.YAML != "text of "+name {
			t.Errorf("acknowledged rule %s at revision %d came back as %+v", name, rev, got)
		}
	}
	t.Logf("%d rules acknowledged over %d kills, store at revision %d", len(acknowledged), kills, l.Revision)
}

// killWriter starts a writer, kills it after it acknowledged some writes and a
// pause, and adds what it acknowledged.
func killWriter(t *testing.T, path string, after int, pause time.Duration, acknowledged map[string]store.Revision) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill := func() { once.Do(func() { _ = cmd.Process.Kill() }) } // it may be dead already
	lines := bufio.NewScanner(out)
	for seen := 0; lines.Scan(); {
		var rev store.Revision
		var name string
		if _, err := fmt.Sscan(lines.Text(), &rev, &name); err != nil {
			break // a line cut by the kill: not acknowledged
		}
		acknowledged[name] = rev
		if seen++; seen == after {
			time.AfterFunc(pause, kill)
		}
	}
	kill()
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Exited() {
		t.Fatalf("writer ended with %v, want a kill: %s", err, stderr.String())
	}
}

func fault(t *testing.T, err error, want store.Fault, sentence string) {
	t.Helper()
	f, ok := errors.AsType[*store.FaultError](err)
	if !ok {
		t.Fatalf("got %v, want a *FaultError", err)
	}
	if f.Fault != want || !strings.Contains(err.Error(), sentence) {
		t.Errorf("got fault %d, %q; want fault %d with %q", f.Fault, err, want, sentence)
	}
}

func TestFaultsSayHowToMend(t *testing.T) {
	t.Run("another process owns the file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rules.db")
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = Open(t.Context(), path)
		fault(t, err, store.Busy, fmt.Sprintf("in use by process %d", os.Getpid()))
	})
	t.Run("not a database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rules.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 1000)), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), path)
		fault(t, err, store.Corrupt, "restore a backup")
	})
	t.Run("damaged pages", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rules.db")
		fillStore(t, path)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(strings.Repeat("\xee", 3*4096)), 4096); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), path)
		fault(t, err, store.Corrupt, "restore a backup")
	})
	t.Run("another program's database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rules.db")
		rawExec(t, path, "CREATE TABLE bookmarks (url TEXT)")
		_, err := Open(t.Context(), path)
		fault(t, err, store.Broken, "database of another program")
	})
	t.Run("a newer release's schema", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rules.db")
		fillStore(t, path)
		rawExec(t, path, "PRAGMA user_version = 99")
		_, err := Open(t.Context(), path)
		fault(t, err, store.Broken, "schema is version 99")
	})
	t.Run("the folder is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), filepath.Join(file, "rules.db"))
		fault(t, err, store.Broken, "belong to the server's user")
	})
}

func TestLockedByAnotherProgramSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA busy_timeout = 10"); err != nil {
		t.Fatal(err)
	}
	c, err := driver.NewConnector("file:" + path + "?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := store.Batch{Author: "ada", Changes: []store.Change{{Key: store.Key{Kind: "k", Namespace: "n", Name: "a"}, YAML: "x"}}}
	_, err = s.Apply(t.Context(), b)
	fault(t, err, store.Busy, "let it finish or stop it")
	if _, err := s.List(t.Context()); err != nil {
		t.Errorf("reading beside it: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Apply(t.Context(), b); err != nil || r != 1 {
		t.Errorf("after it finished: revision %d, %v, want 1", r, err)
	}
}

func TestFullDiskRefusesAndHeals(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "rules.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := func(i int) store.Batch {
		return store.Batch{Author: "ada", Changes: []store.Change{{
			Key: store.Key{Kind: "k", Namespace: "n", Name: fmt.Sprint(i)}, YAML: strings.Repeat("x", 100_000),
		}}}
	}
	if _, err := s.Apply(t.Context(), batch(0)); err != nil {
		t.Fatal(err)
	}
	// SQLite answers its page limit exactly as it answers ENOSPC.
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 40"); err != nil {
		t.Fatal(err)
	}
	_, err = s.Apply(t.Context(), batch(1))
	fault(t, err, store.Full, "free space")
	l, err := s.List(t.Context())
	if err != nil || l.Revision != 1 || len(l.Records) != 1 {
		t.Errorf("after a refused write: %d rules at revision %d, %v; want 1 at 1", len(l.Records), l.Revision, err)
	}
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 100000"); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Apply(t.Context(), batch(2)); err != nil || r != 2 {
		t.Errorf("after the disk has room: revision %d, %v, want 2", r, err)
	}
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "rules.db")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Apply(t.Context(), store.Batch{Author: "ada", Changes: []store.Change{{Key: store.Key{Kind: "k", Namespace: "n", Name: "a"}, YAML: "x"}}}); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 {
		t.Errorf("%d files, want the database, its log and its lock at least", len(files))
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", f.Name(), info.Mode().Perm())
		}
	}
}

func TestWatchSeesWhatOthersCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.poll = time.Millisecond
	got := make(chan store.Revision, 1)
	go func() {
		r, err := s.Watch(t.Context(), 0)
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	rawExec(t, path, "INSERT INTO revisions VALUES (1, 0, 'operator', 'by hand')")
	if r := <-got; r != 1 {
		t.Errorf("revision %d, want 1", r)
	}
}

func TestDurability(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "rules.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, want := range []struct{ pragma, value string }{{"journal_mode", "wal"}, {"synchronous", "2"}, {"busy_timeout", "5000"}, {"foreign_keys", "1"}} {
		var got string
		if err := s.write.QueryRowContext(t.Context(), "PRAGMA "+want.pragma).Scan(&got); err != nil || got != want.value {
			t.Errorf("%s is %q, %v, want %q", want.pragma, got, err, want.value)
		}
	}
}

// fillStore makes a store with enough rules for several pages.
func fillStore(t *testing.T, path string) {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := s.Apply(t.Context(), store.Batch{Author: "ada", Changes: []store.Change{{
			Key: store.Key{Kind: "k", Namespace: "n", Name: fmt.Sprint(i)}, YAML: strings.Repeat("x", 1000),
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// rawExec runs a statement as another program would.
func rawExec(t *testing.T, path, statement string) {
	t.Helper()
	c, err := driver.NewConnector("file:" + path + "?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkApply(b *testing.B) {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "rules.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Apply(b.Context(), store.Batch{Author: "ada", Changes: []store.Change{{Key: store.Key{Kind: "k", Namespace: "n", Name: "a"}, YAML: "x"}}}); err != nil {
			b.Fatal(err)
		}
	}
}
