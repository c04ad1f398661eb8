package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func (a *app) workloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "workload",
		Aliases: []string{"workloads"},
		Short:   "Show workloads, and register them in the built-in registry",
		RunE:    group,
	}
	cmd.AddCommand(a.workloadList(), a.workloadRegister(), a.workloadLeave())
	return cmd
}

func (a *app) workloadList() *cobra.Command {
	req := &api.ListWorkloadsRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the workloads of all sources",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := &api.ListWorkloadsResponse{}
			_, err := ask(cmd.Context(), a, "listing workloads", func(ctx context.Context, c *api.Client) (any, error) {
				for {
					page, err := c.Workloads.List(ctx, req)
					if err != nil {
						return nil, err
					}
					all.Workloads = append(all.Workloads, page.Workloads...)
					if req.PageToken = page.NextPageToken; req.PageToken == "" {
						return nil, nil
					}
				}
			})
			if err != nil {
				return err
			}
			return a.show(all, func(t *screen) {
				t.header("workload", "namespace", "app", "address", "health", "ports", "labels")
				for _, w := range all.Workloads {
					ports := make([]string, len(w.Inbound))
					for i, in := range w.Inbound {
						ports[i] = in.App
						if in.Listen != "" {
							ports[i] = in.Listen + ">" + in.App
						}
						if in.Service != "" {
							ports[i] += "=" + in.Service
						}
					}
					health := green(w.Health)
					if w.Health != "healthy" {
						health = red(w.Health)
					}
					t.row(w.Name, w.Namespace, w.App, w.Address, health, strings.Join(ports, ","), labels(w.Labels))
				}
			})
		},
	}
	cmd.Flags().StringVarP(&req.Namespace, "namespace", "n", "", "only workloads of this `namespace`")
	return cmd
}

// workloadFlags describe a workload on the command line.
type workloadFlags struct {
	name, namespace, app, address string
	labels                        map[string]string
	inbound                       []string
	weight                        uint32
}

func (w *workloadFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.name, "name", "", "its name (default: made of app, address and first port)")
	f.StringVarP(&w.namespace, "namespace", "n", "default", "its `namespace`")
	f.StringVar(&w.app, "app", "", "the application's name")
	f.StringVar(&w.address, "address", "127.0.0.1", "the `IP` address that others reach it by")
	f.StringToStringVarP(&w.labels, "label", "l", nil, "labels, `key=value`; may be repeated")
	f.StringArrayVar(&w.inbound, "inbound", nil, "a `port`: app=127.0.0.1:8080,listen=0.0.0.0:20881,protocol=http,service=cart,service-port=80; may be repeated")
	f.Uint32Var(&w.weight, "weight", 0, "weight beside the others; 0 means 100")
}

// ports reads the --inbound flags and reports every mistake in them.
func (w *workloadFlags) ports() ([]model.Inbound, error) {
	var all []model.Inbound
	var wrong []string
	for _, text := range w.inbound {
		in := model.Inbound{Protocol: model.HTTP}
		bad := func(format string, args ...any) {
			wrong = append(wrong, fmt.Sprintf("--inbound %s: %s", text, fmt.Sprintf(format, args...)))
		}
		for part := range strings.SplitSeq(text, ",") {
			key, value, ok := strings.Cut(part, "=")
			var err error
			switch {
			case !ok:
				bad("%q, want key=value", part)
			case key == "app":
				in.App, err = netip.ParseAddrPort(value)
			case key == "listen":
				in.Listen, err = netip.ParseAddrPort(value)
			case key == "protocol":
				in.Protocol, err = model.ParseProtocol(value)
			case key == "service":
				in.Service = value
				_, err = model.ParseHost(value)
			case key == "service-port":
				var n uint64
				n, err = strconv.ParseUint(value, 10, 16)
				in.ServicePort = uint16(n)
			default:
				bad("no key %q, want app, listen, protocol, service or service-port", key)
			}
			if err != nil {
				bad("%s: %v", key, err)
			}
		}
		if !in.App.IsValid() {
			bad("app is missing: where the application listens, as ip:port")
		}
		all = append(all, in)
	}
	if len(wrong) > 0 {
		return nil, misuse("%s", strings.Join(wrong, "\n"))
	}
	return all, nil
}

