package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// thing is a recipe in an empty cache.
func thing(t *testing.T, build func(ctx context.Context, run runner, dst, scratch string) error) recipe {
	t.Helper()
	t.Setenv("ISTHMUS_TESTENV", t.TempDir())
	return recipe{part: cache.Part{Name: "thing", Version: "1"}, cost: "nothing", build: build}
}

func quiet() *progress { return &progress{out: io.Discard} }

func TestInstallBuildsOnceForAllWhoWaitForIt(t *testing.T) {
	var builds atomic.Int32
	r := thing(t, func(_ context.Context, _ runner, dst, _ string) error {
		builds.Add(1)
		return os.WriteFile(filepath.Join(dst, "file"), []byte("made"), 0o600)
	})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := install(t.Context(), r, quiet()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	path, err := r.part.Path("file")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "made" || builds.Load() != 1 {
		t.Errorf("got %q, %v after %d builds; want made, after 1", text, err, builds.Load())
	}
}

func TestInstallBeginsAnewAfterAFailure(t *testing.T) {
	fail := true
	r := thing(t, func(ctx context.Context, run runner, dst, scratch string) error {
		if err := os.WriteFile(filepath.Join(dst, "half"), nil, 0o600); err != nil {
			return err
		}
		if fail {
			return run(ctx, scratch, []string{"WORD=broken"}, "sh", "-c", "echo it is $WORD; exit 3")
		}
		return nil
	})
	err := install(t.Context(), r, quiet())
	if err == nil {
		t.Fatal("want an error")
	}
	for _, want := range []string{"sh: exit status 3", "it is broken", "the whole output is in"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if installed, err := r.part.Installed(); installed || err != nil {
		t.Errorf("after the failure: installed is %v, %v; want false", installed, err)
	}
	fail = false
	if err := install(t.Context(), r, quiet()); err != nil {
		t.Error(err)
	}
	root, err := cache.Root()
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v; want nothing", left, err)
	}
}

func TestInstallEndsWhenItIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	r := thing(t, func(ctx context.Context, run runner, _, scratch string) error {
		cancel(stopped)
		return run(ctx, scratch, nil, "sh", "-c", "sleep 1000 & wait")
	})
	if err := install(ctx, r, quiet()); !errors.Is(err, stopped) {
		t.Errorf("got %v, want %v", err, stopped)
	}
}

func TestChoose(t *testing.T) {
	all := []recipe{
		{part: cache.Part{Name: "envoy"}, peer: true},
		{part: cache.Part{Name: "consul"}, peer: true},
		{part: cache.Part{Name: "linter"}},
	}
	tests := []struct {
		name  string
		names []string
		want  string
	}{
		{name: "nothing named means every peer", want: "envoy, consul"},
		{name: "tools by name", names: []string{"linter"}, want: "linter"},
		{name: "an unknown name is refused", names: []string{"envoi", "envoy"},
			want: `no part is called "envoi": there are envoy, consul, linter`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := choose(all, tt.names)
			text := known(got)
			if err != nil {
				text = err.Error()
			}
			if text != tt.want {
				t.Errorf("got %q, want %q", text, tt.want)
			}
		})
	}
}

func TestLineWriterShowsWholeCleanLines(t *testing.T) {
	var file, shown strings.Builder
	w := &lineWriter{file: &file, show: func(line string) { shown.WriteString("<" + line + ">") }}
	for _, part := range []string{"one\ntw", "o\x1b[2J\n\n", "thr"} {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if shown.String() != "<one><two[2J>" || file.String() != "one\ntwo\x1b[2J\n\nthr" {
		t.Errorf("showed %q and wrote %q", shown.String(), file.String())
	}
}

func TestInstallDebianNamesWhatIsMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // neither programs nor apt-get
	needs := []need{
		{pkg: "has-it", probe: []string{"/bin/true"}},
		{pkg: "nothing", program: "no-such-program"},
		{pkg: "broken", probe: []string{"/bin/false"}},
	}
	err := installDebian(t.Context(), needs, quiet())
	if err == nil || !strings.Contains(err.Error(), "packages are missing: nothing broken;") {
		t.Errorf("got %v, want nothing and broken named", err)
	}
}
