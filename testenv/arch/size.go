package arch

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Limits of the house style.
const (
	maxLines     = 400 // of a source file
	maxTestLines = 800 // of a file with tests
	maxFiles     = 10  // sources of a package; tests and generated files do not count
)

func checkFileLength(t *Tree) []Violation {
	var found []Violation
	t.files(func(f *File) {
		limit := maxLines
		if f.Test || suite(f.Dir) {
			limit = maxTestLines
		}
		if f.Lines > limit && !f.Generated {
			found = append(found, Violation{Path: f.Path, Text: fmt.Sprintf("%d lines, want at most %d", f.Lines, limit)})
		}
	})
	return found
}

func checkPackageSize(t *Tree) []Violation {
	var found []Violation
	for _, pkg := range t.packages {
		sources := 0
		for _, f := range pkg.Files {
			if !f.Test && !f.Generated {
				sources++
			}
		}
		if sources > maxFiles {
			found = append(found, Violation{Path: pkg.Dir, Text: fmt.Sprintf("%d source files, want at most %d: these are two packages", sources, maxFiles)})
		}
	}
	return found
}

// checkPackageComments wants one comment in each package that has more than tests.
func checkPackageComments(t *Tree) []Violation {
	var found []Violation
	for _, pkg := range t.packages {
		var comments []string
		name, sources := "", 0
		for _, f := range pkg.Files {
			if f.Test || f.Generated {
				continue
			}
			sources++
			name = f.AST.Name.Name
			if f.AST.Doc != nil {
				comments = append(comments, f.AST.Doc.Text())
			}
		}
		if sources == 0 {
			continue
		}
		if len(comments) != 1 {
			found = append(found, Violation{Path: pkg.Dir, Text: fmt.Sprintf("%d package comments, want 1", len(comments))})
			continue
		}
		want := "Package " + name + " "
		if name == "main" {
			want = "Command " + path.Base(pkg.Dir) + " "
		}
		if !strings.HasPrefix(comments[0], want) {
			found = append(found, Violation{Path: pkg.Dir, Text: fmt.Sprintf("package comment begins %.30q, want %q", comments[0], want)})
		}
	}
	return found
}

// bannedNames say nothing about what a folder holds.
func bannedNames() []string {
	return []string{
		"base", "common", "commons", "core", "helper", "helpers", "impl", "lib", "misc", "pkg", "shared", "types", "util", "utils",
	}
}

func checkFolderNames(t *Tree) []Violation {
	var found []Violation
	for _, dir := range t.folders {
		if name := path.Base(dir); slices.Contains(bannedNames(), name) {
			found = append(found, Violation{Path: dir, Text: fmt.Sprintf("%q is no noun of the domain", name)})
		}
	}
	return found
}
