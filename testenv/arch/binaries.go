package arch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// fences says, for each program, what it must not contain, by the beginning of
// the import path, and why. The fence "*" is around all programs.
func fences() map[string]map[string]string {
	return map[string]map[string]string{
		"*": {
			"testing":            "test code has no place in a program",
			module + "/testenv/": "test code has no place in a program",
		},
		"cmd/sidecar": {
			"k8s.io/":                "sidecars learn about Kubernetes from MeshServer",
			"modernc.org/sqlite":     "a sidecar stores nothing but its last good configuration",
			"istio.io/":              "sidecars see compiled resources, not rules",
			"github.com/spf13/cobra": "a daemon uses package flag",
		},
		"cmd/agent": {
			"k8s.io/":            "agents learn about Kubernetes from MeshServer",
			"modernc.org/sqlite": "an agent stores no rules",
		},
		"cmd/meshctl": {
			"k8s.io/":            "meshctl speaks to the Mesh API",
			"modernc.org/sqlite": "meshctl speaks to the Mesh API, not to its database",
		},
		"cmd/meshserver": {
			"github.com/spf13/cobra": "a daemon uses package flag",
		},
	}
}

// checkBinary lists what the program in the folder dir of the tree at root
// contains, with go list, and returns what its fences forbid. A program that
// does not exist breaks no rule.
func checkBinary(ctx context.Context, root, dir string) ([]Violation, error) {
	if _, err := os.Stat(filepath.Join(root, dir)); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "./"+dir)
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -deps ./%s: %w\n%s", dir, err, stderr.String())
	}
	forbidden := maps.Clone(fences()["*"])
	maps.Copy(forbidden, fences()[dir])
	return contained(dir, strings.Fields(string(out)), forbidden), nil
}

// contained returns a violation for each fence that a dependency crosses.
func contained(dir string, deps []string, forbidden map[string]string) []Violation {
	var found []Violation
	for _, fence := range slices.Sorted(maps.Keys(forbidden)) {
		for _, dep := range deps {
			inside := dep == fence || strings.HasPrefix(dep, strings.TrimSuffix(fence, "/")+"/")
			if inside {
				found = append(found, Violation{Path: dir, Text: fmt.Sprintf("contains %s: %s", dep, forbidden[fence])})
				break // one is enough to find the import
			}
		}
	}
	return found
}
