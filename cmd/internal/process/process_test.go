package process

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lockedBuffer may be written by the logger while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func demo(run func(context.Context, *Shell, sample) error) Daemon[sample] {
	return Daemon[sample]{
		Name: "demod", About: "a daemon of the tests", Defaults: defaults,
		Flags: func(fs *flag.FlagSet, c *sample) { fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "where `files` go") },
		Check: func(c sample) error {
			if c.Port == 13 {
				return errors.Join(errors.New("port: 13 is unlucky"), errors.New("port: think again"))
			}
			return nil
		},
		Run: run,
	}
}

func TestMainRunsWithFlagsOverFileOverDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("name: fromfile\ndataDir: fromfile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got sample
	var shell *Shell
	var out, errOut lockedBuffer
	code := demo(func(_ context.Context, sh *Shell, c sample) error {
		got, shell = c, sh
		return nil
	}).Main(t.Context(), []string{"-config", file, "-data-dir", "fromflag", "-log-level", "debug"}, Streams{&out, &errOut})
	if code != ExitOK {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	if got.Name != "fromfile" || got.DataDir != "fromflag" || got.Port != 1 {
		t.Errorf("got %+v", got)
	}
	if shell.Level.Level() != slog.LevelDebug || shell.ConfigFile != file || shell.Registry == nil || shell.Version == "" {
		t.Errorf("shell %+v", shell)
	}
	if log := errOut.String(); !strings.HasPrefix(log, `{"time":`) || !strings.Contains(log, `"msg":"starting"`) {
		t.Errorf("log %q, want JSON lines off a terminal", log)
	}
}

func TestMainUsesTheDaemonsOwnParser(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("anything"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := demo(func(_ context.Context, _ *Shell, c sample) error { return errors.New(c.Name) })
	d.Parse = func(name string, data []byte) (sample, error) {
		return sample{Name: filepath.Base(name) + " " + string(data)}, nil
	}
	var errOut lockedBuffer
	if code := d.Main(t.Context(), []string{"-config", file}, Streams{io.Discard, &errOut}); code != ExitFailure || !strings.HasSuffix(errOut.String(), "demod: c.yaml anything\n") {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
}

func TestMainExitsWithOneSentence(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("prot: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unlucky := filepath.Join(t.TempDir(), "unlucky.yaml")
	if err := os.WriteFile(unlucky, []byte("port: 13\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		args   []string
		run    error
		code   int
		stderr string
		stdout string
	}{
		{"unknown flag", []string{"-frob"}, nil, ExitMisuse, "demod: flag provided but not defined: -frob (demod -help lists the flags)\n", ""},
		{"argument", []string{"start"}, nil, ExitMisuse, "demod: argument \"start\" is not understood: everything is given by flags (demod -help lists them)\n", ""},
		{"wrong level", []string{"-log-level", "loud"}, nil, ExitMisuse, "demod: -log-level: level \"loud\", want debug, info, warn or error\n", ""},
		{"missing file", []string{"-config", "/no/such"}, nil, ExitMisuse, "demod: configuration: open /no/such: no such file or directory\n", ""},
		{"bad file", []string{"-config", bad}, nil, ExitMisuse, "demod: " + bad + ":1:1: prot: unknown key; did you mean \"port\"?\n", ""},
		{"bad values", []string{"-config", unlucky}, nil, ExitMisuse, "demod: " + unlucky + ": port: 13 is unlucky\nport: think again\n", ""},
		{"version", []string{"-version"}, nil, ExitOK, "", "demod devel"},
		{"help", []string{"-help"}, nil, ExitOK, "", "demod: a daemon of the tests\n\nUsage: demod [flags]\n"},
		{"failure", nil, errors.New("it broke"), ExitFailure, "demod: it broke\n", ""},
		{"misuse found late", nil, fmt.Errorf("late: %w", Misuse(errors.New("wrong"))), ExitMisuse, "demod: late: wrong\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut lockedBuffer
			d := demo(func(context.Context, *Shell, sample) error { return tt.run })
			code := d.Main(t.Context(), tt.args, Streams{&out, &errOut})
			if code != tt.code || !strings.HasSuffix(errOut.String(), tt.stderr) || !strings.HasPrefix(out.String(), tt.stdout) {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, out.String(), errOut.String(), tt.code, tt.stdout, tt.stderr)
			}
		})
	}
}

func TestSignalEndsRunInOrder(t *testing.T) {
	var errOut lockedBuffer
	d := demo(func(ctx context.Context, _ *Shell, _ sample) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	if code := d.Main(t.Context(), nil, Streams{io.Discard, &errOut}); code != ExitOK || !strings.Contains(errOut.String(), `"msg":"stopped"`) {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
}

func TestListenSaysHowToMend(t *testing.T) {
	l, err := ListenLoopback(t.Context(), "xDS", "127.0.0.1:0", "-xds-listen")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct{ addr, want string }{
		{l.Addr().String(), "listen for xDS on " + l.Addr().String() + ": the port is in use by another process; stop it or set -xds-listen to another address"},
		{"192.0.2.1:1", "this machine has no such address"},
		{"127.0.0.1:99999", "check -xds-listen"},
	} {
		if _, err := Listen(t.Context(), "xDS", tt.addr, "-xds-listen"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.addr, err, tt.want)
		}
	}
	for addr, ok := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "127.8.0.1:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "example.org:1": false, "127.0.0.1": false,
	} {
		if err := CheckLoopback(addr); (err == nil) != ok {
			t.Errorf("%s: %v, want loopback %v", addr, err, ok)
		}
	}
	_, err = ListenLoopback(t.Context(), "xDS", "0.0.0.0:0", "-xds-listen")
	if _, misuse := errors.AsType[*MisuseError](err); !misuse || !strings.Contains(err.Error(), "authenticates nobody; set -xds-listen to 127.0.0.1") {
		t.Errorf("got %v", err)
	}
}

func TestRunPartsStopsTogether(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	boom := errors.New("boom")
	for _, tt := range []struct {
		name string
		last func(context.Context) error
		want string
	}{
		{"one fails", func(context.Context) error { return boom }, "b: boom"},
		{"one returns early", func(context.Context) error { return nil }, "b stopped by itself"},
	} {
		err := RunParts(t.Context(), Part{"a", wait}, Part{"b", tt.last})
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	interrupted := func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("load: %w", ctx.Err()) }
	if err := RunParts(ctx, Part{"a", wait}, Part{"b", interrupted}); err != nil {
		t.Errorf("stopped from outside: %v, want nil", err)
	}
	if err := RunParts(ctx, Part{"a", wait}, Part{"b", func(context.Context) error { return boom }}); err == nil || err.Error() != "b: boom" {
		t.Errorf("failed while stopping: %v, want b: boom", err)
	}
}

func TestOps(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conditions := []Condition{{Name: "store"}}
	level := new(slog.LevelVar)
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "demo_total", Help: "Demo."}))
	ops, err := NewOps(OpsConfig{
		Listener: l, Registry: registry, Log: slog.New(slog.DiscardHandler), Level: level,
		Ready: func() []Condition { return conditions },
		Debug: map[string]http.Handler{"demo": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "debugged") })},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ops.Run(ctx) }()
	call := func(method, path string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range header {
			k, v, _ := strings.Cut(h, "=")
			if k == "Host" {
				req.Host = v
			}
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	expect := func(what string, code, want int, body, part string) {
		t.Helper()
		if code != want || !strings.Contains(body, part) {
			t.Errorf("%s: %d %q, want %d with %q", what, code, body, want, part)
		}
	}
	check := func(method, path string, want int, part string, header ...string) {
		t.Helper()
		code, body := call(method, path, header...)
		expect(method+" "+path, code, want, body, part)
	}
	check("GET", "/metrics", 200, "demo_total 0")
	check("GET", "/livez", 200, "live")
	check("GET", "/debug/demo", 200, "debugged")
	check("GET", "/debug/pprof/", 200, "goroutine")
	check("GET", "/debug/pprof/cmdline", 200, "process.test")
	check("GET", "/readyz", 200, "ready\nstore: ok")
	conditions = []Condition{{Name: "store"}, {Name: "zk", Degraded: true, Detail: "stale for 5 s"}}
	check("GET", "/readyz", 200, "degraded\nstore: ok\nzk: degraded stale for 5 s")
	conditions = append(conditions, Condition{Name: "api", NotReady: true, Detail: "loading"})
	check("GET", "/readyz", 503, "not ready\n")
	check("GET", "/readyz", 503, `"notReady":true`, "Accept=application/json")
	check("GET", "/debug/log-level", 200, "info\n")
	check("PUT", "/debug/log-level?level=debug", 200, "debug\n")
	check("PUT", "/debug/log-level?level=loud", 400, "want debug, info, warn or error")
	for _, offset := range []string{"error%2B999", "debug-4", "info%2B1"} {
		check("PUT", "/debug/log-level?level="+offset, 400, "want debug, info, warn or error")
	}
	for _, method := range []string{"PUT", "POST"} {
		check(method, "/debug/log-level?level=error", 403, "other sites", "Origin=http://evil.example")
		check(method, "/debug/log-level?level=error", 403, "other sites", "Origin=null")
		check(method, "/debug/log-level?level=error", 403, "other sites", "Origin=http://evil.example", "Sec-Fetch-Site=cross-site")
		check(method, "/debug/log-level?level=error", 403, "other sites", "Sec-Fetch-Site=same-site")
	}
	check("GET", "/debug/pprof/cmdline", 403, "other sites", "Sec-Fetch-Site=cross-site")
	check("GET", "/livez", 200, "live", "Sec-Fetch-Site=cross-site")
	check("PUT", "/debug/log-level?level=DEBUG", 200, "debug", "Origin=http://"+l.Addr().String(), "Sec-Fetch-Site=same-origin")
	check("DELETE", "/debug/log-level", 405, "want GET or PUT")
	if level.Level() != slog.LevelDebug {
		t.Errorf("level %v, want debug", level.Level())
	}
	check("GET", "/metrics", 403, "localhost", "Host=evil.example")
	check("GET", "/metrics", 200, "", "Host=localhost:15014")
	cancel()
	http.DefaultClient.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := NewOps(OpsConfig{}); err == nil || strings.Count(err.Error(), "is missing") != 3 {
		t.Errorf("empty configuration: %v, want three mistakes", err)
	}
}

func TestCgroupLimits(t *testing.T) {
	files := func(pairs ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
		}
		return m
	}
	const v2mount = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	const v1mounts = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 23 0:28 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
	for _, tt := range []struct {
		name   string
		root   fstest.MapFS
		memory int64
		cores  float64
	}{
		{"no proc", files(), 0, 0},
		{"v2 without limits", files("proc/self/cgroup", "0::/\n", "proc/self/mountinfo", v2mount, "sys/fs/cgroup/memory.max", "max\n", "sys/fs/cgroup/cpu.max", "max 100000\n"), 0, 0},
		{"v2, the tightest of the ancestors", files("proc/self/cgroup", "0::/a/b\n", "proc/self/mountinfo", v2mount,
			"sys/fs/cgroup/a/b/memory.max", "400\n", "sys/fs/cgroup/a/memory.max", "300\n",
			"sys/fs/cgroup/a/b/cpu.max", "50000 100000\n", "sys/fs/cgroup/a/cpu.max", "200000 100000\n"), 300, 0.5},
		{"v1, one controller seen from inside", files("proc/self/cgroup", "4:memory:/a\n5:cpu,cpuacct:/docker/x/y\n", "proc/self/mountinfo", v1mounts,
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n",
			"sys/fs/cgroup/cpu/y/cpu.cfs_quota_us", "150000\n", "sys/fs/cgroup/cpu/y/cpu.cfs_period_us", "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"), 1000, 1.5},
		{"v1 without limits", files("proc/self/cgroup", "4:memory:/\n", "proc/self/mountinfo", v1mounts,
			"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"), 0, 0},
		{"nonsense", files("proc/self/cgroup", "x\n0::/\n", "proc/self/mountinfo", "junk\n"+v2mount, "sys/fs/cgroup/memory.max", "-5\n", "sys/fs/cgroup/cpu.max", "a b c\n"), 0, 0},
	} {
		memory, cores, err := cgroupLimits(tt.root)
		if err != nil || memory != tt.memory || math.Abs(cores-tt.cores) > 1e-9 {
			t.Errorf("%s: %d bytes, %v cores, %v; want %d, %v", tt.name, memory, cores, err, tt.memory, tt.cores)
		}
	}
	given := func(string) (string, bool) { return "1", true }
	set, err := ApplyLimits(files("proc/self/cgroup", "0::/\n", "proc/self/mountinfo", v2mount, "sys/fs/cgroup/memory.max", "1000\n"), given)
	if d := cmp.Diff(Limits{}, set); d != "" || err != nil {
		t.Errorf("%v; the environment must win (-want +got):\n%s", err, d)
	}
	if _, _, err := cgroupLimits(files("proc/self/cgroup", "0::/\n")); err == nil {
		t.Error("missing mountinfo: no error")
	}
}
