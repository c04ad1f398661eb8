package peers

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

// Envoy is a real Envoy with one worker.
type Envoy struct {
	*Process
	addrFile string // where it writes the address of its admin port
}

// StartEnvoy starts Envoy with the bootstrap file, YAML or JSON, and returns once
// it is live: its first listeners, from the file or from xDS, are open. It waits
// for xDS 15 s, as Envoy does by default. The admin port is a free one, whatever
// the bootstrap says; see Admin.
func StartEnvoy(t testing.TB, bootstrap string, flags ...string) *Envoy {
	t.Helper()
	e := newEnvoy(t, bootstrap, flags)
	e.ready = e.live
	e.launch()
	return e
}

// StartEnvoyEarly is StartEnvoy, but returns as soon as the admin port answers:
// for tests in which the control plane comes later. AwaitLive waits for the rest.
func StartEnvoyEarly(t testing.TB, bootstrap string, flags ...string) *Envoy {
	t.Helper()
	e := newEnvoy(t, bootstrap, flags)
	e.ready = func(ctx context.Context, _ *output) error {
		_, err := e.get(ctx, "/server_info")
		return err
	}
	e.launch()
	return e
}

func newEnvoy(t testing.TB, bootstrap string, flags []string) *Envoy {
	t.Helper()
	path, err := cache.Envoy().Path("envoy")
	if err != nil {
		t.Fatalf("start envoy: %v", err)
	}
	addrFile := filepath.Join(t.TempDir(), "admin")
	admin := `{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}}`
	args := []string{
		"-c", bootstrap, "--config-yaml", admin, "--admin-address-path", addrFile,
		"--concurrency", "1", "--disable-hot-restart", "-l", "warning",
	}
	return &Envoy{addrFile: addrFile, Process: &Process{
		t: t, name: "envoy", path: path, args: append(args, flags...), within: 30 * time.Second,
	}}
}

// Start starts an Envoy that was stopped or killed; its admin port changes.
func (e *Envoy) Start() {
	e.t.Helper()
	if err := os.Remove(e.addrFile); err != nil && !os.IsNotExist(err) {
		e.t.Fatal(err)
	}
	e.Process.Start()
}

// Admin returns the address of the admin port, host:port, since the last start.
func (e *Envoy) Admin() string {
	text, err := os.ReadFile(e.addrFile)
	if err != nil {
		e.t.Errorf("admin address of envoy: %v", err)
	}
	return strings.TrimSpace(string(text))
}

// AwaitLive returns once Envoy is live, and fails the test if that takes 30 s.
// Call it from the test's goroutine.
func (e *Envoy) AwaitLive() {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), e.within)
	defer cancel()
	p := Process{ready: e.live, within: e.within}
	if err := p.await(ctx, e.life()); err != nil {
		e.t.Fatalf("wait for envoy: %v", err)
	}
}

func (e *Envoy) live(ctx context.Context, _ *output) error {
	status, err := e.get(ctx, "/ready")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("/ready answers %d", status)
	}
	return err
}

// get asks the admin port and returns the status.
func (e *Envoy) get(ctx context.Context, path string) (int, error) {
	addr, err := os.ReadFile(e.addrFile)
	if err != nil {
		return 0, err
	}
	_, status, err := httpGet(ctx, http.DefaultClient, "http://"+strings.TrimSpace(string(addr))+path, "")
	return status, err
}
