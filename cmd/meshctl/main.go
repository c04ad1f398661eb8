// Command meshctl is the operator's hand on the mesh: it applies and inspects
// rules, shows services, sources and proxies, and writes bootstrap files.
//
// It speaks to a MeshServer through xds/api alone; "rule check" and "bootstrap"
// need no server. Run is the program without the process: tests call it with
// their own streams, from any goroutine.
//
// The scripts in testdata/ are its tests and its manual's examples.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Run(ctx, os.Args[1:], World{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv})
	stop()
	os.Exit(code)
}
