package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/xds/api"
)

func (a *app) proxyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "proxy",
		Aliases: []string{"proxies"},
		Short:   "Show proxies and what they made of their configuration",
		Long:    "A proxy is named by its node id, or by a part of it that no other node id has.",
		RunE:    group,
	}
	cmd.AddCommand(a.proxyList(), a.proxyStatus(), a.proxyConfig())
	return cmd
}

// listProxies reads all pages.
func (a *app) listProxies(ctx context.Context, req *api.ListProxiesRequest) (*api.ListProxiesResponse, error) {
	all := &api.ListProxiesResponse{}
	_, err := ask(ctx, a, "listing proxies", func(ctx context.Context, c *api.Client) (any, error) {
		for {
			page, err := c.Proxies.ListProxies(ctx, req)
			if err != nil {
				return nil, err
			}
			all.Proxies, all.Total = append(all.Proxies, page.Proxies...), page.Total
			if req.PageToken = page.NextPageToken; req.PageToken == "" {
				return nil, nil
			}
		}
	})
	return all, err
}

func (a *app) proxyList() *cobra.Command {
	req := &api.ListProxiesRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List connected proxies",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.listProxies(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.show(all, func(t *screen) { proxyTable(t, all) })
		},
	}
	cmd.Flags().StringVar(&req.Contains, "contains", "", "only node ids with this `text` in them")
	cmd.Flags().BoolVar(&req.Unsynced, "unsynced", false, "only proxies that did not take everything")
	return cmd
}

func proxyTable(t *screen, all *api.ListProxiesResponse) {
	t.header("proxy", "connected", "synced", "CDS", "EDS", "LDS", "RDS", "SDS", "agent", "scope")
	for _, p := range all.Proxies {
		synced := green("yes")
		if !p.Synced {
			synced = yellow("no")
		}
		cells := []any{p.Node, age(p.Connected), synced}
		for _, name := range []string{"CDS", "EDS", "LDS", "RDS", "SDS"} {
			cells = append(cells, typeCell(p, name))
		}
		t.row(append(cells, p.UserAgent, p.Scope)...)
	}
}

// typeCell says how many resources of a type a proxy took.
func typeCell(p *api.Proxy, name string) cell {
	i := slices.IndexFunc(p.Types, func(t *api.ProxyType) bool { return t.Type == name })
	if i < 0 {
		return dim("-")
	}
	t := p.Types[i]
	switch {
	case t.Refused > 0:
		return red(fmt.Sprintf("%d refused", t.Refused))
	case t.Waiting > 0:
		return yellow(fmt.Sprintf("%d waiting", t.Waiting))
	}
	return green(fmt.Sprint(t.Held))
}

func (a *app) proxyStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status [PROXY]",
		Short: "Show what proxies acknowledged and refused",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.allStatus(cmd.Context())
			}
			p, err := ask(cmd.Context(), a, "asking for the proxy", func(ctx context.Context, c *api.Client) (*api.Proxy, error) {
				return c.Proxies.GetProxy(ctx, &api.GetProxyRequest{Node: args[0]})
			})
			if err != nil {
				return err
			}
			return a.show(p, func(t *screen) {
				t.pair("proxy", p.Node)
				t.pair("agent", p.UserAgent)
				t.pair("address", p.Address)
				t.pair("scope", p.Scope)
				t.pair("connected", moment(p.Connected)+", "+age(p.Connected))
				protocol := "state of the world"
				if p.Delta {
					protocol = "incremental"
				}
				t.pair("protocol", protocol)
				t.flush()
				t.header("type", "held", "waiting", "refused", "acknowledged", "version")
				for _, ty := range p.Types {
					waiting, refused := plain(fmt.Sprint(ty.Waiting)), plain(fmt.Sprint(ty.Refused))
					if ty.Waiting > 0 {
						waiting = yellow(waiting.text)
					}
					if ty.Refused > 0 {
						refused = red(refused.text)
					}
					t.row(ty.Type, ty.Held, waiting, refused, age(ty.Acked), ty.AckedVersion)
				}
				t.flush()
				for _, ty := range p.Types {
					refusalRows(t, ty.Refusals)
				}
			})
		},
	}
}

// allStatus shows every proxy, and the refusals that still hold.
func (a *app) allStatus(ctx context.Context) error {
	all, err := a.listProxies(ctx, &api.ListProxiesRequest{})
	if err != nil {
		return err
	}
	return a.show(all, func(t *screen) {
		proxyTable(t, all)
		t.flush()
		for _, p := range all.Proxies {
			for _, ty := range p.Types {
				refusalRows(t, ty.Refusals)
			}
		}
		t.row(count(len(all.Proxies), "stream"))
	})
}

func refusalRows(t *screen, refusals []*api.Refusal) {
	for _, f := range refusals {
		by := ""
		if len(f.Rules) > 0 {
			by = ", shaped by " + strings.Join(f.Rules, ", ")
		}
		t.row(red(fmt.Sprintf("%s refuses %s %s%s: %s", f.Node, f.Type, f.Name, by, f.Error)))
	}
}

func (a *app) proxyConfig() *cobra.Command {
	req := &api.GetConfigRequest{}
	cmd := &cobra.Command{
		Use:     "config PROXY",
		Short:   "Show the configuration of a proxy, and what it made of each resource",
		Example: "  meshctl proxy config cart-10.0.0.1 --type RDS -o yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Node = args[0]
			resp, err := ask(cmd.Context(), a, "asking for the configuration", func(ctx context.Context, c *api.Client) (*api.GetConfigResponse, error) {
				return c.Proxies.GetConfig(ctx, req)
			})
			if err != nil {
				return err
			}
			return a.show(resp, func(t *screen) {
				states := map[api.ConfigResource_State]cell{
					api.ConfigResource_REQUESTED: yellow("not sent"), api.ConfigResource_SENT: yellow("sent"),
					api.ConfigResource_ACKED: green("taken"), api.ConfigResource_STALE: yellow("older version"),
					api.ConfigResource_REFUSED: red("refused"), api.ConfigResource_MISSING: dim("does not exist"),
				}
				t.header("type", "name", "state", "version", "rules")
				var refusals []*api.Refusal
				for _, r := range resp.Resources {
					t.row(r.Type, r.Name, states[r.State], r.Version, strings.Join(r.Rules, ","))
					if r.Refusal != nil {
						refusals = append(refusals, r.Refusal)
					}
				}
				t.flush()
				refusalRows(t, refusals)
			})
		},
	}
	cmd.Flags().StringVar(&req.Type, "type", "", "only this `type`: CDS, EDS, LDS, RDS or SDS")
	cmd.Flags().StringVar(&req.Name, "name", "", "only the resource of this `name`")
	return cmd
}

// labels renders a label set, keys ascending.
func labels(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}
