package file

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inbox takes what a folder hands on.
type inbox struct {
	set      rules.Set
	sets     int
	update   model.Update
	status   model.SourceStatus
	statuses int
}

func (b *inbox) Apply(u model.Update)        { b.update = u }
func (b *inbox) Report(s model.SourceStatus) { b.status, b.statuses = s, b.statuses+1 }

func (b *inbox) rules() []string {
	var keys []string
	for _, r := range b.set.All() {
		keys = append(keys, string(r.Key()))
	}
	return keys
}

func newFolder(t testing.TB, dir string) (*Folder, *inbox) {
	t.Helper()
	b := &inbox{}
	f, err := New(Config{Dir: dir, Sink: b, Log: slog.New(slog.DiscardHandler),
		Rules: func(s rules.Set) { b.set, b.sets = s, b.sets+1 }})
	if err != nil {
		t.Fatal(err)
	}
	return f, b
}

func entry(name string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s}\nspec: {hosts: [%s], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}\n---\n", name, name)
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: rules (-want +got):\n%s", what, d)
	}
}

func (f *Folder) twice() { f.look(); f.look() }

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", entry("b"))
	write(t, dir, "deep/er/a.yml", entry("a"))
	write(t, dir, "notes.txt", "not rules")
	write(t, dir, ".hidden.yaml", entry("hidden"))
	write(t, dir, ".git/x.yaml", entry("hidden"))
	f, b := newFolder(t, dir)
	f.look()
	want(t, "at the first look", b.rules(), "serviceentry/default/a", "serviceentry/default/b")
	if b.status.Phase != model.Live || b.status.Read.IsZero() || b.status.Source != "file" || b.status.Kind != Kind {
		t.Errorf("status: got %+v", b.status)
	}
	if !b.update.Full || len(b.update.Services) != 2 {
		t.Errorf("update: got %+v", b.update)
	}
	f.twice()
	if b.sets != 1 || b.statuses != 1 {
		t.Errorf("%d sets and %d statuses without a change", b.sets, b.statuses)
	}

	write(t, dir, "b.yaml", entry("b")+entry("c"))
	f.look()
	want(t, "while the file may still be written", b.rules(), "serviceentry/default/a", "serviceentry/default/b")
	f.look()
	want(t, "once it rests", b.rules(), "serviceentry/default/a", "serviceentry/default/b", "serviceentry/default/c")

	if err := os.Remove(filepath.Join(dir, "deep/er/a.yml")); err != nil {
		t.Fatal(err)
	}
	f.look()
	want(t, "while a deleted file may still come back", b.rules(), "serviceentry/default/a", "serviceentry/default/b", "serviceentry/default/c")
	f.look()
	want(t, "after a file is deleted", b.rules(), "serviceentry/default/b", "serviceentry/default/c")
	if len(b.update.Services) != 2 || !b.update.Full {
		t.Errorf("update after deletion: got %+v", b.update)
	}
}

func TestMistakesKeepTheLastGoodRules(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", entry("a"))
	write(t, dir, "b.yaml", entry("b"))
	f, b := newFolder(t, dir)
	f.look()
	write(t, dir, "a.yaml", strings.Replace(entry("a"), "STATIC", "DNS", 1)+"kind: {\n")
	write(t, dir, "b.yaml", entry("b2"))
	f.twice()
	want(t, "one file wrong, one changed", b.rules(), "serviceentry/default/a", "serviceentry/default/b2")
	if len(b.status.Skipped) != 2 || b.status.Skipped[0].Where != "a.yaml:4" || !strings.HasPrefix(b.status.Skipped[0].Reason, "serviceentry/default/a: spec.resolution: ") {
		t.Errorf("skipped: got %+v", b.status.Skipped)
	}
	if b.status.Phase != model.Live {
		t.Errorf("phase: got %v", b.status.Phase)
	}
	write(t, dir, "a.yaml", entry("a3"))
	f.twice()
	want(t, "repaired", b.rules(), "serviceentry/default/a3", "serviceentry/default/b2")
	if len(b.status.Skipped) != 0 {
		t.Errorf("skipped: got %+v", b.status.Skipped)
	}

	write(t, dir, "c.yaml", entry("a3")+entry("c"))
	f.twice()
	want(t, "one key in two files", b.rules(), "serviceentry/default/a3", "serviceentry/default/b2", "serviceentry/default/c")
	if len(b.status.Skipped) != 1 || b.status.Skipped[0].Reason != "serviceentry/default/a3: is already in a.yaml" {
		t.Errorf("skipped: got %+v", b.status.Skipped)
	}
}

func TestAFileMovedAwayForOneLookKeepsItsRules(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "rules")
	write(t, dir, "a.yaml", entry("a"))
	write(t, dir, "b.yaml", entry("b"))
	f, b := newFolder(t, dir)
	f.look()
	path := filepath.Join(dir, "a.yaml")
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(path, path+"~")
	f.look()
	rename(path+"~", path)
	f.twice()
	if want(t, "moved away and back", b.rules(), "serviceentry/default/a", "serviceentry/default/b"); b.sets > 2 {
		t.Errorf("%d sets, want at most one for the new times of the file", b.sets)
	}

	// A look that failed says nothing of the file.
	rename(dir, dir+"-away")
	f.look()
	rename(filepath.Join(dir+"-away", "a.yaml"), filepath.Join(parent, "a.yaml"))
	rename(dir+"-away", dir)
	f.look()
	want(t, "at the first look at a folder that is back", b.rules(), "serviceentry/default/a", "serviceentry/default/b")
	f.look()
	want(t, "at the second", b.rules(), "serviceentry/default/b")
}

