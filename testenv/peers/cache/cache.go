// Package cache knows where on this machine the real peers and the build's
// tools are: one folder for each name and version, outside the source tree.
//
// The program testenv/peers/install fills the cache, package peers and the
// Makefile read it. A part's folder appears by one rename when it is complete,
// so a part whose folder exists is whole. All functions may be called from any
// goroutine and by several processes at once.
package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// module is the first line of go.mod, by which Repository knows the tree.
const module = "module github.com/isthmus-mesh/isthmus"

// Part is one thing in the cache.
type Part struct {
	Name    string // what the user asks for, as "envoy"
	Version string // never empty; a new version is a new folder
}

// Root returns the cache folder: $ISTHMUS_TESTENV, else isthmus-testenv in the
// user's cache folder. It need not exist.
func Root() (string, error) {
	if dir := os.Getenv("ISTHMUS_TESTENV"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w; set ISTHMUS_TESTENV", err)
	}
	return filepath.Join(dir, "isthmus-testenv"), nil
}

// Dir returns the folder of the part. It exists only once the part is installed.
func (p Part) Dir() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, p.Name+"-"+p.Version), nil
}

// Installed reports whether the part is in the cache, whole.
func (p Part) Installed() (bool, error) {
	dir, err := p.Dir()
	if err != nil {
		return false, err
	}
	switch _, err := os.Stat(dir); {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	default:
		return false, err
	}
}

// Path returns the path of a file of the part, and an error that names the mend
// when the part is not installed.
func (p Part) Path(elem ...string) (string, error) {
	installed, err := p.Installed()
	if err != nil {
		return "", err
	}
	if !installed {
		return "", fmt.Errorf("%s %s is not installed: run make peers", p.Name, p.Version)
	}
	dir, err := p.Dir()
	if err != nil {
		return "", err
	}
	return filepath.Join(append([]string{dir}, elem...)...), nil
}

// Repository returns the root of the source tree that holds the current folder.
func Repository() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), module+"\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the source tree of isthmus", start)
		}
	}
}
