package wire

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// captured are answers of a real Consul 1.20.1.
func captured(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s in testdata: %v", pattern, err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(name)] = data
	}
	return out
}

func TestCapturedInstances(t *testing.T) {
	in, err := DecodeInstances(captured(t, "health-greeting-*.json")["health-greeting-consul1.20.1.json"])
	if err != nil || len(in.Rejected) > 0 {
		t.Fatal(err, in.Rejected)
	}
	want := []Entry{{
		Node: &Node{Node: in.Entries[0].Node.Node, Address: "127.0.0.1", Datacenter: "dc1"},
		Service: &Service{
			ID: "greeting-8080", Service: "greeting", Address: "127.0.0.1", Port: 8080, Tags: []string{"blue", "track=canary"},
			Meta: map[string]string{"secure": "false", "zone": "z1"}, Weights: &Weights{Passing: 10, Warning: 2},
		},
		Checks: []Check{{CheckID: "serfHealth", Status: "passing"}, {CheckID: "service:greeting-8080", Status: "critical"}},
	}}
	if d := cmp.Diff(want, in.Entries); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for name, data := range captured(t, "health-*.json") {
		if in, err := DecodeInstances(data); err != nil || len(in.Rejected) > 0 || len(in.Entries) != 1 {
			t.Errorf("%s: %d entries, rejected %v, %v", name, len(in.Entries), in.Rejected, err)
		}
	}
}

func TestCapturedCatalog(t *testing.T) {
	got, err := DecodeCatalog(captured(t, "catalog-*.json")["catalog-consul1.20.1.json"])
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || len(got["greeting"]) != 2 {
		t.Errorf("%v", got)
	}
}

func TestWhatIsNoAnswerIsNotEmpty(t *testing.T) {
	for _, body := range []string{"", "null", "{", "[]x", `"consul"`, "<html>", "{} {}"} {
		if got, err := DecodeCatalog([]byte(body)); err == nil {
			t.Errorf("catalog %q is %v", body, got)
		} else if KindOf(err) != Malformed {
			t.Errorf("catalog %q: kind %v", body, KindOf(err))
		}
	}
	for _, body := range []string{"", "null", "{}", "[", "[{]", "[] []"} {
		if got, err := DecodeInstances([]byte(body)); err == nil {
			t.Errorf("instances %q are %v", body, got)
		} else if KindOf(err) != Malformed {
			t.Errorf("instances %q: kind %v", body, KindOf(err))
		}
	}
}

func TestOneBadElementLeavesItsNeighbours(t *testing.T) {
	body := `[
		{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"a","Port":1}},
		{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"b","Port":"two"}},
		{"Node":{"Node":"n"}}, {"Service":{}}, null, 7,
		{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"c","Port":3}}]`
	in, err := DecodeInstances([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range in.Entries {
		ids = append(ids, e.Key().ID)
	}
	if d := cmp.Diff([]string{"a", "c"}, ids); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var reasons []string
	for _, r := range in.Rejected {
		reasons = append(reasons, fmt.Sprintf("%d %s %.20s", r.At, r.Key.ID, r.Reason))
	}
	want := []string{"1 b json: cannot unmarsh", "2  has no service", "3  has no node", "4  has no node", "5  json: cannot unmarsh"}
	if d := cmp.Diff(want, reasons); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func FuzzInstances(f *testing.F) {
	for _, data := range captured(f, "health-*.json") {
		f.Add(data)
	}
	f.Add([]byte(`[{"Node":{},"Service":{"Port":"x","ID":"a"}},{"Node":{},"Service":{"Ports":[{"Port":1}],"Weights":null}},null]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := DecodeInstances(body)
		if err != nil {
			if KindOf(err) != Malformed || len(err.Error()) > maxErrorText+50 {
				t.Fatalf("error %v of %d bytes", KindOf(err), len(err.Error()))
			}
			return
		}
		for _, r := range in.Rejected {
			if r.Reason == "" || len(r.Reason) > maxErrorText {
				t.Fatalf("rejected without a sentence: %+v", r)
			}
		}
		text, err := json.Marshal(in.Entries)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeInstances(text)
		if err != nil || len(again.Rejected) > 0 {
			t.Fatalf("what was encoded is not read: %v, %v", err, again.Rejected)
		}
		back, err := json.Marshal(again.Entries)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(text), string(back)); d != "" {
			t.Fatalf("(-first +second):\n%s", d)
		}
	})
}

func FuzzCatalog(f *testing.F) {
	for _, data := range captured(f, "catalog-*.json") {
		f.Add(data)
	}
	f.Add([]byte(`{"a":null,"b":["x"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := DecodeCatalog(body)
		if err != nil {
			return
		}
		text, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeCatalog(text)
		if err != nil {
			t.Fatalf("what was encoded is not read: %v", err)
		}
		if d := cmp.Diff(got, again); d != "" {
			t.Fatalf("(-first +second):\n%s", d)
		}
	})
}

func BenchmarkDecodeInstances(b *testing.B) {
	one := strings.Trim(string(captured(b, "health-greeting-*.json")["health-greeting-consul1.20.1.json"]), "[] \n")
	body := []byte("[" + strings.Repeat(one+",", 99) + one + "]")
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if in, err := DecodeInstances(body); err != nil || len(in.Entries) != 100 {
			b.Fatal(len(in.Entries), err)
		}
	}
}

func BenchmarkDecodeCatalog(b *testing.B) {
	c := Catalog{}
	for i := range 1000 {
		c[fmt.Sprintf("service-%d", i)] = []string{"blue", "track=canary"}
	}
	body, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if got, err := DecodeCatalog(body); err != nil || len(got) != 1000 {
			b.Fatal(len(got), err)
		}
	}
}