func TestAFileWithMistakesAtTheStartMakesTheSourceStale(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", entry("a"))
	write(t, dir, "b.yaml", entry("b")+"kind: {\n")
	write(t, dir, "c.yaml", "kind: Nonsense\n")
	f, b := newFolder(t, dir)
	f.look()
	want(t, "the others are in force", b.rules(), "serviceentry/default/a")
	for _, part := range []string{"not in force: b.yaml:", "not YAML", "1 more files have mistakes"} {
		if b.status.Phase != model.Stale || !strings.Contains(b.status.Err, part) {
			t.Errorf("status %v %q, want stale with %q", b.status.Phase, b.status.Err, part)
		}
	}
	f.twice()
	if b.status.Phase != model.Stale || b.statuses != 1 {
		t.Errorf("without a change: %v after %d reports", b.status.Phase, b.statuses)
	}
	write(t, dir, "b.yaml", entry("b"))
	f.twice()
	if b.status.Phase != model.Stale || !strings.HasPrefix(b.status.Err, "not in force: c.yaml") {
		t.Errorf("with one repaired: %v %q", b.status.Phase, b.status.Err)
	}
	if err := os.Remove(filepath.Join(dir, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	f.twice()
	if b.status.Phase != model.Live || b.status.Err != "" {
		t.Errorf("with the other removed: %v %q", b.status.Phase, b.status.Err)
	}
}

func TestVanishedFolderIsNotEmpty(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "rules")
	f, b := newFolder(t, dir)
	f.look()
	if b.sets != 0 || b.status.Phase != model.Syncing || b.status.Err == "" {
		t.Errorf("a folder that never was: %d sets, status %+v", b.sets, b.status)
	}
	write(t, dir, "a.yaml", entry("a"))
	f.twice()
	want(t, "when it appears", b.rules(), "serviceentry/default/a")
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	f.twice()
	want(t, "when it vanishes", b.rules(), "serviceentry/default/a")
	if b.status.Phase != model.Stale || b.status.Err == "" || b.sets != 1 {
		t.Errorf("status: got %+v after %d sets", b.status, b.sets)
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	f.twice()
	if b.status.Phase != model.Live || b.status.Err != "" {
		t.Errorf("when it is back: got %+v", b.status)
	}
}

func TestLinksAndOddFiles(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "secret.yaml", entry("secret"))
	dir := t.TempDir()
	// As Kubernetes mounts a ConfigMap.
	write(t, dir, "..2024/cart.yaml", entry("cart"))
	for _, link := range [][2]string{
		{"..2024", "..data"}, {"..data/cart.yaml", "cart.yaml"}, {".", "loop"}, {"nowhere.yaml", "dangling.yaml"},
		{filepath.Join(outside, "secret.yaml"), "outside.yaml"},
	} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "folder.yaml/inner.yaml", entry("inner"))
	write(t, dir, "large.yaml", strings.Repeat("# large\n", rules.MaxFileBytes/8+1))
	f, b := newFolder(t, dir)
	f.look()
	want(t, "links inside are followed", b.rules(), "serviceentry/default/cart", "serviceentry/default/inner")
	var where []string
	for _, s := range b.status.Skipped {
		where = append(where, s.Where)
	}
	want(t, "what cannot be read is named", where, "dangling.yaml", "large.yaml", "outside.yaml")

	write(t, dir, "..2025/cart.yaml", entry("cart2"))
	if err := os.Symlink("..2025", filepath.Join(dir, "..tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	f.twice()
	want(t, "after Kubernetes swapped the link", b.rules(), "serviceentry/default/cart2", "serviceentry/default/inner")
}

func TestUnreadableFileIsTriedAgainWhenItChanges(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read everything")
	}
	dir := t.TempDir()
	write(t, dir, "a.yaml", entry("a"))
	path := filepath.Join(dir, "a.yaml")
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	f, b := newFolder(t, dir)
	f.look()
	if len(b.status.Skipped) != 1 {
		t.Errorf("skipped: got %+v", b.status.Skipped)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f.twice()
	want(t, "after it became readable", b.rules(), "serviceentry/default/a")
}

func TestRunAppliesAChangeWithinASecond(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", entry("a"))
	synctest.Test(t, func(t *testing.T) {
		f, b := newFolder(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		synctest.Wait()
		if !slices.Equal(b.rules(), []string{"serviceentry/default/a"}) {
			t.Errorf("at once: got %v", b.rules())
		}
		write(t, dir, "b.yaml", entry("b"))
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if len(b.rules()) != 2 {
			t.Errorf("within a second: got %v", b.rules())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	_, err := New(Config{Poll: -1})
	for _, want := range []string{"Dir", "Rules", "Sink", "Log", "Poll"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s named", err, want)
		}
	}
}

// BenchmarkLook is one look at 1,000 files that did not change.
func BenchmarkLook(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		write(b, dir, fmt.Sprintf("%d/%d.yaml", i%10, i), entry(fmt.Sprintf("s%d", i)))
	}
	f, _ := newFolder(b, dir)
	f.look()
	b.ReportAllocs()
	for b.Loop() {
		f.look()
	}
}
