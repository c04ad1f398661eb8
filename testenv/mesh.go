// Package testenv runs whole meshes for tests: the built meshserver, sidecars
// and meshctl, on loopback, beside the real registries of testenv/peers.
//
// Main builds the programs once a test process and must be called from TestMain.
// Everything that Start and the methods of Mesh start ends with the test. They
// are called from the test's own goroutine; the other methods from any.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// binEnv names the folder of the built programs for the tests of this process.
const binEnv = "ISTHMUS_TEST_BIN"

// Main builds the programs, runs the tests and returns their exit code.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "isthmus-bin-")
	if err != nil {
		fmt.Fprintf(os.Stderr, "testenv: %v\n", err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintf(os.Stderr, "testenv: %v\n", err)
		}
	}()
	const module = "github.com/isthmus-mesh/isthmus"
	cmd := exec.Command("go", "build", "-o", dir+"/", module+"/cmd/meshserver", module+"/cmd/sidecar", module+"/cmd/meshctl", module+"/testenv/echo/cmd/echo")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "testenv: go build: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(binEnv, dir); err != nil {
		fmt.Fprintf(os.Stderr, "testenv: %v\n", err)
		return 1
	}
	return m.Run()
}

// Program is the path of a built program.
func Program(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv(binEnv)
	if dir == "" {
		t.Fatal("the programs are not built: TestMain must call testenv.Main")
	}
	return filepath.Join(dir, name)
}

// Config says what a mesh reads.
type Config struct {
	ZooKeeper *peers.ZooKeeper // read as "zk-main"; nil: none
	Consul    *peers.Consul    // read as "consul-main"; nil: none
	More      string           // further keys of meshserver.yaml
	DataDir   string           // where the server keeps its data; empty: a folder of its own
}

// Mesh is a running MeshServer. Its process may be killed and started again.
type Mesh struct {
	*peers.Process
	XDS, API, Ops string // host:port

	t   testing.TB
	dir string
}

// Start starts a MeshServer and returns once it serves.
func Start(t testing.TB, cfg Config) *Mesh {
	t.Helper()
	m := &Mesh{XDS: freeAddr(t), API: freeAddr(t), Ops: freeAddr(t), t: t, dir: t.TempDir()}
	if cfg.DataDir == "" {
		cfg.DataDir = filepath.Join(m.dir, "data")
	}
	yaml := fmt.Sprintf("dataDir: %s\nxds: {listen: %q}\napi: {listen: %q}\nops: {listen: %q}\n%s\n", cfg.DataDir, m.XDS, m.API, m.Ops, cfg.More)
	if cfg.ZooKeeper != nil || cfg.Consul != nil {
		yaml += "registries:\n"
	}
	if cfg.ZooKeeper != nil {
		yaml += fmt.Sprintf("- {name: zk-main, zookeeper: {servers: [%q], sessionTimeout: 2s}}\n", cfg.ZooKeeper.Addr)
	}
	if c := cfg.Consul; c != nil {
		yaml += fmt.Sprintf("- {name: consul-main, consul: {address: %q}}\n", c.Scheme+"://"+c.Addr)
	}
	m.Process = peers.StartProgram(t, peers.Program{
		Name: "meshserver", Path: Program(t, "meshserver"), Args: []string{"-config", m.write(t, "meshserver.yaml", yaml)}, Ready: "http://" + m.Ops + "/readyz",
	})
	return m
}

func freeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
}

func (m *Mesh) write(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(m.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Ctl runs meshctl and returns what it printed; the test fails if it fails.
func (m *Mesh) Ctl(args ...string) string {
	m.t.Helper()
	out, err := m.Ask(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// Ask is Ctl for a meshctl that may fail; the error has what it said.
func (m *Mesh) Ask(args ...string) (string, error) { return m.AskWith("", args...) }

// Apply puts rules in force.
func (m *Mesh) Apply(yaml string) {
	m.t.Helper()
	if _, err := m.AskWith(yaml, "rule", "apply", "-f", "-", "--author", "test"); err != nil {
		m.t.Fatal(err)
	}
}

// AskWith is Ask with something to read on standard input.
func (m *Mesh) AskWith(stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(m.t.Context(), Program(m.t, "meshctl"), append([]string{"--server", m.API}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", errors.Join(fmt.Errorf("meshctl %s: %w", strings.Join(args, " "), err), errors.New(stderr.String()))
	}
	return string(out), nil
}
