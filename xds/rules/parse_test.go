package rules

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	yamlv3 "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files and docs/rules.md")

// Each archive holds rules.yaml and, expected, mistakes: what Parse reports.
func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse("rules.yaml", archive.Files[0].Data)
			if err == nil {
				t.Fatal("no mistakes reported")
			}
			got := err.Error() + "\n"
			if *update {
				archive.Files = append(archive.Files[:1], txtar.File{Name: "mistakes", Data: []byte(got)})
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(archive.Files[1].Data), got); d != "" {
				t.Errorf("mistakes (-want +got):\n%s", d)
			}
		})
	}
}

func mustParse(t testing.TB, text string) []*Rule {
	t.Helper()
	all, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const everything = `# two documents and a comment
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: cart
  namespace: shop
  creationTimestamp: "2024-05-01T10:00:00Z"
  labels: {team: a}
spec:
  hosts: [cart, "*.shop.example"]
  gateways: [mesh]
  http:
  - name: canary
    match:
    - uri: {prefix: /v1}
      headers: {x-user: {exact: "1"}, x-any: {}}
      sourceLabels: {app: web}
    route:
    - destination: {host: cart, subset: v2, port: {number: 80}}
      weight: 10
      headers: {response: {add: {x-v: "2"}}}
    - destination: {host: cart, subset: v1}
      weight: 90
    timeout: 1.5s
    retries: {attempts: 3, perTryTimeout: 500ms, retryOn: "5xx,429"}
    rewrite: {uri: /}
  - redirect: {uri: /gone, redirectCode: 302, port: 8080}
  tcp:
  - match: [{port: 3306}]
    route: [{destination: {host: db}}]
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec:
  host: cart
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {minimumRingSize: 2048}}}
    connectionPool: {tcp: {maxConnections: 10, connectTimeout: 30ms}, http: {maxRetries: 2, idleTimeout: 30s}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
--- # third
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db]
  addresses: [10.0.0.9]
  ports: [{number: 3306, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.1.0.1, ports: {tcp: 13306}, labels: {version: v1}, locality: eu/a, weight: 7}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-1}
spec: {address: 10.2.0.1, labels: {app: vm}}
`

// The walk over YAML nodes must read values as Istio's own unmarshalling does.
func TestParseAgreesWithIstio(t *testing.T) {
	all := mustParse(t, everything)
	if len(all) != 4 {
		t.Fatalf("got %d rules, want 4", len(all))
	}
	for _, r := range all {
		var doc struct {
			Spec json.RawMessage `json:"spec"`
		}
		if err := yaml.Unmarshal([]byte(r.YAML), &doc); err != nil {
			t.Fatal(err)
		}
		want := r.Kind.newSpec()
		if err := want.(json.Unmarshaler).UnmarshalJSON(doc.Spec); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, r.Spec, protocmp.Transform()); d != "" {
			t.Errorf("%s (-Istio +Parse):\n%s", r.Key(), d)
		}
	}
	vs := all[0]
	if vs.Key() != "virtualservice/shop/cart" || vs.Created.Year() != 2024 || vs.Labels["team"] != "a" {
		t.Errorf("metadata: got %v created %v labels %v", vs.Key(), vs.Created, vs.Labels)
	}
}

func TestParseReadsJSONAndSnakeCase(t *testing.T) {
	all := mustParse(t, `{"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "a"}, "spec": {"address": "10.0.0.1", "weight": 5}}`)
	if len(all) != 1 || all[0].Namespace != DefaultNamespace {
		t.Fatalf("got %+v", all)
	}
	all = mustParse(t, strings.Replace(everything, "perTryTimeout", "per_try_timeout", 1))
	if got := all[0].VirtualService().Http[0].Retries.PerTryTimeout.AsDuration().Milliseconds(); got != 500 {
		t.Errorf("per_try_timeout: got %d ms, want 500", got)
	}
}

func TestParseBounds(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+", ", 9) + "*" + string(c-1) + "]\n"
	}
	tests := []struct{ name, text, want string }{
		{"a file of two MiB", strings.Repeat("#", 2<<20), "want at most"},
		{"bytes that are no text", "kind: \xff", "not UTF-8"},
		{"more than two thousand documents", strings.Repeat("---\na: b\n", 3000), "more"},
		{"aliases that expand a billionfold", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: *j\n" + bomb, ""},
		{"an alias to itself", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: &s\n  hosts: [*s]\n", ""},
		{"brackets ten thousand deep", strings.Repeat("[", 10_000), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.text))
			mistakes, ok := errors.AsType[Mistakes](err)
			if !ok || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want mistakes with %q", err, tt.want)
			}
			if len(mistakes) > maxMistakes+1 {
				t.Errorf("%d mistakes, want at most %d", len(mistakes), maxMistakes+1)
			}
		})
	}
}

