// Package peers starts the real programs that tests speak to: ZooKeeper,
// Consul, Envoy, and Java applications on Dubbo and Spring Cloud.
//
// Each Start function returns once the program serves. The program listens on
// 127.0.0.1, on ports of its own, keeps its data in a folder of the test, and
// ends with the test, or with the test's process however that dies. If the test
// fails, what the program printed is in the test's log. A program that is not
// installed fails the test: `make peers` installs all of them.
//
// Tests that call this package carry the build tag integration. Start functions
// and the methods named Start must be called from the test's own goroutine; all
// other methods from any.
package peers

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// pollPeriod is how often a starting program is asked whether it serves.
	pollPeriod = 20 * time.Millisecond
	// stopTime bounds the wait for a program that was asked to stop. A Dubbo
	// application takes up to 12 s.
	stopTime = 20 * time.Second
)

// Process is a real program that runs as long as its test. It can be ended and
// started again with the same ports and data.
type Process struct {
	t      testing.TB
	name   string
	path   string
	args   []string
	ready  func(ctx context.Context, out *output) error // nil once the program serves
	within time.Duration                                // bounds the start

	mu      sync.Mutex
	current *run // nil before the first start
}

// run is one life of the program.
type run struct {
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed after the program has ended
	err  error         // how it ended; read it after done
}

// launch starts p for the first time and sees to its end. Folders of the test
// that the program uses must exist already, so that they outlive it.
func (p *Process) launch() {
	p.t.Helper()
	p.t.Cleanup(func() {
		p.Kill()
		if p.t.Failed() {
			p.t.Logf("%s printed:\n%s", p.name, p.Output())
		}
	})
	p.Start()
}

// Start starts a program that was stopped or killed, with the same command line,
// and returns once it serves. The test fails if that does not come to pass.
func (p *Process) Start() {
	p.t.Helper()
	r, err := p.spawn()
	if err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), p.within)
	defer cancel()
	if err := p.await(ctx, r); err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
}

// spawn starts the program and the goroutine that waits for its end.
func (p *Process) spawn() (*run, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.current; r != nil && !r.ended() {
		return nil, errors.New("it runs already")
	}
	r := &run{cmd: exec.Command(p.path, p.args...), out: new(output), done: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r.cmd.WaitDelay = time.Second
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(r.done)
		r.err = r.cmd.Wait()
	}()
	p.current = r
	return r, nil
}

// await polls until the program serves.
func (p *Process) await(ctx context.Context, r *run) error {
	ticks := time.NewTicker(pollPeriod)
	defer ticks.Stop()
	for {
		err := p.ready(ctx, r.out)
		if err == nil {
			return nil
		}
		select {
		case <-ticks.C:
		case <-r.done:
			return fmt.Errorf("it ended before it served: %w", r.err)
		case <-ctx.Done():
			return fmt.Errorf("it does not serve after %v: %w", p.within, err)
		}
	}
}

func (r *run) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// signal sends sig to the program's process group, unless it has ended.
func (r *run) signal(sig syscall.Signal) error {
	if r.ended() {
		return nil
	}
	err := syscall.Kill(-r.cmd.Process.Pid, sig)
	if errors.Is(err, syscall.ESRCH) { // it ended just now
		return nil
	}
	return err
}

func (p *Process) life() *run {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// Stop asks the program to end, as an operator would, and returns when it has.
// One that does not end in 20 s is killed, and the test marked as failed.
func (p *Process) Stop() {
	p.t.Helper()
	r := p.life()
	if r == nil {
		return
	}
	if err := r.signal(syscall.SIGTERM); err != nil {
		p.t.Errorf("stop %s: %v", p.name, err)
	}
	select {
	case <-r.done:
	case <-time.After(stopTime):
		p.t.Errorf("stop %s: it still runs after %v", p.name, stopTime)
		p.Kill()
	}
}

// Kill ends the program and its children with SIGKILL and returns when it is
// gone. Killing what does not run is no mistake.
func (p *Process) Kill() {
	p.t.Helper()
	r := p.life()
	if r == nil {
		return
	}
	if err := r.signal(syscall.SIGKILL); err != nil {
		p.t.Errorf("kill %s: %v", p.name, err)
		return
	}
	<-r.done
}

// Pid returns the process id of the program's last start, which is also its
// process group.
func (p *Process) Pid() int {
	if r := p.life(); r != nil {
		return r.cmd.Process.Pid
	}
	return 0
}

// Output returns the end of what the program printed since its last start.
func (p *Process) Output() string {
	if r := p.life(); r != nil {
		return r.out.String()
	}
	return ""
}
