//go:build integration

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

func TestEnvoyAcceptsItsFile(t *testing.T) {
	envoy, err := cache.Envoy().Path("envoy")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	meshctl := filepath.Join(dir, "meshctl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", meshctl, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, format := range []string{"yaml", "json"} {
		text, err := exec.CommandContext(t.Context(), meshctl, "bootstrap", "--for", "envoy", "--app", "web", "-o", format,
			"--egress", "host=cart,port=80", "--inbound", "app=127.0.0.1:8080,listen=0.0.0.0:20881").Output()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "envoy."+format)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-l", "warning", "-c", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s\n%s", format, err, out, text)
		}
	}
}
