package subject

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEveryConfigurationHasTheWholeTable counts hosts and prefixes: the subjects
// must do the same work.
func TestEveryConfigurationHasTheWholeTable(t *testing.T) {
	site := NewSite(50, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1111"), netip.MustParseAddrPort("127.0.0.2:2222")})
	dir := t.TempDir()
	v := &values{Config: Config{Site: site, Dir: dir}, Port: 3333, Admin: 4444, AccessLog: "/log"}
	mesh := &Mesh{MeshConfig: MeshConfig{Site: site}}
	tests := []struct {
		file     string
		data     any
		word     string
		want     int
		endpoint string // appears once for each service
	}{
		{file: "haproxy.map", data: v, word: "/api/v1/orders service-", want: 50},
		{file: "haproxy.cfg", data: v, word: "backend service-", want: 50, endpoint: "127.0.0.2:2222"},
		{file: "nginx.conf", data: v, word: "proxy_pass", want: 200, endpoint: "127.0.0.2:2222"},
		{file: "envoy.yaml", data: v, word: "match: {prefix: /", want: 201, endpoint: "address: 127.0.0.2, port_value: 2222"},
		{file: "rules.yaml", data: mesh, word: "uri: {prefix:", want: 200, endpoint: "address: 127.0.0.2, ports: {http: 2222}"},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			path, err := render(dir, tt.file, tt.data)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(string(text), tt.word); got != tt.want {
				t.Errorf("%q: %d times, want %d", tt.word, got, tt.want)
			}
			if tt.endpoint != "" {
				if got := strings.Count(string(text), tt.endpoint); got != 50 {
					t.Errorf("%q: %d times, want 50", tt.endpoint, got)
				}
			}
		})
	}
}

func TestUsageOfThisProcess(t *testing.T) {
	before, err := usage([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if before.RSS <= 0 || before.Switches <= 0 {
		t.Errorf("got %+v", before)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		now, err := usage([]int{os.Getpid()})
		if err != nil {
			t.Fatal(err)
		}
		if now.Sub(before).CPU > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("10 s of asking have cost no CPU")
		}
	}
}

func TestAProgramStaysOnItsCoreAndEnds(t *testing.T) {
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil {
		t.Fatal(err)
	}
	core := 0
	for !cores.IsSet(core) {
		core++
	}
	dir := t.TempDir()
	p, err := Start(Command{Name: "sleeper", Path: "/bin/sh", Args: []string{"-c", "echo hello; sleep 60 & wait"}, Dir: dir, Core: core})
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	err = p.Await(t.Context(), func(context.Context) error {
		if pids, err = p.Pids(); err == nil && len(pids) < 2 {
			err = errors.New("its child has not started")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		var on unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &on); err != nil || on.Count() != 1 || !on.IsSet(core) {
			t.Errorf("process %d may run on %d cores, %v", pid, on.Count(), err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "sleeper.log")); err != nil || string(text) != "hello\n" {
		t.Errorf("it printed %q, %v", text, err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range pids {
		for !gone(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is still there", pid)
			}
			runtime.Gosched()
		}
	}
}

// gone reports whether a process has ended; whoever adopted it may not have
// asked for its status yet.
func gone(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || strings.Contains(string(stat), ") Z ")
}

func TestAProgramThatEndsAtOnceIsReported(t *testing.T) {
	p, err := Start(Command{Name: "failing", Path: "/bin/sh", Args: []string{"-c", "echo no such thing >&2; exit 3"}, Dir: t.TempDir(), Core: AnyCore})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Await(t.Context(), func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v", err)
	}
	if err := p.Stop(); err == nil {
		t.Error("Stop does not say that it had ended")
	}
}
