package subject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// AnyCore leaves a program where the kernel puts it.
const AnyCore = -1

// Command says which program to start.
type Command struct {
	Name string // of the log file, in Dir
	Path string
	Args []string
	Dir  string // for its output
	// Core is the processor that the program and all its threads stay on, or
	// AnyCore.
	Core int
	// Output is a file for its standard output; empty: the log file.
	Output string
}

// Process is a program that runs until Stop. It dies with this one, however that
// ends.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how; read after done
}

// Bounds of a child's life.
const (
	startTime = 60 * time.Second
	stopTime  = 15 * time.Second
	pollTime  = 20 * time.Millisecond
)

// Start starts a program.
func Start(c Command) (*Process, error) {
	p := &Process{name: c.Name, log: filepath.Join(c.Dir, c.Name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if c.Output != "" {
		out, err := os.OpenFile(c.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", c.Name, err)
		}
		defer out.Close()
		p.cmd.Stdout = out
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := onCore(c.Core, p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// onCore calls do on a thread that is bound to the core: children inherit that, so
// no thread of theirs ever runs elsewhere.
func onCore(core int, do func() error) error {
	if core == AnyCore {
		return do()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, bound unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	bound.Set(core)
	if err := unix.SchedSetaffinity(0, &bound); err != nil {
		return fmt.Errorf("bind to core %d: %w", core, err)
	}
	return errors.Join(do(), unix.SchedSetaffinity(0, &before))
}

// Await polls check until it is nil; it fails as soon as the program ends.
func (p *Process) Await(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it served: %w: %s", p.name, p.err, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve: %w; its output: %s", p.name, err, tail(p.log))
		case <-time.After(pollTime):
		}
	}
}

// Stop ends the program and what it started, by force after a while.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended too early: %w: %s", p.name, p.err, tail(p.log))
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	var late error
	select {
	case <-p.done:
	case <-time.After(stopTime):
		late = fmt.Errorf("stop %s: still there after %v", p.name, stopTime)
	}
	// The whole group is ours: it was made for this child.
	err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) { // as it should be: nobody is left
		err = nil
	}
	<-p.done
	return errors.Join(late, err)
}

// Pids returns the program and its descendants in its process group.
func (p *Process) Pids() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if group, err := unix.Getpgid(pid); err == nil && group == p.cmd.Process.Pid {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("%s: %w", p.name, os.ErrProcessDone)
	}
	return pids, nil
}

// tail is the end of a log file, for an error message.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-1000):])
}

// Get asks for a URL and wants status 200.
func Get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return get(ctx, url)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %.200s", url, resp.StatusCode, text)
	}
	return text, err
}

// Port returns a free port from below the range that the kernel gives to
// outgoing connections: ten thousand callers must not be able to take it.
func Port() (int, error) {
	for port := 21000 + os.Getpid()%500*20; port < 32000; port++ {
		// An abstract socket is a lock among all that ask here; it lasts as long as
		// this process.
		if lock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return 0, err
		} else if err := unix.Bind(lock, &unix.SockaddrUnix{Name: fmt.Sprintf("@isthmus-test-port-%d", port)}); err != nil {
			_ = unix.Close(lock)
			continue
		}
		probe, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, probe.Close()
	}
	return 0, errors.New("no free port")
}