func (w *workloadFlags) message() (*api.Workload, error) {
	ports, err := w.ports()
	if err != nil {
		return nil, err
	}
	if w.app == "" && w.name == "" {
		return nil, misuse("--app or --name is missing: what is it called?")
	}
	out := &api.Workload{Name: w.name, Namespace: w.namespace, App: w.app, Address: w.address, Labels: w.labels, Weight: w.weight}
	if out.Name == "" {
		out.Name = w.app + "-" + w.address
		if len(ports) > 0 {
			out.Name += fmt.Sprintf("-%d", ports[0].App.Port())
		}
	}
	for _, in := range ports {
		port := &api.Inbound{App: in.App.String(), Protocol: in.Protocol.String(), Service: in.Service, ServicePort: uint32(in.ServicePort)}
		if in.Listen.IsValid() {
			port.Listen = in.Listen.String()
		}
		out.Inbound = append(out.Inbound, port)
	}
	return out, nil
}

func (a *app) workloadRegister() *cobra.Command {
	var w workloadFlags
	var ttl time.Duration
	var keep bool
	cmd := &cobra.Command{
		Use:   "register",
		Short: "Register a workload, for as long as its lease is renewed",
		Long: `Register a workload in the built-in registry. It disappears when the lease ends;
--keep renews the lease until meshctl is interrupted, and then leaves.`,
		Example: `  meshctl workload register --app cart --address 10.0.0.7 \
    --inbound app=10.0.0.7:8080,protocol=http,service=cart --label version=v1 --keep`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			msg, err := w.message()
			if err != nil {
				return err
			}
			req := &api.RegisterRequest{Workload: msg, Ttl: durationpb.New(ttl)}
			resp, err := ask(cmd.Context(), a, "registering", func(ctx context.Context, c *api.Client) (*api.RegisterResponse, error) {
				return c.Workloads.Register(ctx, req)
			})
			if err != nil {
				return err
			}
			if err := a.show(resp, func(t *screen) {
				t.pair("workload", msg.Namespace+"/"+msg.Name)
				t.pair("lease", resp.LeaseId)
				t.pair("ends in", resp.Ttl.AsDuration())
			}); err != nil || !keep {
				return err
			}
			return a.keep(cmd.Context(), req, resp)
		},
	}
	w.flags(cmd)
	cmd.Flags().DurationVar(&ttl, "ttl", 30*time.Second, "`time` after which it disappears unless renewed, 1s to 1h")
	cmd.Flags().BoolVar(&keep, "keep", false, "renew until interrupted, then leave")
	return cmd
}

// leaveTime bounds the farewell after an interrupt.
const leaveTime = 5 * time.Second

// keep renews a lease until ctx ends, and registers anew when the server forgot it.
func (a *app) keep(ctx context.Context, req *api.RegisterRequest, lease *api.RegisterResponse) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	failing := false
	for {
		select {
		case <-ctx.Done():
			bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
			defer cancel()
			_, err := c.Workloads.Leave(bound, &api.LeaveRequest{LeaseId: lease.LeaseId})
			if connect.CodeOf(err) == connect.CodeNotFound {
				return nil // it ended by itself
			}
			return err
		case <-time.After(lease.Ttl.AsDuration() / 3):
		}
		_, err := c.Workloads.Renew(ctx, &api.RenewRequest{LeaseId: lease.LeaseId})
		if connect.CodeOf(err) == connect.CodeNotFound {
			// An interrupt must not tear this call: the server may have taken the
			// workload in, and who does not hear its lease cannot take it out.
			bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
			var again *api.RegisterResponse
			if again, err = c.Workloads.Register(bound, req); err == nil {
				lease = again
			}
			cancel()
		}
		switch {
		case ctx.Err() != nil:
		case err != nil && !failing:
			failing = true
			fmt.Fprintf(a.Err, "meshctl: the lease is not renewed, trying on: %s\n", explain(err, a.server))
		case err == nil && failing:
			failing = false
			fmt.Fprintln(a.Err, "meshctl: the lease is renewed again")
		}
	}
}

func (a *app) workloadLeave() *cobra.Command {
	return &cobra.Command{
		Use:   "leave LEASE",
		Short: "Take a workload out at once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := ask(cmd.Context(), a, "leaving", func(ctx context.Context, c *api.Client) (*api.LeaveResponse, error) {
				return c.Workloads.Leave(ctx, &api.LeaveRequest{LeaseId: args[0]})
			})
			if err != nil {
				return err
			}
			return a.showValue(map[string]string{"lease": args[0], "state": "ended"}, func(t *screen) { t.row("lease " + args[0] + " ended") })
		},
	}
}
