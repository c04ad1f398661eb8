package bridges

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// disk keeps the last complete read of one source in one file.
type disk struct {
	dir, source, kind string
}

func (d disk) path() string { return filepath.Join(d.dir, d.source+".snapshot") }

// load reads the file. A missing one is no error and found is false. A file that
// cannot be understood is moved aside, so that the next save does not destroy the
// evidence, and the error names both.
func (d disk) load() (k kept, found bool, err error) {
	f, err := os.Open(d.path())
	if errors.Is(err, fs.ErrNotExist) {
		return kept{}, false, nil
	}
	if err != nil {
		return kept{}, false, err
	}
	defer f.Close()
	k, err = decodeSnapshot(f)
	if err == nil && (k.Source != d.source || k.Kind != d.kind) {
		err = fmt.Errorf("it is of source %q, kind %q, want %q, %q", k.Source, k.Kind, d.source, d.kind)
	}
	if err == nil {
		return k, true, nil
	}
	aside := d.path() + ".corrupt"
	if moveErr := os.Rename(d.path(), aside); moveErr != nil {
		return kept{}, false, fmt.Errorf("%s cannot be used and not be moved aside: %w", d.path(), errors.Join(err, moveErr))
	}
	return kept{}, false, fmt.Errorf("%s cannot be used and was moved to %s: %w", d.path(), aside, err)
}

// save replaces the file so that a crash at any moment leaves the old one or the
// new one, and returns its size.
func (d disk) save(k kept) (sizeBytes int64, err error) {
	k.Source, k.Kind = d.source, d.kind
	if err := os.MkdirAll(d.dir, 0o750); err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(d.dir, "."+d.source+".snapshot-*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()           // the error of the write is the one to tell
			_ = os.Remove(f.Name()) // a leftover is removed by the next sweep
		}
	}()
	if err := encodeSnapshot(f, k); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	if err := os.Rename(f.Name(), d.path()); err != nil {
		return 0, err
	}
	return info.Size(), syncDir(d.dir)
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sweep removes half-written files that a crash left behind.
func (d disk) sweep() error {
	names, err := filepath.Glob(filepath.Join(d.dir, "."+d.source+".snapshot-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, os.Remove(name))
	}
	return errors.Join(errs...)
}
