// Command demo shows a whole mesh on loopback: a MeshServer, three echo
// applications of two versions with a sidecar each, and a client whose sidecar
// carries an open loop of requests through everything that happens to them.
//
// Usage: go run ./testenv/demo [-once]. With -once it exits after the proof:
// 0 when every step held, 1 when one fell short. It builds what it runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	once := flag.Bool("once", os.Getenv("ONCE") == "1", "exit after the proof")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *once); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, once bool) (err error) {
	s := newScreen(os.Stdout)
	dir, err := os.MkdirTemp("", "isthmus-demo-")
	if err != nil {
		return fmt.Errorf("make a folder for the run: %w", err)
	}
	bin := filepath.Join(dir, "bin")
	if err := s.step("build the programs", func() error { return build(ctx, bin) }); err != nil {
		return err
	}
	st := &stage{dir: dir, bin: bin}
	defer func() {
		err = errors.Join(err, st.stopAll())
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintf(os.Stderr, "demo: logs and configurations are kept in %s\n", dir)
		}
	}()
	d, err := newDemo(st, s)
	if err != nil {
		return err
	}
	if err := s.step("start MeshServer, three echoes with their sidecars, and the client's sidecar", func() error { return d.start(ctx) }); err != nil {
		return err
	}
	verdict := d.prove(ctx)
	if verdict != nil || once || ctx.Err() != nil {
		return verdict
	}
	d.printCommands()
	<-ctx.Done()
	s.printf("\nstopping\n")
	return nil
}

// build compiles the product and the echo into bin.
func build(ctx context.Context, bin string) error {
	if err := os.MkdirAll(bin, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "./cmd/meshserver", "./cmd/sidecar", "./cmd/meshctl", "./testenv/echo/cmd/echo")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}
