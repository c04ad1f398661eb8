package arch

import (
	"fmt"
	"io/fs"
	"strings"
)

// checkModule wants a reason on the line of each direct requirement, and no
// replacement, in the tree's go.mod.
func checkModule(t *Tree) []Violation {
	text, err := fs.ReadFile(t.fsys, "go.mod")
	if err != nil {
		return []Violation{{Path: "go.mod", Text: err.Error()}}
	}
	var found []Violation
	block := "" // the directive whose lines these are
	for i, line := range strings.Split(string(text), "\n") {
		statement, comment, _ := strings.Cut(line, "//")
		fields := strings.Fields(statement)
		if len(fields) == 0 {
			continue
		}
		directive := block
		switch {
		case fields[0] == ")":
			block = ""
			continue
		case block == "":
			directive, fields = fields[0], fields[1:]
			if len(fields) == 1 && fields[0] == "(" {
				block = directive
				continue
			}
		}
		at := Violation{Path: "go.mod", Line: i + 1}
		switch {
		case directive == "replace":
			at.Text = "replaces a module"
		case directive == "require" && strings.TrimSpace(comment) == "":
			at.Text = fmt.Sprintf("requires %s without saying why", fields[0])
		default:
			continue
		}
		found = append(found, at)
	}
	return found
}
