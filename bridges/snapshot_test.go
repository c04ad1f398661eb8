package bridges

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// sameKept compares by what values say.
func sameKept() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b model.Labels) bool { return a == b }), cmpopts.EquateComparable(model.Endpoint{}.Address, model.Workload{}.Address),
		cmpopts.EquateEmpty(),
	}
}

func someKept() kept {
	return kept{
		Source: "zk", Kind: "zookeeper", Read: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Services:  []*model.Service{service("cart", 0), service("payments", 7)},
		Workloads: []*model.Workload{workload("shop-1"), {Name: "bare"}},
	}
}

func encoded(t testing.TB, k kept) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := encodeSnapshot(&b, k); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSnapshotRoundTrip(t *testing.T) {
	for name, want := range map[string]kept{
		"everything set": someKept(),
		"nothing held":   {Source: "zk", Kind: "zookeeper", Read: time.Unix(0, 0).UTC()},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeSnapshot(bytes.NewReader(encoded(t, want)))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, sameKept()); d != "" {
				t.Errorf("after the round trip (-want +got):\n%s", d)
			}
		})
	}
}

func TestSnapshotDropsATimeItCannotWrite(t *testing.T) {
	k := kept{Source: "zk", Kind: "z", Services: []*model.Service{service("cart", 1)}}
	k.Services[0].Endpoints[0].Changed = time.Unix(1<<60, 0)
	got, err := decodeSnapshot(bytes.NewReader(encoded(t, k)))
	if err != nil {
		t.Fatal(err)
	}
	if at := got.Services[0].Endpoints[0].Changed; !at.IsZero() {
		t.Errorf("changed is %v, want zero", at)
	}
}

func TestSnapshotRefusesDamage(t *testing.T) {
	whole := string(encoded(t, someKept()))
	lines := strings.SplitAfter(whole, "\n")
	for _, tt := range []struct{ name, file, want string }{
		{"an empty file", "", "line 1: the file ends early"},
		{"one byte changed in an address", strings.Replace(whole, "10.0.0.3:8080", "10.0.0.4:8080", 1), "checksum is"},
		{"the trailer missing", strings.Join(lines[:len(lines)-2], ""), "the file ends early"},
		{"the last byte missing", whole[:len(whole)-1], "the file ends early"},
		{"cut in the middle", whole[:len(whole)/2], "the file ends early"},
		{"a line more", whole + "{}\n", "more than the header promised"},
		{"a newer version", strings.Replace(whole, `"version":1`, `"version":2`, 1), "version is 2, this build reads 1"},
		{"another format", strings.Replace(whole, "isthmus-bridge", "something", 1), `format is "something"`},
		{"no JSON", "hello\n", "line 1: invalid character"},
		{"an unknown field", strings.Replace(whole, `"host":"cart"`, `"hosts":"cart"`, 1), `unknown field "hosts"`},
		{"a host that is none", strings.Replace(whole, `"host":"cart"`, `"host":"ca rt"`, 1), `line 2: host "ca rt"`},
		{"a label set that is not there", strings.Replace(whole, `"labels":1`, `"labels":9`, 1), "labels: 9, want 0 to 1"},
		{"a negative number of services", strings.Replace(whole, `"services":2`, `"services":-2`, 1), "-2 services"},
		{"an endless number of services", strings.Replace(whole, `"services":2`, `"services":99999999`, 1), "99999999 services"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decodeSnapshot(strings.NewReader(tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func FuzzDecodeSnapshot(f *testing.F) {
	whole := encoded(f, someKept())
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		k, err := decodeSnapshot(bytes.NewReader(file))
		if err != nil {
			return
		}
		again, err := decodeSnapshot(bytes.NewReader(encoded(t, k)))
		if err != nil {
			t.Fatalf("what was read cannot be written and read: %v", err)
		}
		if d := cmp.Diff(k, again, sameKept()); d != "" {
			t.Errorf("round trip (-first +second):\n%s", d)
		}
	})
}

func BenchmarkSnapshot(b *testing.B) {
	k := kept{Source: "zk", Kind: "zookeeper", Read: time.Unix(1, 0)}
	for range 1000 {
		k.Services = append(k.Services, service("shop.service", 100))
	}
	file := encoded(b, k)
	b.Run("encode 100,000 endpoints", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			var out bytes.Buffer
			if err := encodeSnapshot(&out, k); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode 100,000 endpoints", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if _, err := decodeSnapshot(bytes.NewReader(file)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestDiskKeepsAndLoads(t *testing.T) {
	d := disk{dir: filepath.Join(t.TempDir(), "new", "folder"), source: "zk", kind: "zookeeper"}
	if _, found, err := d.load(); found || err != nil {
		t.Fatalf("from nothing: found %v, %v", found, err)
	}
	want := someKept()
	for range 2 {
		size, err := d.save(want)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(d.path()); err != nil || info.Size() != size {
			t.Errorf("size %d, the file is %v, %v", size, info, err)
		}
	}
	got, found, err := d.load()
	if err != nil || !found {
		t.Fatalf("found %v, %v", found, err)
	}
	if diff := cmp.Diff(want, got, sameKept()); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	if names := files(t, d.dir); len(names) != 1 {
		t.Errorf("files %v, want one", names)
	}
}

func TestDiskMovesAFileAsideThatItCannotUse(t *testing.T) {
	for name, break_ := range map[string]func(disk) error{
		"damaged":           func(d disk) error { return os.WriteFile(d.path(), []byte("{}\n"), 0o600) },
		"of another source": func(d disk) error { return os.Rename(disk{dir: d.dir, source: "other", kind: d.kind}.path(), d.path()) },
	} {
		t.Run(name, func(t *testing.T) {
			d := disk{dir: t.TempDir(), source: "zk", kind: "zookeeper"}
			if _, err := (disk{dir: d.dir, source: "other", kind: d.kind}).save(someKept()); err != nil {
				t.Fatal(err)
			}
			if err := break_(d); err != nil {
				t.Fatal(err)
			}
			_, found, err := d.load()
			if found || err == nil || !strings.Contains(err.Error(), "moved to "+d.path()+".corrupt") {
				t.Errorf("found %v, %v; want an error that names the new place", found, err)
			}
			if _, err := os.Stat(d.path() + ".corrupt"); err != nil {
				t.Error(err)
			}
			if _, found, err := d.load(); found || err != nil {
				t.Errorf("afterwards: found %v, %v", found, err)
			}
		})
	}
}

func TestDiskLeavesNothingBehindWhenItFails(t *testing.T) {
	d := disk{dir: t.TempDir(), source: "zk", kind: "zookeeper"}
	if err := os.Mkdir(d.path(), 0o750); err != nil { // a folder cannot be replaced by a file
		t.Fatal(err)
	}
	if _, err := d.save(someKept()); err == nil {
		t.Error("saved over a folder")
	}
	if names := files(t, d.dir); len(names) != 1 {
		t.Errorf("files %v, want only the folder", names)
	}
}

func TestSweepRemovesHalfWrittenFiles(t *testing.T) {
	d := disk{dir: t.TempDir(), source: "zk", kind: "zookeeper"}
	for _, name := range []string{".zk.snapshot-123", ".zk.snapshot-9", ".other.snapshot-1", "zk.snapshot"} {
		if err := os.WriteFile(filepath.Join(d.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.sweep(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{".other.snapshot-1", "zk.snapshot"}, files(t, d.dir)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
