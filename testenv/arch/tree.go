package arch

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// generatedMark is the line that generators leave, as Go defines it.
var generatedMark = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// Tree is a parsed source tree.
type Tree struct {
	fsys     fs.FS
	fset     *token.FileSet
	folders  []string   // every folder, sorted, without the root
	packages []*Package // sorted by folder
}

// Package is the Go files of one folder, external tests included.
type Package struct {
	Dir   string // from the root, with slashes; "." for the root
	Files []*File
}

// File is one Go file.
type File struct {
	Path      string
	Dir       string
	Test      bool // name ends in _test.go
	Generated bool
	Lines     int
	Imports   []Import
	AST       *ast.File
}

// Import is one import of a file.
type Import struct {
	Path string
	Name string // as the file renames it; "_" for a blank import
	Line int
}

// Load parses the tree. It leaves out hidden folders, testdata, what builds
// leave behind, and nested modules.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{fsys: fsys, fset: token.NewFileSet()}
	byDir := make(map[string]*Package)
	err := fs.WalkDir(fsys, ".", func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			skip, err := t.skips(p)
			if err != nil {
				return err
			}
			if skip {
				return fs.SkipDir
			}
			if p != "." {
				t.folders = append(t.folders, p)
			}
			return nil
		}
		if path.Ext(p) != ".go" {
			return nil
		}
		file, err := t.parse(p)
		if err != nil {
			return err
		}
		pkg := byDir[file.Dir]
		if pkg == nil {
			pkg = &Package{Dir: file.Dir}
			byDir[file.Dir] = pkg
			t.packages = append(t.packages, pkg)
		}
		pkg.Files = append(pkg.Files, file)
		return nil
	})
	slices.SortFunc(t.packages, func(a, b *Package) int { return strings.Compare(a.Dir, b.Dir) })
	return t, err
}

// skips reports whether a folder is no part of the tree.
func (t *Tree) skips(dir string) (bool, error) {
	if dir == "." {
		return false, nil
	}
	name := path.Base(dir)
	if strings.HasPrefix(name, ".") || name == "testdata" || dir == "bin" || dir == "out" || dir == "isthmus-data" {
		return true, nil
	}
	_, err := fs.Stat(t.fsys, path.Join(dir, "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (t *Tree) parse(p string) (*File, error) {
	text, err := fs.ReadFile(t.fsys, p)
	if err != nil {
		return nil, err
	}
	parsed, err := parser.ParseFile(t.fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &File{
		Path:      p,
		Dir:       path.Dir(p),
		Test:      strings.HasSuffix(p, "_test.go"),
		Generated: generatedMark.Match(text),
		Lines:     bytes.Count(text, []byte{'\n'}),
		AST:       parsed,
	}
	for _, spec := range parsed.Imports {
		name := ""
		if spec.Name != nil {
			name = spec.Name.Name
		}
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: import %s: %w", p, spec.Path.Value, err)
		}
		f.Imports = append(f.Imports, Import{Path: importPath, Name: name, Line: t.line(spec)})
	}
	return f, nil
}

// line returns the line of a node in its file.
func (t *Tree) line(n ast.Node) int { return t.fset.Position(n.Pos()).Line }

// files calls each for every Go file, package by package.
func (t *Tree) files(each func(*File)) {
	for _, pkg := range t.packages {
		for _, f := range pkg.Files {
			each(f)
		}
	}
}

// suite reports whether a folder holds tests for others to run, as bridgetest does.
func suite(dir string) bool { return strings.HasSuffix(dir, "test") }

// command reports whether the file belongs to a program.
func (f *File) command() bool { return f.AST.Name.Name == "main" }
