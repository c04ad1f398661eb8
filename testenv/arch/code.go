package arch

import (
	"fmt"
	"go/ast"
	"path"
	"strings"
)

// blankImports are the blank imports that stay, each with its reason. The key is
// the importing folder, a space and the import.
func blankImports() map[string]string {
	return map[string]string{
		"xds/store/sqlite modernc.org/sqlite": "database/sql finds a driver by the name under which it registers itself",
	}
}

// checkRegistration refuses what makes parts appear without being listed: init
// functions and blank imports. Programs, tests and embedded files may have the latter.
func checkRegistration(t *Tree) []Violation {
	var found []Violation
	reasons := blankImports()
	t.files(func(f *File) {
		if f.Generated {
			return
		}
		for _, decl := range f.AST.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, Violation{Path: f.Path, Line: t.line(fn), Text: "has an init function"})
			}
		}
		if f.Test || f.command() {
			return
		}
		for _, imported := range f.Imports {
			if imported.Name != "_" || imported.Path == "embed" || reasons[f.Dir+" "+imported.Path] != "" {
				continue
			}
			found = append(found, Violation{Path: f.Path, Line: imported.Line, Text: fmt.Sprintf("imports %s for its side effect", imported.Path)})
		}
	})
	return found
}

// checkContexts wants every context to descend from that of a program or a test.
func checkContexts(t *Tree) []Violation {
	var found []Violation
	t.files(func(f *File) {
		if f.Test || f.Generated || f.command() || suite(f.Dir) || top(f.Dir) == "testenv" || top(f.Dir) == "cmd" {
			return
		}
		for _, call := range t.calls(f, "context", "Background", "TODO") {
			found = append(found, Violation{Path: f.Path, Line: call.line, Text: "makes a context of its own with context." + call.name})
		}
	})
	return found
}

// checkSettings wants flags and the environment read in cmd alone.
func checkSettings(t *Tree) []Violation {
	var found []Violation
	t.files(func(f *File) {
		if f.Test || f.Generated || f.command() || suite(f.Dir) || top(f.Dir) == "testenv" || top(f.Dir) == "cmd" {
			return
		}
		for _, imported := range f.Imports {
			if imported.Path == "flag" || imported.Path == "github.com/spf13/pflag" || imported.Path == "github.com/spf13/cobra" {
				found = append(found, Violation{Path: f.Path, Line: imported.Line, Text: fmt.Sprintf("imports %s: flags are read in cmd", imported.Path)})
			}
		}
		for _, call := range t.calls(f, "os", "Getenv", "LookupEnv", "Environ") {
			found = append(found, Violation{Path: f.Path, Line: call.line, Text: "calls os." + call.name + ": the environment is read in cmd"})
		}
	})
	return found
}

// checkSleep wants no time.Sleep in tests, outside the bubbles of testing/synctest
// where it takes no time. A function that is called in bubbles says so: its
// comment has the word "bubble".
func checkSleep(t *Tree) []Violation {
	var found []Violation
	t.files(func(f *File) {
		if !f.Test && !suite(f.Dir) {
			return
		}
		var free []ast.Node // where sleeping is free
		for _, decl := range f.AST.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Doc != nil && strings.Contains(fn.Doc.Text(), "bubble") {
				free = append(free, fn)
			}
		}
		for _, call := range t.calls(f, "testing/synctest", "Test", "Run") {
			free = append(free, call.node)
		}
		for _, call := range t.calls(f, "time", "Sleep") {
			if !within(call.node, free) {
				found = append(found, Violation{Path: f.Path, Line: call.line, Text: "sleeps outside a bubble"})
			}
		}
	})
	return found
}

// within reports whether n lies inside one of the nodes.
func within(n ast.Node, nodes []ast.Node) bool {
	for _, outer := range nodes {
		if outer.Pos() <= n.Pos() && n.End() <= outer.End() {
			return true
		}
	}
	return false
}

// call is one call of a package's function.
type call struct {
	node *ast.CallExpr
	name string // of the function
	line int
}

// calls returns the calls in f of functions of the package pkg.
func (t *Tree) calls(f *File, pkg string, names ...string) []call {
	local := ""
	for _, imported := range f.Imports {
		if imported.Path == pkg {
			local = imported.Name
			if local == "" {
				local = path.Base(pkg)
			}
		}
	}
	if local == "" {
		return nil
	}
	var found []call
	ast.Inspect(f.AST, func(n ast.Node) bool {
		expr, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		selector, ok := expr.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := selector.X.(*ast.Ident); ok && x.Name == local {
			for _, name := range names {
				if selector.Sel.Name == name {
					found = append(found, call{node: expr, name: name, line: t.line(expr)})
				}
			}
		}
		return true
	})
	return found
}
