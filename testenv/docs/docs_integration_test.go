//go:build integration

package docs_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
	"github.com/isthmus-mesh/isthmus/testenv/peers/certificate"
)

// page says what the examples of one page need and give.
type page struct {
	// around starts what the page takes for granted.
	around func(t *testing.T)
	// ready has a command for each of those that go on in the background; it
	// succeeds when that one serves.
	ready map[string]string
	// prints are what the page's commands must have printed.
	prints []string
}

var pages = map[string]page{
	"README.md": {
		around: func(t *testing.T) {
			zk := peers.StartZooKeeper(t)
			forward(t, "127.0.0.1:2181", zk.Addr)
			// Registered in ZooKeeper by the application itself, at 8080.
			app := peers.StartSpring(t, peers.SpringConfig{Name: "greeting-provider", ID: "spring", ZooKeeper: zk.Addr, Args: []string{
				"--spring.cloud.zookeeper.discovery.instance-port=8080",
			}})
			forward(t, "127.0.0.1:8080", app.Addr)
			consul := peers.StartConsul(t, peers.ConsulConfig{})
			forward(t, "127.0.0.1:8500", consul.Addr)
			run(t, "curl", "-sSf", "-X", "PUT", "http://"+consul.Addr+"/v1/agent/service/register", "-d",
				fmt.Sprintf(`{"Name": "greeting-provider", "Address": "127.0.0.1", "Port": %s, "Meta": {"version": "v1"}}`, greeting(t)))
		},
		ready: map[string]string{
			"bin/meshserver -config meshserver.yaml &": "curl http://127.0.0.1:15014/readyz",
			"bin/sidecar -config sidecar.yaml &":       "curl http://127.0.0.1:15021/ready",
			"bin/sidecar -config provider.yaml &":      "curl http://127.0.0.1:15200/ready && bin/meshctl service show greeting-provider | grep -q greeting-1",
			"envoy -c envoy.yaml &":                    "curl http://127.0.0.1:15100/ready",
		},
		prints: []string{
			"zk-main", "consul-main", "hello mesh from ", "2 rules, no mistake", "virtualservice/default/greeting\tcreated",
			"reason:\t10 % to v2", "virtualservice/default/greeting\tunchanged", `"server_uri"`,
		},
	},
	"docs/registries.md": {
		around: func(t *testing.T) {},
		ready: map[string]string{
			"consul agent -dev &":                  "curl http://127.0.0.1:8500/v1/status/leader | grep -q :",
			"meshserver -config meshserver.yaml &": "curl http://127.0.0.1:15014/readyz && meshctl service show echo",
			"meshctl workload register --app cart --address 127.0.0.1 --inbound app=127.0.0.1:9080,protocol=http,service=cart --keep &": "meshctl service show cart",
		},
		prints: []string{"consul-main\tconsul\tlive", "127.0.0.1:8080", "version=v1", "tag=blue", "127.0.0.1:9080", "builtin"},
	},
	"docs/rules.md": {},
}

// replaced are paths of the examples that no test may write to.
var replaced = []string{"/etc/isthmus"}

// inert are the languages of blocks that are shown, not run.
var inert = map[string]bool{"": true, "hcl": true}

// example is one fenced block of a page.
type example struct {
	page string
	line int
	lang string
	text string
}

func (e example) String() string { return fmt.Sprintf("%s:%d", e.page, e.line) }

// examples reads the fenced blocks of a page.
func examples(t *testing.T, root, name string) []example {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	var all []example
	var open *example
	for i, line := range strings.SplitAfter(string(text), "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			open = &example{page: name, line: i + 1, lang: fence}
		case isFence:
			all, open = append(all, *open), nil
		case open != nil:
			open.text += line
		}
	}
	if open != nil {
		t.Fatalf("%v: the block has no end", open)
	}
	return all
}

// TestExamples runs every page.
func TestExamples(t *testing.T) {
	root, err := cache.Repository()
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"README.md"}
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		names = append(names, "docs/"+filepath.Base(d))
	}
	for _, name := range names {
		t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) {
			p, known := pages[name]
			if !known {
				t.Fatalf("%s has no entry in the table of this test", name)
			}
			p.run(t, root, examples(t, root, name))
		})
	}
}

