package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
	"github.com/isthmus-mesh/isthmus/xds/api"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitMisuse  = 2
)

// World is what the program sees of its process. All fields are required.
type World struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func misuse(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Run runs meshctl and returns its exit code.
func Run(ctx context.Context, args []string, w World) int {
	a := &app{World: w}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(w.Err, "meshctl: %s\n", strings.TrimRight(explain(err, a.server), "\n"))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitMisuse
	}
	return exitFailure
}

// app is one run of the program.
type app struct {
	World
	server  string
	timeout time.Duration
	format  string
	client  *api.Client // made by dial
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "meshctl",
		Short: "Rules, services and proxies of an Isthmus mesh",
		Long: `meshctl applies and inspects the rules of an Isthmus mesh, shows what its registries
and proxies are doing, and writes the files that proxies start from.

Exit codes: 0 done, 1 it failed, 2 the command line is wrong.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          group,
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misuse("%w (%s --help lists the flags)", err, cmd.CommandPath())
	})
	server := api.DefaultServer
	if env := a.Getenv("ISTHMUS_SERVER"); env != "" {
		server = env
	}
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", server, "Mesh API of the server, `host:port` (environment: ISTHMUS_SERVER)")
	f.DurationVar(&a.timeout, "timeout", 30*time.Second, "longest time one call may take")
	f.StringVarP(&a.format, "output", "o", "table", "table, json or yaml")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch a.format {
		case "table", "json", "yaml":
		default:
			return misuse("-o %s, want table, json or yaml", a.format)
		}
		if a.timeout <= 0 {
			return misuse("--timeout %v, want more than 0", a.timeout)
		}
		return nil
	}
	root.AddCommand(a.ruleCommand(), a.serviceCommand(), a.sourceCommand(), a.proxyCommand(),
		a.workloadCommand(), a.bootstrapCommand(), a.statusCommand(), a.versionCommand())
	wrapArgs(root)
	return root
}

// group is the RunE of a command that only has others below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", near[0])
	}
	return misuse("%s has no command %q%s (%s --help lists them)", cmd.CommandPath(), args[0], hint, cmd.CommandPath())
}

// wrapArgs makes a wrong number of arguments a misuse, whatever command it is of.
func wrapArgs(cmd *cobra.Command) {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	check := cmd.Args
	if cmd.HasSubCommands() {
		check = cobra.ArbitraryArgs // group reports them
	} else if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return misuse("%s: %w (usage: %s)", c.CommandPath(), err, c.UseLine())
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// dial returns the client of the server that the flags name.
func (a *app) dial() (*api.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	c, err := api.NewClient(api.ClientConfig{Server: a.server, Timeout: a.timeout, Agent: "meshctl/" + process.Version()})
	if err != nil {
		return nil, misuse("--server: %w", err)
	}
	a.client = c
	return c, nil
}

// ask calls the server and shows progress while it takes long.
func ask[T any](ctx context.Context, a *app, what string, call func(context.Context, *api.Client) (T, error)) (T, error) {
	c, err := a.dial()
	if err != nil {
		var none T
		return none, err
	}
	p := a.progress(what)
	defer p.stop()
	return call(ctx, c)
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the MeshServer is",
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := ask(cmd.Context(), a, "asking for the status", func(ctx context.Context, c *api.Client) (*api.Status, error) {
				return c.Status.Get(ctx, &api.GetStatusRequest{})
			})
			if err != nil {
				return err
			}
			return a.show(st, func(t *screen) {
				t.pair("server", a.server)
				t.pair("version", st.Version)
				t.pair("roles", strings.Join(st.Roles, ", "))
				t.pair("data", st.DataDir)
				t.pair("up for", age(st.Started))
				t.pair("rules at", fmt.Sprintf("revision %d", st.RuleRevision))
				t.pair("proxies", fmt.Sprint(st.Proxies))
				t.pair("services", fmt.Sprint(st.Services))
				for _, c := range st.Conditions {
					word := green("ok")
					if c.NotReady {
						word = red("not ready")
					} else if c.Degraded {
						word = yellow("degraded")
					}
					t.pair(c.Name, word, plain(c.Detail))
				}
			})
		},
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of meshctl, and of the server if it answers",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
			defer cancel()
			server := "does not answer"
			c, err := a.dial()
			if err != nil {
				return err
			}
			if st, err := c.Status.Get(ctx, &api.GetStatusRequest{}); err == nil {
				server = st.Version
			}
			return a.showValue(map[string]string{"meshctl": process.Version(), "server": server}, func(t *screen) {
				t.pair("meshctl", process.Version())
				t.pair("server", server)
			})
		},
	}
}

// explain turns an error into what the user reads: what is wrong, and what mends it.
func explain(err error, server string) string {
	if errors.Is(err, context.Canceled) && !isRemote(err) {
		return "interrupted"
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err.Error()
	}
	if !ce.IsRemote() {
		return unreachable(ce, server)
	}
	message := ce.Message()
	switch ce.Code() {
	case connect.CodeInvalidArgument:
		if problems := api.Problems(err); len(problems) > 0 {
			var b strings.Builder
			fmt.Fprintf(&b, "the server refuses the rules:")
			for _, p := range problems {
				b.WriteString("\n  ")
				if p.Line > 0 {
					fmt.Fprintf(&b, "line %d: ", p.Line)
				}
				b.WriteString(p.Message)
			}
			return b.String()
		}
	case connect.CodeAborted:
		return message + "; read it again and apply your change to what is there now"
	case connect.CodeUnimplemented:
		return message + ": the server is of another release than this meshctl (see meshctl version)"
	case connect.CodeDeadlineExceeded:
		return "the server took too long; try again, or raise --timeout"
	case connect.CodeUnavailable:
		return message + "; try again shortly"
	}
	if message == "" {
		return fmt.Sprintf("the server at %s answers %v", server, ce.Code())
	}
	return message
}

func isRemote(err error) bool {
	ce, ok := errors.AsType[*connect.Error](err)
	return ok && ce.IsRemote()
}

// unreachable explains an error that came about before the server answered.
func unreachable(ce *connect.Error, server string) string {
	const mend = "start a MeshServer, or name another with --server or ISTHMUS_SERVER"
	switch {
	case errors.Is(ce, syscall.ECONNREFUSED):
		return fmt.Sprintf("no MeshServer answers at %s (connection refused): %s", server, mend)
	case ce.Code() == connect.CodeDeadlineExceeded:
		return fmt.Sprintf("the MeshServer at %s does not answer in time: %s, or raise --timeout", server, mend)
	}
	if dns, ok := errors.AsType[*net.DNSError](ce); ok {
		return fmt.Sprintf("no MeshServer at %s (no such host %s): %s", server, dns.Name, mend)
	}
	if ce.Code() == connect.CodeUnavailable {
		return fmt.Sprintf("no MeshServer answers at %s (%s): %s", server, ce.Message(), mend)
	}
	return fmt.Sprintf("what answers at %s is no Mesh API (%v: %s): %s", server, ce.Code(), ce.Message(), mend)
}
