package subject

import (
	"context"
	"fmt"
	"os/exec"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

// program finds a server of the distribution; many keep it out of users' PATH.
func program(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		return "", fmt.Errorf("%w: run make peers", err)
	}
	return path, nil
}

func startHAProxy(_ context.Context, cfg Config, v *values) (*Process, error) {
	path, err := program("haproxy")
	if err != nil {
		return nil, err
	}
	if _, err := v.write("haproxy.map"); err != nil {
		return nil, err
	}
	file, err := v.write("haproxy.cfg")
	if err != nil {
		return nil, err
	}
	v.AccessLog = "" // to the sink
	return Start(Command{Name: HAProxy, Path: path, Args: []string{"-db", "-f", file}, Dir: cfg.Dir, Core: cfg.Core})
}

func startNginx(_ context.Context, cfg Config, v *values) (*Process, error) {
	path, err := program("nginx")
	if err != nil {
		return nil, err
	}
	file, err := v.write("nginx.conf")
	if err != nil {
		return nil, err
	}
	return Start(Command{Name: Nginx, Path: path, Args: []string{"-p", cfg.Dir, "-c", file, "-e", "stderr"}, Dir: cfg.Dir, Core: cfg.Core})
}

func startEnvoy(_ context.Context, cfg Config, v *values) (*Process, error) {
	path, err := cache.Envoy().Path("envoy")
	if err != nil {
		return nil, err
	}
	file, err := v.write("envoy.yaml")
	if err != nil {
		return nil, err
	}
	args := []string{"-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"}
	return Start(Command{Name: Envoy, Path: path, Args: args, Dir: cfg.Dir, Core: cfg.Core})
}
