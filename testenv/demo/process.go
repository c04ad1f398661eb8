package main

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
	"slices"
	"syscall"
	"time"
)

// child is one program of the demo. Its output goes to a file of its own.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// stage starts children and ends every one of them.
type stage struct {
	dir      string // logs, configurations and data of this run
	bin      string // built programs
	children []*child
}

// start runs bin/program. The child dies with the demo, whatever ends it.
func (s *stage) start(name, program string, args ...string) (*child, error) {
	logFile := filepath.Join(s.dir, name+".log")
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, cmd: cmd, log: logFile, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is seen by who waits for it to serve
		close(c.done)
	}()
	s.children = append(s.children, c)
	return c, nil
}

// kill ends c at once, as a crash would.
func (c *child) kill() error {
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", c.name, err)
	}
	<-c.done
	return nil
}

// stop ends c in an orderly way, by force after ten seconds.
func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.name, err)
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(fmt.Errorf("stop %s: still running after 10 s, see %s", c.name, c.log), c.kill())
	}
}

// stopAll ends what still runs, the last started first.
func (s *stage) stopAll() error {
	var errs []error
	for _, c := range slices.Backward(s.children) {
		if !c.ended() {
			errs = append(errs, c.stop())
		}
	}
	return errors.Join(errs...)
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// waitServing polls url until it answers 200. It fails as soon as c ends.
func (c *child) waitServing(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var last string
	for {
		status, body, err := get(ctx, url)
		switch {
		case err != nil:
			last = err.Error()
		case status == http.StatusOK:
			return nil
		default:
			last = fmt.Sprintf("status %d: %.200s", status, body)
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s ended before it was ready: %s", c.name, tail(c.log))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready at %s: %s; its output: %s", c.name, url, last, tail(c.log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, url string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return resp.StatusCode, string(text), err
}

// tail is the end of a log file, for an error message.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-600):])
}

// port returns the wanted loopback port when it is free, else another free one.
func port(wanted int) (int, error) {
	for _, p := range []int{wanted, 0} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	return 0, errors.New("no free port on 127.0.0.1")
}
