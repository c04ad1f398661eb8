package cache_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

func TestPartIsInstalledOnceItsFolderExists(t *testing.T) {
	root := t.TempDir()
	t.Setenv("ISTHMUS_TESTENV", root)
	part := cache.Part{Name: "thing", Version: "1.2"}
	if _, err := part.Path("file"); err == nil || !strings.Contains(err.Error(), "thing 1.2 is not installed: run make peers") {
		t.Errorf("got %v, want the mend", err)
	}
	if err := os.Mkdir(filepath.Join(root, "thing-1.2"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := part.Path("bin", "file")
	if want := filepath.Join(root, "thing-1.2", "bin", "file"); err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// TestToolModulesPinTheSameVersions compares the versions of the cache's keys with
// those that the modules under tools/ build.
func TestToolModulesPinTheSameVersions(t *testing.T) {
	repo, err := cache.Repository()
	if err != nil {
		t.Fatal(err)
	}
	linter, _, _ := strings.Cut(cache.Linter().Version, "-")
	tests := []struct{ folder, module, version string }{
		{folder: "consul", module: "github.com/hashicorp/consul", version: cache.Consul().Version},
		{folder: "grpcurl", module: "github.com/fullstorydev/grpcurl", version: cache.Grpcurl().Version},
		{folder: "lint", module: "github.com/golangci/golangci-lint/v2", version: linter},
	}
	for _, tt := range tests {
		t.Run(tt.folder, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(repo, "tools", tt.folder, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			if want := tt.module + " v" + tt.version; !strings.Contains(string(text)+"\n", want+" //") && !strings.Contains(string(text), want+"\n") {
				t.Errorf("tools/%s/go.mod does not require %s", tt.folder, want)
			}
		})
	}
}

func TestJavaVersionIsThatOfItsSources(t *testing.T) {
	first, err := cache.Java()
	if err != nil {
		t.Fatal(err)
	}
	second, err := cache.Java()
	if err != nil || first != second || len(first.Version) != 12 {
		t.Errorf("got %v, then %v, %v; want the same hash of 12 digits", first, second, err)
	}
}
