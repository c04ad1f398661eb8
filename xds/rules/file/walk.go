package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// stamp tells versions of a file apart without reading it.
type stamp struct {
	modified time.Time
	changed  syscall.Timespec // of the inode: permissions and names count too
	bytes    int64
	inode    uint64
}

// folder is an open folder. Symbolic links are followed only as long as they stay
// inside it.
type folder struct{ root *os.Root }

func open(dir string) (*folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &folder{root}, nil
}

func (f *folder) close() {
	f.root.Close() //nolint:errcheck // opened for reading only
}

// list finds the rule files with their stamps, at paths below the folder. Hidden
// files and folders are passed over: editors and Kubernetes keep their own there.
func (f *folder) list() (map[string]stamp, error) {
	stamps := map[string]stamp{}
	var total int64
	err := fs.WalkDir(f.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := name != "." && strings.HasPrefix(entry.Name(), ".")
		if entry.IsDir() {
			if hidden {
				return fs.SkipDir
			}
			if strings.Count(name, "/") >= maxDepth {
				return fmt.Errorf("%s: nested deeper than %d folders", name, maxDepth)
			}
			return nil
		}
		if ext := path.Ext(name); hidden || ext != ".yaml" && ext != ".yml" {
			return nil
		}
		info, err := f.root.Stat(name) // follows a link
		switch {
		case err != nil && entry.Type()&fs.ModeSymlink != 0:
			stamps[name] = stamp{} // a link that leads nowhere or outside: reading it says so
			return nil
		case errors.Is(err, fs.ErrNotExist):
			return nil // deleted since the folder was listed
		case err != nil:
			return err
		}
		if !info.Mode().IsRegular() {
			return nil // a folder by that name, a pipe or a device
		}
		total += info.Size()
		if len(stamps) == maxFiles || total > maxBytes {
			return fmt.Errorf("%s: more than %d files or %d bytes of rules", name, maxFiles, maxBytes)
		}
		s := stamp{modified: info.ModTime(), bytes: info.Size()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			s.inode, s.changed = sys.Ino, sys.Ctim
		}
		stamps[name] = s
		return nil
	})
	if err != nil {
		return nil, err
	}
	return stamps, nil
}

// read returns a file's content, at most rules.MaxFileBytes and one byte, so that
// Parse reports what is larger.
func (f *folder) read(name string) ([]byte, error) {
	// Without O_NONBLOCK a pipe put in the file's place would block for ever.
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, rules.MaxFileBytes+1))
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return data, err
}
