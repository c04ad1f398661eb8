package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tailLines is how many of a failed command's last lines are shown.
const tailLines = 20

// install makes a part unless it is there. It holds the part's lock meanwhile,
// works in a folder of its own and renames that when it is complete.
func install(ctx context.Context, r recipe, out *progress) error {
	dir, err := r.part.Dir()
	if err != nil {
		return err
	}
	if installed, err := r.part.Installed(); installed || err != nil {
		return err
	}
	root, key := filepath.Dir(dir), filepath.Base(dir)
	for _, name := range []string{"locks", "logs", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	unlock, err := lock(ctx, filepath.Join(root, "locks", key), func() {
		out.line("%s: another run installs it; waiting", key)
	})
	if err != nil {
		return err
	}
	defer unlock()
	if installed, err := r.part.Installed(); installed || err != nil {
		return err // the other run did it
	}

	scratch := filepath.Join(root, "tmp", key)
	if err := os.RemoveAll(scratch); err != nil { // of a run that was killed
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }() // the next run removes what stays
	result := filepath.Join(scratch, "result")
	if err := os.MkdirAll(result, 0o755); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(root, "logs", key+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()

	start := time.Now()
	done := out.begin(fmt.Sprintf("%s: installing (first time: %s)", key, r.cost))
	err = r.build(ctx, commands(logFile, out), result, scratch)
	done()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%w\n%s\nthe whole output is in %s; run it again to go on", err, tail(logFile.Name()), logFile.Name())
	}
	if err := os.Rename(result, dir); err != nil {
		return err
	}
	out.line("%s: ready after %v", key, time.Since(start).Round(100*time.Millisecond))
	return nil
}

// commands returns a runner that writes to logFile and shows the last line.
func commands(logFile *os.File, out *progress) runner {
	return func(ctx context.Context, dir string, env []string, name string, args ...string) error {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		cmd.Stdout = &lineWriter{file: logFile, show: out.detail}
		cmd.Stderr = cmd.Stdout
		// The whole group ends with us, children of the package client too.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		if _, err := fmt.Fprintf(logFile, "+ %s\n", cmd); err != nil {
			return err
		}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		return nil
	}
}

// lock takes an exclusive lock on the file path and returns its release. It
// calls waiting once if somebody else holds it. A process that dies lets go.
func lock(ctx context.Context, path string, waiting func()) (func(), error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		if first {
			waiting()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), file.Close())
		}
	}
}

// tail returns the last lines of the file path, indented.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return "  " + strings.Join(lines, "\n  ")
}
