package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/isthmus-mesh/isthmus/xds/store"
)

// fault turns what SQLite or the system says into what an operator can act on.
// Errors of the caller (conflicts, not found, cancelled) only get op in front.
func (s *Store) fault(op string, err error) error {
	// A corrupted or foreign file comes with a rollback error joined to it;
	// the first recognised cause decides.
	kind, mend, ok := classify(err)
	if !ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	return &store.FaultError{Fault: kind, Op: op, Where: s.path, Mend: mend, Err: err}
}

// mends by fault; %s is not used, the path is in the error already.
const (
	mendFull     = "free space on its disk (or raise the quota); nothing that was acknowledged is lost, and writing works again by itself"
	mendBusy     = "another program holds the database; let it finish or stop it, then try again"
	mendOwned    = "one process owns a rule store at a time: stop the other one or give this one another data folder"
	mendCorrupt  = "stop the server, move the file away and restore a backup, or save what is readable with: sqlite3 rules.db .recover | sqlite3 new.db"
	mendForeign  = "give the server another data folder or move this file away"
	mendNewer    = "run the newer release, or restore the backup made before the upgrade"
	mendMode     = "check that the file and its folder belong to the server's user and are writable"
	mendHardware = "check the disk and the kernel's log for input/output errors"
)

func classify(err error) (fault store.Fault, mend string, ok bool) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return 0, "", false
	}
	if _, is := errors.AsType[*ownedError](err); is {
		return store.Busy, mendOwned, true
	}
	if _, is := errors.AsType[*newerError](err); is {
		return store.Broken, mendNewer, true
	}
	if _, is := errors.AsType[*damageError](err); is {
		return store.Corrupt, mendCorrupt, true
	}
	if errors.Is(err, errForeign) {
		return store.Broken, mendForeign, true
	}
	if e, is := errors.AsType[*driver.Error](err); is {
		switch e.Code() & 0xff { // the low byte is the primary code
		case sqlite3.SQLITE_FULL:
			return store.Full, mendFull, true
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return store.Busy, mendBusy, true
		case sqlite3.SQLITE_CORRUPT:
			return store.Corrupt, mendCorrupt, true
		case sqlite3.SQLITE_NOTADB:
			return store.Corrupt, mendCorrupt, true
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
			return store.Broken, mendMode, true
		case sqlite3.SQLITE_IOERR:
			return store.Broken, mendHardware, true
		}
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return store.Full, mendFull, true
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		return store.Broken, mendMode, true
	}
	return 0, "", false
}
