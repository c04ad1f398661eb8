package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Exit codes of a daemon.
const (
	ExitOK      = 0
	ExitFailure = 1
	ExitMisuse  = 2
)

// Daemon describes one daemon with configuration C, a struct with yaml tags.
type Daemon[C any] struct {
	Name  string // "meshserver"
	About string // one sentence for -help
	// Defaults returns a configuration that works with no file at all.
	Defaults func() C
	// Parse reads the file's text; nil means DecodeConfig over Defaults. It is
	// for configurations whose reader brings its own decoder.
	Parse func(file string, data []byte) (C, error)
	// Flags registers the daemon's own flags, writing into c; nil means none.
	// A flag that the user gives wins over the file. It is called twice with
	// different c, so it must not do anything else.
	Flags func(fs *flag.FlagSet, c *C)
	// Check reports every mistake in a complete configuration; nil means none.
	Check func(c C) error
	// Run works until ctx ends and then returns nil, or fails.
	Run func(ctx context.Context, sh *Shell, c C) error
}

// Streams are where a daemon speaks. Both are required.
type Streams struct{ Out, Err io.Writer }

// Shell is what Main hands to Run.
type Shell struct {
	Name     string
	Version  string
	Log      *slog.Logger
	Level    *slog.LevelVar // set it to change the level at run time
	Registry *prometheus.Registry
	Streams  Streams
	// ConfigFile is the path of the file that was read; empty without one.
	ConfigFile string
}

// MisuseError is a mistake of whoever started the program: Main exits with
// ExitMisuse instead of ExitFailure.
type MisuseError struct{ Err error }

func (e *MisuseError) Error() string { return e.Err.Error() }

// Unwrap returns the mistake.
func (e *MisuseError) Unwrap() error { return e.Err }

// Misuse marks err as the caller's mistake.
func Misuse(err error) error { return &MisuseError{err} }

// Main runs the daemon until ctx ends or SIGINT or SIGTERM arrives (a second
// signal kills it at once) and returns the exit code. args are without the
// program's name.
func (d Daemon[C]) Main(ctx context.Context, args []string, std Streams) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	// After the first signal the default action is back: the second one kills.
	context.AfterFunc(ctx, stop)

	err := d.main(ctx, args, std)
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, flag.ErrHelp):
		return ExitOK
	}
	fmt.Fprintf(std.Err, "%s: %v\n", d.Name, err)
	if _, ok := errors.AsType[*MisuseError](err); ok {
		return ExitMisuse
	}
	return ExitFailure
}

// commonFlags are the flags of every daemon.
type commonFlags struct {
	config   string
	logLevel string
	version  bool
}

func (d Daemon[C]) flagSet(common *commonFlags, c *C) *flag.FlagSet {
	fs := flag.NewFlagSet(d.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // Main prints the one sentence
	fs.StringVar(&common.config, "config", "", "configuration `file` (YAML); without it the defaults hold")
	fs.StringVar(&common.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&common.version, "version", false, "print the version and exit")
	if d.Flags != nil {
		d.Flags(fs, c)
	}
	return fs
}

func (d Daemon[C]) main(ctx context.Context, args []string, std Streams) error {
	var common commonFlags
	// The first pass finds -config; the second puts flags over the file.
	scratch := d.Defaults()
	fs := d.flagSet(&common, &scratch)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			d.usage(std.Out, fs)
			return err
		}
		return Misuse(fmt.Errorf("%w (%s -help lists the flags)", err, d.Name))
	}
	if fs.NArg() > 0 {
		return Misuse(fmt.Errorf("argument %q is not understood: everything is given by flags (%s -help lists them)", fs.Arg(0), d.Name))
	}
	if common.version {
		fmt.Fprintf(std.Out, "%s %s\n", d.Name, Version())
		return nil
	}
	level := new(slog.LevelVar)
	if err := SetLevel(level, common.logLevel); err != nil {
		return Misuse(fmt.Errorf("-log-level: %w", err))
	}
	cfg, err := d.configure(common.config)
	if err != nil {
		return Misuse(err)
	}
	if err := d.flagSet(&common, &cfg).Parse(args); err != nil {
		return Misuse(err)
	}
	if d.Check != nil {
		if err := d.Check(cfg); err != nil {
			if common.config != "" {
				err = fmt.Errorf("%s: %w", common.config, err)
			}
			return Misuse(err)
		}
	}
	log := NewLogger(std.Err, level)
	limits, err := ApplyLimits(os.DirFS("/"), os.LookupEnv)
	if err != nil {
		// A container whose limits cannot be read still runs, with the runtime's own.
		log.Warn("container limits not read", "error", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	sh := &Shell{
		Name: d.Name, Version: Version(), Log: log, Level: level,
		Registry: registry, Streams: std, ConfigFile: common.config,
	}
	log.Info("starting", "version", sh.Version, "config", common.config, "memory_limit_bytes", limits.MemoryBytes, "max_procs", limits.Procs)
	if err := d.Run(ctx, sh, cfg); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// configure reads the file, if there is one, over the defaults.
func (d Daemon[C]) configure(path string) (C, error) {
	cfg := d.Defaults()
	switch {
	case path == "":
		return cfg, nil
	case d.Parse == nil:
		err := LoadConfig(path, &cfg)
		return cfg, err
	}
	data, err := readConfig(path)
	if err != nil {
		return cfg, err
	}
	return d.Parse(path, data)
}

func (d Daemon[C]) usage(w io.Writer, fs *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n\nUsage: %s [flags]\n\n", strings.TrimSpace(d.Name+": "+d.About), d.Name)
	fs.SetOutput(w)
	fs.PrintDefaults()
}
