package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sample() *results {
	var r results
	r.add(idleConns, "isthmus", 10000, figure{"bytes_per_conn", 5000})
	for _, v := range []float64{12, 10, 11} {
		r.add(saturated, "haproxy", 0, figure{"cpu_us_per_req", 2 * v})
		r.add(saturated, "isthmus", 0, figure{"rps", 90000.4}, figure{"cpu_us_per_req", v})
	}
	r.order(benches(), subjects())
	return &r
}

func TestJSONHasMediansAndBounds(t *testing.T) {
	var out strings.Builder
	if err := sample().writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := []string{
		`{"bench":"http1_saturated","subject":"isthmus","rounds":3,"rps":90000,"rps_min":90000,"rps_max":90000,"cpu_us_per_req":11,"cpu_us_per_req_min":10,"cpu_us_per_req_max":12}`,
		`{"bench":"http1_saturated","subject":"haproxy","rounds":3,"cpu_us_per_req":22,"cpu_us_per_req_min":20,"cpu_us_per_req_max":24}`,
		`{"bench":"idle_conns","subject":"isthmus","connections":10000,"rounds":1,"bytes_per_conn":5000,"bytes_per_conn_min":5000,"bytes_per_conn_max":5000}`,
	}
	if len(lines) != len(want) {
		t.Fatalf("got %d lines, want %d:\n%s", len(lines), len(want), out.String())
	}
	for i := range want {
		if lines[i] != want[i] || !json.Valid([]byte(lines[i])) {
			t.Errorf("line %d:\ngot  %s\nwant %s", i, lines[i], want[i])
		}
	}
}

func TestTableSaysWhatBecameOfTheTargets(t *testing.T) {
	var out strings.Builder
	sample().writeTable(&out)
	for _, want := range []string{
		"| isthmus | 90000 (90000 to 90000) | 11 (10 to 12) |", "| haproxy | - | 22 (20 to 24) |", "idle_conns, 10000 connections",
		"- http1_saturated: cpu_us_per_req, isthmus / haproxy = 0.5, at most 0.9: met",
		"- idle_conns 10000: bytes_per_conn of isthmus = 5000, at most 4096: MISSED",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "envoy") {
		t.Errorf("a target is judged that was not measured:\n%s", out.String())
	}
}

func TestPictureShowsEverySubject(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "bench.svg")
	if err := sample().writePicture(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg ", ">haproxy<", ">isthmus<", ">11<", ">22<", "Bytes an idle connection", "</svg>"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the picture lacks %q", want)
		}
	}
}

func TestNumbersKeepFourDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.00012345: "0.0001235", 1.23456: "1.235", 123456.7: "123457", 12345: "12345", 99.999: "100"} {
		if got := text(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestMistakesOnTheCommandLineAreAllReported(t *testing.T) {
	_, err := parse([]string{"-only", "http1_saturated,nothing", "-subjects", "caddy", "-rounds", "0", "-measure", "1ms", "rest"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`-only: "nothing"`, `-subjects: "caddy"`, "-rounds: 0", "-measure: 1ms", `argument "rest"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported by: %v", want, err)
		}
	}
	o, err := parse([]string{"-only", "idle_rss"})
	if err != nil || o.picture != "" || o.rounds != 5 {
		t.Errorf("got %+v, %v", o, err)
	}
	if o, err = parse(nil); err != nil || o.picture == "" || len(o.only) != len(benches()) {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestOthersUseOfTheMachineIsAShare(t *testing.T) {
	m, err := newMachine()
	if err != nil {
		t.Fatal(err)
	}
	if share, err := m.others(); err != nil || share < 0 {
		t.Errorf("got %v, %v", share, err)
	}
}
