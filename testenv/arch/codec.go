package arch

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// codecHeadings are the sections of a codec's README, in this order.
func codecHeadings() []string {
	return []string{"Name", "Description", "Configuration", "Metrics", "Examples"}
}

// checkCodecs wants the same files and headings in the folder of every codec.
func checkCodecs(t *Tree) []Violation {
	var found []Violation
	for _, pkg := range t.packages {
		if path.Dir(pkg.Dir) != "proxy/codec" || suite(pkg.Dir) {
			continue
		}
		for _, name := range []string{"codec.go", "codec_test.go", "testdata", "README.md"} {
			if _, err := fs.Stat(t.fsys, path.Join(pkg.Dir, name)); errors.Is(err, fs.ErrNotExist) {
				found = append(found, Violation{Path: pkg.Dir, Text: "a codec without " + name})
			}
		}
		readme := path.Join(pkg.Dir, "README.md")
		text, err := fs.ReadFile(t.fsys, readme)
		if err != nil {
			continue // reported above
		}
		if got, want := strings.Join(headings(string(text)), ", "), strings.Join(codecHeadings(), ", "); got != want {
			found = append(found, Violation{Path: readme, Text: fmt.Sprintf("has the headings %s; want %s", got, want)})
		}
	}
	return found
}

// headings returns the second-level headings of a Markdown text.
func headings(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			found = append(found, strings.TrimSpace(heading))
		}
	}
	return found
}
