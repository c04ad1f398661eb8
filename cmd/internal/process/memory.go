package process

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// GiveBack returns what only the start needed: heap that the collector freed, and
// the pages of the executable that initialisation touched (of a sidecar's 36 MiB
// two thirds, nearly all of it descriptors that are read once). Pages that are
// needed again come back from the page cache, 16 at a fault.
// root is the file system's root; path is the executable's.
func GiveBack(root fs.FS, path string) error {
	debug.FreeOSMemory()
	maps, err := readLines(root, "proc/self/maps")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not Linux, or no /proc
	}
	if err != nil {
		return fmt.Errorf("give start-up memory back: %w", err)
	}
	for _, m := range readOnly(maps, path) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give start-up memory back: madvise: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// readOnly finds the private mappings of file that nobody can have written to:
// dropping their pages loses nothing.
func readOnly(maps []string, file string) []mapping {
	var found []mapping
	for _, line := range maps {
		// "00400000-00a5d000 r-xp 00000000 fe:00 1234   /usr/bin/sidecar"
		words := strings.Fields(line)
		if len(words) < 6 || words[5] != file || words[1] != "r--p" && words[1] != "r-xp" {
			continue
		}
		from, to, ok := strings.Cut(words[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if ok && err1 == nil && err2 == nil && start < end {
			found = append(found, mapping{uintptr(start), uintptr(end)})
		}
	}
	return found
}
