package arch

import (
	"fmt"
	"slices"
	"strings"
)

// anything stands for all packages in the table of doors.
const anything = "*"

// doors says which packages of other top-level folders each folder may import.
// A new door is a matter for review.
func doors() map[string][]string {
	return map[string][]string{
		"ca":      {},
		"xds":     {"ca/identity"},
		"bridges": {"xds/model"},
		"proxy":   {"ca/identity", "xds/client", "xds/model", "xds/resource"},
		"agent":   {"ca/client", "ca/identity", "proxy/bootstrap", "proxy/redirect", "xds/api"},
		"testenv": {anything},
		"cmd":     {anything},
	}
}

// checkDoors holds imports against the table. Besides, only tests import
// testenv, and nothing but cmd imports cmd.
func checkDoors(t *Tree) []Violation {
	var found []Violation
	table := doors()
	t.files(func(f *File) {
		from := top(f.Dir)
		allowed, known := table[from]
		if !known {
			found = append(found, Violation{Path: f.Path, Text: "Go code in a folder that the import table does not name"})
			return
		}
		for _, imported := range f.Imports {
			pkg, own := strings.CutPrefix(imported.Path, module+"/")
			to := top(pkg)
			if !own || to == from {
				continue
			}
			if text := closed(f, to, pkg, allowed); text != "" {
				found = append(found, Violation{Path: f.Path, Line: imported.Line, Text: text})
			}
		}
	})
	return found
}

// closed returns why a file may not import pkg, which is in the folder to; empty if it may.
func closed(f *File, to, pkg string, allowed []string) string {
	switch {
	case to == "cmd":
		return fmt.Sprintf("imports %s: nothing imports cmd", pkg)
	case to == "testenv" && (f.Test || suite(f.Dir)):
		return ""
	case to == "testenv":
		return fmt.Sprintf("imports %s: only tests import testenv", pkg)
	case slices.Contains(allowed, anything) || slices.Contains(allowed, pkg):
		return ""
	case len(allowed) == 0:
		return fmt.Sprintf("imports %s: %s imports nothing but itself", pkg, top(f.Dir))
	}
	return fmt.Sprintf("imports %s: %s may import %s", pkg, top(f.Dir), strings.Join(allowed, ", "))
}

// leaves are the packages that everything may speak of, so they speak of nothing.
func leaves() []string { return []string{"ca/identity", "xds/model"} }

func checkLeaves(t *Tree) []Violation {
	var found []Violation
	t.files(func(f *File) {
		if f.Test || !slices.Contains(leaves(), f.Dir) {
			return
		}
		for _, imported := range f.Imports {
			if pkg, own := strings.CutPrefix(imported.Path, module+"/"); own {
				found = append(found, Violation{Path: f.Path, Line: imported.Line, Text: fmt.Sprintf("imports %s: %s is a leaf", pkg, f.Dir)})
			}
		}
	})
	return found
}
