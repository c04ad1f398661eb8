// Command load measures Isthmus beside HAProxy, nginx, Envoy and go-control-plane,
// all started by it and interleaved in one run on this machine.
//
// Usage: go run ./testenv/load [-only NAME,...] [-rounds N]. It prints one JSON
// object a line on standard output, progress and a table on standard error, and
// draws a picture. README.md says what is measured, how, and what came out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/testenv/load/registry"
	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// Names of the benchmarks.
const (
	saturated   = "http1_saturated"
	fixed       = "http1_4000"
	idleRSS     = "idle_rss"
	idleConns   = "idle_conns"
	xdsUpdate   = "xds_1000x200"
	registryLag = "registry_lag"
)

func benches() []string {
	return []string{saturated, fixed, idleRSS, idleConns, xdsUpdate, registryLag}
}

// direct is the load without a proxy.
const direct = "direct"

func subjects() []string {
	all := append([]string{direct}, subject.Names()...)
	return append(append(all, servertest.LinearCache), registry.Names()...)
}

// options are what the command line says.
type options struct {
	only     []string
	subjects []string
	rounds   int
	measure  time.Duration
	picture  string
	profile  string
}

func parse(args []string) (options, error) {
	var o options
	var only, chosen string
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	fs.StringVar(&only, "only", "", "`names` of benchmarks, with commas: "+strings.Join(benches(), ",")+"; empty: all")
	fs.StringVar(&chosen, "subjects", "", "`names` of subjects, with commas: "+strings.Join(subjects(), ",")+"; empty: all")
	fs.IntVar(&o.rounds, "rounds", 5, "how often each subject is measured")
	fs.DurationVar(&o.measure, "measure", 4*time.Second, "measured time of each subject in an HTTP benchmark, in a round")
	fs.StringVar(&o.picture, "picture", "", "`file` for the picture; default testenv/load/bench.svg when everything is measured, else none")
	fs.StringVar(&o.profile, "profile", "", "`file` for a CPU profile of the sidecar under saturation, which costs it some speed")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	var errs []error
	choose := func(flag, text string, all []string) []string {
		if text == "" {
			return all
		}
		names := strings.Split(text, ",")
		for _, name := range names {
			if !slices.Contains(all, name) {
				errs = append(errs, fmt.Errorf("-%s: %q, want of %s", flag, name, strings.Join(all, ",")))
			}
		}
		return names
	}
	o.only, o.subjects = choose("only", only, benches()), choose("subjects", chosen, subjects())
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("argument %q is not understood", fs.Arg(0)))
	}
	if o.rounds < 1 {
		errs = append(errs, fmt.Errorf("-rounds: %d, want at least 1", o.rounds))
	}
	if o.measure < time.Second {
		errs = append(errs, fmt.Errorf("-measure: %v, want at least 1s", o.measure))
	}
	if o.picture == "" && only == "" && chosen == "" {
		o.picture = filepath.Join("testenv", "load", "bench.svg")
	}
	return o, errors.Join(errs...)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The process under load of xds_1000x200 is this program too.
	if len(os.Args) == 3 && os.Args[1] == serveXDS {
		exit(servertest.ServeLoad(ctx, os.Args[2], xdsShape(), os.Stdin, os.Stdout))
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "load: %v\n", err)
		os.Exit(2)
	}
	exit(run(ctx, o, os.Stdout))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "load: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures and writes the figures to out.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	// Children inherit the limit only when it was set here.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files.Cur, Max: files.Max}); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	dir, err := os.MkdirTemp("", "isthmus-load-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintf(os.Stderr, "load: logs and configurations are kept in %s\n", dir)
		}
	}()
	// nginx's worker is another user and makes its way through this folder.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	m, err := newMachine()
	if err != nil {
		return err
	}
	s, err := newSuite(ctx, o, dir)
	if err != nil {
		return err
	}
	err = errors.Join(s.rounds(ctx), s.close())
	s.results.order(benches(), subjects())
	s.results.writeTable(os.Stderr)
	if err != nil {
		return err // what was measured before is shown, but is no result
	}
	if err := s.sayMachine(m); err != nil {
		return err
	}
	if o.picture != "" {
		if err := s.results.writePicture(o.picture); err != nil {
			return err
		}
		s.say("picture: %s", o.picture)
	}
	return s.results.writeJSON(out)
}

// build compiles the product into bin.
func build(ctx context.Context, bin string) error {
	root, err := cache.Repository()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "./cmd/meshserver", "./cmd/sidecar")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}