// Reading ends soon after the last mistake that is reported, wherever the mistakes
// are: what each costs grows with those before it.
func TestReadingEndsWithTheLastReportedMistake(t *testing.T) {
	head := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n"
	tests := []struct{ name, text string }{
		{"values of the wrong kind", head + "  hosts:\n" + strings.Repeat("  - 1\n", 20_000)},
		{"unknown fields", head + "  http:\n" + strings.Repeat("  - {no: 1}\n", 10_000)},
		{"mistakes that only checks find", head + "  hosts: [a]\n  http:\n" + strings.Repeat("  - {match: [{}]}\n", 10_000)},
		{"first unreadable, then wrong", head + "  hosts:\n" + strings.Repeat("  - 1\n", 20_000) + "  http:\n" + strings.Repeat("  - {match: [{}]}\n", 5_000)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if len(tt.text) > MaxFileBytes {
				t.Fatalf("the text has %d bytes, want one that Parse takes", len(tt.text))
			}
			var root yamlv3.Node
			if err := yamlv3.Unmarshal([]byte(tt.text), &root); err != nil {
				t.Fatal(err)
			}
			d := &reader{parser: &parser{file: "f", keys: map[Key]int{}}, lines: map[string]int{}}
			d.rule(root.Content[0], tt.text)
			if len(d.mistakes) != maxMistakes+1 {
				t.Errorf("%d mistakes, want %d", len(d.mistakes), maxMistakes+1)
			}
			if len(d.unread) > maxMistakes+1 {
				t.Errorf("%d paths to compare each mistake with, want at most %d", len(d.unread), maxMistakes+1)
			}
			if strings.Contains(tt.name, "checks") {
				return // they run once everything is read
			}
			if d.nodes > 10*maxMistakes {
				t.Errorf("%d values read, want reading to end after %d mistakes", d.nodes, maxMistakes)
			}
		})
	}
	if _, err := Parse("f", []byte(strings.Repeat("---\n"+head+"  hosts: ["+strings.Repeat("1, ", 500)+"1]\n", 400))); err == nil || strings.Count(err.Error(), "\n") != maxMistakes {
		t.Errorf("many documents: want %d lines", maxMistakes+1)
	}
}

// A key is part of the path of all that is below it, and aliases repeat it.
func TestLongKeysAreRefused(t *testing.T) {
	_, err := Parse("f", []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - match:\n    - sourceLabels: {? "+strings.Repeat("k", 2000)+" : a}\n"))
	if err == nil || !strings.Contains(err.Error(), "a key of 2000 bytes, want at most 512") {
		t.Errorf("got %.300v", err)
	}
}

// The text of a rule is stored and read again, so it must be read as the file was.
func TestTextOfARuleIsReadAgain(t *testing.T) {
	flush := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: a\nspec:\n  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a}\n"
	indented := "    " + strings.ReplaceAll(strings.TrimSuffix(flush, "\n"), "\n", "\n    ") + "\n"
	for _, tt := range []struct{ name, text, want string }{
		{"flush", flush, flush},
		{"indented throughout", indented, indented},
		{"indented, below a marker and blank lines", "--- \n\n  \n" + indented, indented},
		{"below a marker", "---\n" + flush, flush},
		{"with a comment first", "\n# why\n" + flush, "# why\n" + flush},
		{"with line ends of Windows", "---\r\n" + strings.ReplaceAll(indented, "\n", "\r\n"), strings.ReplaceAll(indented, "\n", "\r\n")},
		{"JSON on the marker's line", `--- {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "a"}, "spec": {"address": "10.0.0.1"}}` + "\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := mustParse(t, tt.text)[0]
			if tt.want != "" && r.YAML != tt.want {
				t.Errorf("text (-want +got):\n%s", cmp.Diff(tt.want, r.YAML))
			}
			again, err := Parse("again", []byte(r.YAML))
			if err != nil || len(again) != 1 || again[0].YAML != r.YAML || !proto.Equal(again[0].Spec, r.Spec) {
				t.Errorf("read again: %v, %v", again, err)
			}
		})
	}
}

// What is accepted must read the same again from its own canonical form; what is
// refused must name the file in each mistake.
func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	archives, _ := filepath.Glob("testdata/mistakes/*.txtar")
	for _, path := range archives {
		if a, err := txtar.ParseFile(path); err == nil {
			f.Add(a.Files[0].Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := Parse("f.yaml", data)
		if err != nil {
			mistakes, ok := errors.AsType[Mistakes](err)
			if !ok || len(mistakes) == 0 || all != nil {
				t.Fatalf("got %d rules and error %v", len(all), err)
			}
			for _, m := range mistakes {
				if m.File != "f.yaml" || m.Text == "" || m.Line < 0 || m.Line > len(data)+1 {
					t.Fatalf("mistake %+v", m)
				}
			}
			return
		}
		Analyze(NewSet(all...), nil)
		Registry(NewSet(all...))
		for _, r := range all {
			stored, err := Parse("stored", []byte(r.YAML))
			if err != nil || len(stored) != 1 || !proto.Equal(r.Spec, stored[0].Spec) || stored[0].YAML != r.YAML {
				t.Fatalf("%q is not read again: %v", r.YAML, err)
			}
			spec, err := protojson.Marshal(r.Spec)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := json.Marshal(map[string]any{
				"apiVersion": apiVersions[0], "kind": r.Kind.String(),
				"metadata": map[string]string{"name": r.Name, "namespace": r.Namespace}, "spec": json.RawMessage(spec),
			})
			if err != nil {
				t.Fatal(err)
			}
			again, err := Parse("again", doc)
			if err != nil {
				t.Fatalf("%s\n%v", doc, err)
			}
			if !proto.Equal(r.Spec, again[0].Spec) {
				t.Fatalf("changed by a second reading:\n%s", cmp.Diff(r.Spec, again[0].Spec, protocmp.Transform()))
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(everything)))
	for b.Loop() {
		if _, err := Parse("b", []byte(everything)); err != nil {
			b.Fatal(err)
		}
	}
}
