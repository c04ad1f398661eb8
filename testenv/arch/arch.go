// Package arch checks that the source tree is as the house style draws it: who
// imports whom, how large files and packages get, what a package says about
// itself, and what each program may not contain.
//
// A check takes a Tree and returns a Violation for each place that breaks a rule;
// the test of this package runs all of them on the tree that it is in. Source
// files are parsed one by one, so those behind build tags count. A Tree never
// changes; checks may run in parallel.
package arch

import (
	"fmt"
	"strings"
)

// module is the import path of the tree's root.
const module = "github.com/isthmus-mesh/isthmus"

// Violation is one place that breaks a rule.
type Violation struct {
	Path string // of the file or folder, from the root, with slashes
	Line int    // zero where the whole file or folder is meant
	Text string
}

// String returns "path:line: text".
func (v Violation) String() string {
	if v.Line == 0 {
		return v.Path + ": " + v.Text
	}
	return fmt.Sprintf("%s:%d: %s", v.Path, v.Line, v.Text)
}

// check is one rule.
type check struct {
	name string
	run  func(*Tree) []Violation
}

// checks lists every rule that needs nothing but the files.
func checks() []check {
	return []check{
		{"imports follow the table", checkDoors},
		{"leaves import nothing", checkLeaves},
		{"files are short", checkFileLength},
		{"packages are small", checkPackageSize},
		{"packages have one comment", checkPackageComments},
		{"folders have names of the domain", checkFolderNames},
		{"parts are listed", checkRegistration},
		{"contexts come from main", checkContexts},
		{"settings come from main", checkSettings},
		{"tests do not sleep", checkSleep},
		{"codecs look alike", checkCodecs},
		{"dependencies have reasons", checkModule},
	}
}

// top returns the first element of a slash path.
func top(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}
