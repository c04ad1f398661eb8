package process

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

type sample struct {
	Name    string            `yaml:"name"`
	Port    uint16            `yaml:"port"`
	Ratio   float64           `yaml:"ratio"`
	On      bool              `yaml:"on"`
	Listen  netip.AddrPort    `yaml:"listen"`
	Wait    time.Duration     `yaml:"wait"`
	Labels  map[string]string `yaml:"labels"`
	Sources []sampleSource    `yaml:"sources"`
	Deep    *sampleSource     `yaml:"deep"`
	Shared  `yaml:",inline"`
}

type sampleSource struct {
	Kind    string   `yaml:"kind"`
	Servers []string `yaml:"servers"`
}

// Shared is inlined.
type Shared struct {
	DataDir string `yaml:"dataDir"`
}

func defaults() sample {
	return sample{Name: "x", Port: 1, Wait: time.Second, Labels: map[string]string{"a": "1"}, Shared: Shared{DataDir: "d"}}
}

func TestDecodeConfig(t *testing.T) {
	got := defaults()
	err := DecodeConfig("f.yaml", []byte(`
name: demo
on: true
ratio: 0.5
listen: 127.0.0.1:80
wait: 250ms
port: ~
labels: {b: "2"}
dataDir: /var
sources:
- kind: zookeeper
  servers: &s [a, b]
- kind: consul
  servers: *s
deep: {kind: eureka}
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := sample{
		Name: "demo", Port: 1, Ratio: 0.5, On: true, Listen: netip.MustParseAddrPort("127.0.0.1:80"), Wait: 250 * time.Millisecond,
		Labels:  map[string]string{"a": "1", "b": "2"},
		Sources: []sampleSource{{"zookeeper", []string{"a", "b"}}, {"consul", []string{"a", "b"}}},
		Deep:    &sampleSource{Kind: "eureka"}, Shared: Shared{DataDir: "/var"},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	for _, empty := range []string{"", "# only a comment\n", "---\n", "null\n"} {
		got := defaults()
		if err := DecodeConfig("f", []byte(empty), &got); err != nil || got.Name != "x" {
			t.Errorf("%q: %v, name %q; want the defaults", empty, err, got.Name)
		}
	}
}

func TestDecodeConfigReportsEveryMistakeWithItsPlace(t *testing.T) {
	got := defaults()
	err := DecodeConfig("f.yaml", []byte(`anme: demo
port: 70000
on: maybe
listen: 127.0.0.1
wait: 5
sources:
- kind: [a]
  server: b
- x
name: a
name: b
shared: 1
labels: 7
deep: {}
frobnicate: 1
`), &got)
	if err == nil {
		t.Fatal("no error")
	}
	want := []string{
		`f.yaml:1:1: anme: unknown key; did you mean "name"?`,
		`f.yaml:2:7: port: "70000", want a whole number from 0 to 65535`,
		`f.yaml:3:5: on: "maybe", want true or false`,
		`f.yaml:4:9: listen: not an ip:port`,
		`f.yaml:5:7: wait: "5", want a duration with its unit such as 250ms or 5s`,
		`f.yaml:7:9: sources[0].kind: a list, want text`,
		`f.yaml:8:3: sources[0].server: unknown key; did you mean "servers"?`,
		`f.yaml:9:3: sources[1]: "x", want keys and values`,
		`f.yaml:11:1: name: given twice, first on line 10`,
		`f.yaml:12:1: shared: unknown key; known are dataDir, deep, labels, listen, name, on, port, ratio, sources, wait`,
		`f.yaml:13:9: labels: "7", want keys and values`,
		`f.yaml:15:1: frobnicate: unknown key; known are dataDir, deep, labels, listen, name, on, port, ratio, sources, wait`,
	}
	if d := cmp.Diff(want, strings.Split(err.Error(), "\n")); d != "" {
		t.Errorf("mistakes (-want +got):\n%s", d)
	}
}

func TestDecodeConfigRefusesWhatIsNoConfiguration(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + ",*" + p + "]\n"
	}
	type lists struct {
		A []string `yaml:"a"`
		J any      `yaml:"j"`
	}
	for _, tt := range []struct{ name, text, want string }{
		{"broken YAML", "a: [1\nb: 2", "f.yaml:"},
		{"two documents", "name: a\n---\nname: b\n", "f.yaml:2:1: a second document"},
		{"a list", "- a\n", "f.yaml:1:1: a list, want keys and values"},
		{"text", "hello\n", `f.yaml:1:1: "hello", want keys and values`},
	} {
		got := defaults()
		if err := DecodeConfig("f.yaml", []byte(tt.text), &got); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := DecodeConfig("f.yaml", []byte(bomb), &lists{}); err == nil {
		t.Error("an alias bomb was accepted")
	}
	path := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(path, make([]byte, maxConfigBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	got := defaults()
	if err := LoadConfig(path, &got); err == nil || !strings.Contains(err.Error(), "over 1048576 bytes") {
		t.Errorf("a file too big: %v", err)
	}
	if err := LoadConfig(path+".none", &got); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}
}

func FuzzDecodeConfig(f *testing.F) {
	for _, seed := range []string{
		"name: demo\nport: 1\n", "sources:\n- kind: a\n  servers: [a, b]\n", "labels: {a: b}\n", "wait: 5s\nlisten: 127.0.0.1:1\n",
		"a: &a [*a]", "deep: {kind: ~}", "<<: {name: a}\n", "? [a]\n: b\n", "name: !!binary aGk=\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first, second := defaults(), defaults()
		err1, err2 := DecodeConfig("f", data, &first), DecodeConfig("f", data, &second)
		if (err1 == nil) != (err2 == nil) || err1 != nil && err1.Error() != err2.Error() {
			t.Fatalf("two decodings differ: %v, %v", err1, err2)
		}
		if err1 == nil && !cmp.Equal(first, second, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateNaNs()) {
			t.Fatalf("two decodings differ: %+v, %+v", first, second)
		}
	})
}

func BenchmarkDecodeConfig(b *testing.B) {
	text := []byte("name: demo\nport: 1\nwait: 5s\nlisten: 127.0.0.1:1\nsources:\n- kind: a\n  servers: [a, b]\n")
	b.ReportAllocs()
	for b.Loop() {
		got := defaults()
		if err := DecodeConfig("f", text, &got); err != nil {
			b.Fatal(err)
		}
	}
}
