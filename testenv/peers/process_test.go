package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell returns a process that serves once it has printed READY.
func shell(t testing.TB, script string) *Process {
	return &Process{
		t: t, name: "sh", path: "/bin/sh", args: []string{"-c", script}, within: 10 * time.Second,
		ready: func(_ context.Context, out *output) error {
			if !out.hasLine(readyLine) {
				return errors.New("not ready")
			}
			return nil
		},
	}
}

func TestProcessEndsWithTheTestAndTakesItsChildrenAlong(t *testing.T) {
	var pid int
	t.Run("inner", func(t *testing.T) {
		p := shell(t, "sleep 1000 & echo READY; wait")
		p.launch()
		pid = p.Pid()
	})
	if !GroupGone(pid) {
		t.Errorf("the process group %d outlived its test", pid)
	}
}

func TestProcessStopsAndStartsAgain(t *testing.T) {
	p := shell(t, `trap 'echo bye; exit 0' TERM; echo READY; while :; do sleep 0.01; done`)
	p.launch()
	first := p.Pid()
	p.Stop()
	if !GroupGone(first) || !strings.Contains(p.Output(), "bye") {
		t.Errorf("stopped: gone %v, printed %q; want it gone after saying bye", GroupGone(first), p.Output())
	}
	p.Start()
	if p.Pid() == first || GroupGone(p.Pid()) {
		t.Errorf("pid is %d after %d, want a new process that runs", p.Pid(), first)
	}
	p.Kill()
	p.Kill() // of nothing
	if !GroupGone(p.Pid()) {
		t.Error("killed, but still there")
	}
}

func TestProcessReportsWhyItDoesNotServe(t *testing.T) {
	tests := []struct{ name, script, want string }{
		{name: "it ends at once", script: "exit 7", want: "ended before it served: exit status 7"},
		{name: "it never gets ready", script: "exec sleep 1000", want: "does not serve after"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := shell(t, tt.script)
			p.within = 300 * time.Millisecond
			r, err := p.spawn()
			if err != nil {
				t.Fatal(err)
			}
			defer p.Kill()
			ctx, cancel := context.WithTimeout(t.Context(), p.within)
			defer cancel()
			if err := p.await(ctx, r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestProcessIsNotStartedTwice(t *testing.T) {
	p := shell(t, "echo READY; exec sleep 1000")
	p.launch()
	if _, err := p.spawn(); err == nil {
		t.Error("a second start succeeded, want an error")
	}
}

func TestFreePortsDiffer(t *testing.T) {
	seen := make(map[int]bool)
	for range 50 {
		port := FreePort(t)
		if seen[port] {
			t.Errorf("port %d was given twice", port)
		}
		seen[port] = true
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Errorf("port %d is not free: %v", port, err)
			continue
		}
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOutputKeepsItsEnd(t *testing.T) {
	out := new(output)
	for i := range 100_000 {
		if _, err := fmt.Fprintf(out, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(out.String()); got > 2*outputBytes {
		t.Errorf("kept %d bytes, want at most %d", got, 2*outputBytes)
	}
	if !out.hasLine("line 99999") || out.hasLine("line 9999") {
		t.Error("want the last line kept, and whole lines compared")
	}
}
