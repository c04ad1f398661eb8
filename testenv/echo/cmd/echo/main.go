// Command echo serves package echo: an application that says which instance
// answers and what reached it.
//
//	echo -listen 127.0.0.1:8080 -id a -version v1
//
// It ends on SIGTERM or an interrupt, after the open requests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/isthmus-mesh/isthmus/testenv/echo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// run serves as args say, and prints the address once it listens.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "address to listen on")
	var cfg echo.Config
	flags.StringVar(&cfg.ID, "id", "echo", "name of this instance, in every answer")
	flags.StringVar(&cfg.Version, "version", "v1", "version of the application, in every answer")
	flags.BoolVar(&cfg.TCP, "tcp", false, "return the bytes of each connection instead of speaking HTTP")
	flags.BoolVar(&cfg.Banner, "banner", false, "with -tcp: begin each connection with the line ID VERSION")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	cfg.Listener = listener
	server, err := echo.New(cfg)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	if _, err := fmt.Fprintf(out, "listening on %s\n", listener.Addr()); err != nil {
		return err
	}
	return server.Run(ctx)
}
