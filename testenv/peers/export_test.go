package peers

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// GroupGone reports whether no process of the group runs. One that has ended and
// was not yet collected by its parent does not count.
func GroupGone(group int) bool {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		_, rest, _ := bytes.Cut(text, []byte(") ")) // pid (name) state parent group ...
		fields := bytes.Fields(rest)
		if len(fields) > 2 && string(fields[2]) == strconv.Itoa(group) && string(fields[0]) != "Z" {
			return false
		}
	}
	return true
}
