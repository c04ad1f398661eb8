//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// TestEverySubjectIsMeasured runs the program for moments only: what it starts must
// start, and every answer be right. Package servertest has a test of the load on xDS.
func TestEverySubjectIsMeasured(t *testing.T) {
	var out bytes.Buffer
	o := options{only: []string{saturated, fixed, registryLag}, subjects: subjects(), rounds: 1, measure: time.Second}
	if err := run(t.Context(), o, &out); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for dec := json.NewDecoder(&out); dec.More(); {
		var line struct {
			Bench, Subject string
			RPS            float64
			P99MS          float64 `json:"p99_ms"`
		}
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		got[line.Bench+" "+line.Subject] = max(line.RPS, line.P99MS)
	}
	for _, want := range []string{
		saturated + " direct", saturated + " isthmus", saturated + " haproxy", saturated + " nginx", saturated + " envoy",
		fixed + " direct", fixed + " isthmus", fixed + " haproxy", fixed + " nginx", fixed + " envoy",
		registryLag + " zookeeper", registryLag + " consul",
	} {
		if got[want] <= 0 {
			t.Errorf("%s: nothing was measured", want)
		}
	}
}
