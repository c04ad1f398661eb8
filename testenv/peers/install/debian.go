package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// policyFile, where it says "101", keeps packages from starting their daemons.
const policyFile = "/usr/sbin/policy-rc.d"

// need is something that comes with the system.
type need struct {
	pkg     string   // Debian's package
	program string   // is there if this program is, wherever it came from
	probe   []string // or, where program is empty, if this command succeeds
}

// programs are what tests and benchmarks run, apart from the parts in the cache.
func programs() []need {
	return []need{
		{pkg: "haproxy", program: "haproxy"},
		{pkg: "nginx-light", program: "nginx"},
		{pkg: "wrk", program: "wrk"},
		{pkg: "nghttp2-client", program: "h2load"},
		{pkg: "nghttp2-proxy", program: "nghttpx"},
		{pkg: "curl", program: "curl"},
		{pkg: "iproute2", program: "ip"},
		{pkg: "openssl", program: "openssl"},
	}
}

// venv is what Python on Debian lacks to make environments.
func venv() need {
	return need{pkg: "python3-venv", probe: []string{"python3", "-c", "import venv, ensurepip"}}
}

// met reports whether the system has it.
func (n need) met(ctx context.Context) bool {
	if n.program == "" {
		return exec.CommandContext(ctx, n.probe[0], n.probe[1:]...).Run() == nil
	}
	return onSystem(n.program)
}

// installDebian installs the packages of unmet needs. That takes root and Debian;
// elsewhere its error says what is missing.
func installDebian(ctx context.Context, needs []need, out *progress) error {
	var missing []string
	for _, n := range needs {
		if !n.met(ctx) {
			missing = append(missing, n.pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("these Debian packages are missing: %s; install what they hold with this system's package client", names)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("these Debian packages are missing: %s; run: sudo apt-get install --no-install-recommends %s", names, names)
	}
	return aptGet(ctx, out, missing)
}

// onSystem reports whether a program is on the path, or where daemons are.
func onSystem(program string) bool {
	for _, name := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if _, err := exec.LookPath(name); err == nil {
			return true
		}
	}
	return false
}

// aptGet installs packages and keeps their daemons from starting.
func aptGet(ctx context.Context, out *progress, packages []string) (err error) {
	file, err := os.OpenFile(policyFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, os.Remove(policyFile)) }()
		_, writeErr := file.WriteString("#!/bin/sh\nexit 101\n")
		if err := errors.Join(writeErr, file.Close()); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrExist): // where there is a policy, it is the machine's own
		return err
	}
	logFile, err := os.CreateTemp("", "isthmus-apt-*.log")
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()

	start, names := time.Now(), strings.Join(packages, " ")
	done := out.begin("Debian packages: installing " + names)
	run, env := commands(logFile, out), []string{"DEBIAN_FRONTEND=noninteractive"}
	err = run(ctx, "", env, "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "update")
	if err == nil {
		args := append([]string{"-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "install"}, packages...)
		err = run(ctx, "", env, "apt-get", args...)
	}
	done()
	if err != nil {
		return fmt.Errorf("install %s: %w\n%s", names, err, tail(logFile.Name()))
	}
	out.line("Debian packages: ready after %v", time.Since(start).Round(100*time.Millisecond))
	return os.Remove(logFile.Name())
}