// run runs the examples of a page.
func (p page) run(t *testing.T, root string, all []example) {
	dir := t.TempDir()
	var commands, script strings.Builder
	for _, e := range all {
		if e.lang == "sh" {
			commands.WriteString(e.text)
		}
	}
	for _, e := range all {
		switch {
		case inert[e.lang]:
		case e.lang == "yaml":
			fmt.Fprintf(&script, "\n: %v\n", e)
			script.WriteString(file(t, e, commands.String()))
		case e.lang == "sh":
			fmt.Fprintf(&script, "\n: %v\n", e)
			script.WriteString(p.session(t, e))
		default:
			t.Errorf("%v: a block in %q is neither run nor known as inert", e, e.lang)
		}
	}
	if t.Failed() || script.Len() == 0 {
		return
	}
	p.around(t)
	out := bash(t, root, dir, script.String())
	for _, want := range p.prints {
		if !strings.Contains(out, want) {
			t.Errorf("the page printed no %q", want)
		}
	}
	if t.Failed() {
		t.Logf("it printed:\n%s", out)
	}
}

var fileName = regexp.MustCompile(`^# ([a-z]+\.yaml)\n`)

// file returns the command that writes a yaml example to its file. A MeshServer
// must start with meshserver.yaml; any other is there for the page's commands.
func file(t *testing.T, e example, commands string) string {
	t.Helper()
	m := fileName.FindStringSubmatch(e.text)
	switch {
	case m == nil:
		t.Errorf("%v: a yaml example begins with a comment that names its file: # name.yaml", e)
		return ""
	case m[1] == "meshserver.yaml":
		startsWith(t, e.text)
	case !strings.Contains(commands, m[1]):
		t.Errorf("%v: no command of the page uses %s, so nothing shows that it is right", e, m[1])
	}
	return fmt.Sprintf("cat >%s <<'END-OF-EXAMPLE'\n%sEND-OF-EXAMPLE\n", m[1], e.text)
}

// startsWith fails the test unless a MeshServer starts with the configuration.
func startsWith(t *testing.T, config string) {
	t.Helper()
	dir := t.TempDir()
	certificate.Write(t, dir)
	if err := os.Rename(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "consul-ca.pem")); err != nil {
		t.Fatal(err)
	}
	for _, path := range replaced {
		config = strings.ReplaceAll(config, path, dir)
	}
	for name, text := range map[string]string{"consul.token": "not a real one", "meshserver.yaml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-config", filepath.Join(dir, "meshserver.yaml"), "-data-dir", filepath.Join(dir, "data")}
	var ops string
	for _, flag := range []string{"-xds-listen", "-api-listen", "-ops-listen"} {
		ops = fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
		args = append(args, flag, ops)
	}
	peers.StartProgram(t, peers.Program{Name: "meshserver", Path: testenv.Program(t, "meshserver"), Args: args, Ready: "http://" + ops + "/livez"}).Stop()
}

// session is the text of a sh example, with a wait after each command that goes
// on in the background.
func (p page) session(t *testing.T, e example) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(e.text) {
		b.WriteString(line)
		command := strings.TrimSpace(line)
		if !strings.HasSuffix(command, " &") {
			continue
		}
		check, known := p.ready[command]
		if !known {
			t.Errorf("%v: the table of this test does not say when %q is ready", e, command)
		}
		fmt.Fprintf(&b, "await %q\n", check)
	}
	return b.String()
}

// prologue is what a session finds. make only shows that the target is there:
// the targets are run elsewhere, the demo by `make demo ONCE=1`.
const prologue = `
set -euo pipefail
export USER=reader PATH="$PWD/bin:$PATH"
make() { command make -n -C "$ROOT" "$@" >/dev/null; }
curl() { command curl -sS --fail-with-body --max-time 10 "$@"; }
await() {
  local i
  for i in $(seq 300); do
    if (eval "$1") >await.out 2>&1; then return; fi
    sleep 0.1
  done
  echo "gave up waiting for: $1" >&2
  cat await.out >&2
  return 1
}
leave() {
  local status=$? pid
  set +x
  for pid in $(jobs -p); do kill "$pid" 2>/dev/null || true; done
  for pid in $(jobs -p); do wait "$pid" || true; done
  exit "$status"
}
trap leave EXIT
set -x
`

// bash runs a session and returns what it printed.
func bash(t *testing.T, root, dir, script string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, name := range []string{"meshserver", "sidecar", "meshctl"} {
		programs[name] = testenv.Program(t, name)
	}
	var err error
	if programs["envoy"], err = cache.Envoy().Path("envoy"); err != nil {
		t.Fatal(err)
	}
	if programs["consul"], err = cache.Consul().Path("consul"); err != nil {
		t.Fatal(err)
	}
	for name, path := range programs {
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", prologue+script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "ROOT="+root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the session ends with %v", err)
	}
	return string(out)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// greeting serves /sayHello as the Spring application does, and returns its port.
func greeting(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s from v1", r.FormValue("name"))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// forward makes what listens at to answer at from too, until the test ends.
func forward(t *testing.T, from, to string) {
	t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatalf("the page needs %s: %v", from, err)
	}
	t.Cleanup(func() { _ = l.Close() }) // its connections end with the test's processes
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
}
