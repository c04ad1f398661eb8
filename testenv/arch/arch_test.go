package arch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// root returns the folder of the tree that this package is in.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTreeFollowsTheHouseStyle(t *testing.T) {
	tree, err := Load(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			for _, v := range c.run(tree) {
				t.Error(v)
			}
		})
	}
}

func TestProgramsStayWithinTheirFences(t *testing.T) {
	for dir := range fences() {
		if dir == "*" {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			found, err := checkBinary(t.Context(), root(t), dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range found {
				t.Error(v)
			}
		})
	}
}

func TestFencesHoldWholePathElements(t *testing.T) {
	deps := []string{"testing", "k8s.io/api/core/v1", "k8s.io/apimachinery", "testingx", "modernc.org/sqlite3"}
	got := contained("cmd/x", deps, map[string]string{"k8s.io/": "too big", "testing": "no tests", "modernc.org/sqlite": "no store"})
	want := []Violation{
		{Path: "cmd/x", Text: "contains k8s.io/api/core/v1: too big"},
		{Path: "cmd/x", Text: "contains testing: no tests"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("violations (-want +got):\n%s", d)
	}
}

// TestChecksFindWhatIsWrong runs all checks on small trees. The file "want" of
// each archive lists what they must find, line by line.
func TestChecksFindWhatIsWrong(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("found %d archives, %v", len(archives), err)
	}
	for _, path := range archives {
		t.Run(filepath.Base(path), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fsys, want := make(fstest.MapFS), ""
			for _, file := range archive.Files {
				if file.Name == "want" {
					want = string(file.Data)
					continue
				}
				fsys[file.Name] = &fstest.MapFile{Data: unfold(file.Data)}
			}
			tree, err := Load(fsys)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range checks() {
				for _, v := range c.run(tree) {
					got = append(got, v.String())
				}
			}
			slices.Sort(got)
			wanted := strings.FieldsFunc(want, func(r rune) bool { return r == '\n' })
			slices.Sort(wanted)
			if d := cmp.Diff(wanted, got); d != "" {
				t.Errorf("violations (-want +got):\n%s", d)
			}
		})
	}
}

// unfold returns text with the line "lines" replaced by 400 empty comments.
func unfold(text []byte) []byte {
	return []byte(strings.Replace(string(text), "\nlines\n", "\n"+strings.Repeat("//\n", 400), 1))
}
