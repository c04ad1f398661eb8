package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/xds/api"
)

func (a *app) serviceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "service", Aliases: []string{"services"}, Short: "Show the services that the registries report", RunE: group}
	cmd.AddCommand(a.serviceList(), a.serviceShow())
	return cmd
}

func (a *app) serviceList() *cobra.Command {
	req := &api.ListServicesRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List services with the number of their endpoints",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := &api.ListServicesResponse{}
			_, err := ask(cmd.Context(), a, "listing services", func(ctx context.Context, c *api.Client) (any, error) {
				for {
					page, err := c.Catalog.ListServices(ctx, req)
					if err != nil {
						return nil, err
					}
					all.Services, all.Total = append(all.Services, page.Services...), page.Total
					if req.PageToken = page.NextPageToken; req.PageToken == "" {
						return nil, nil
					}
				}
			})
			if err != nil {
				return err
			}
			return a.show(all, func(t *screen) {
				t.header("host", "ports", "healthy", "namespace", "sources")
				for _, s := range all.Services {
					t.row(s.Host, portsOf(s), healthCell(s), s.Namespace, strings.Join(s.Sources, ","))
				}
			})
		},
	}
	cmd.Flags().StringVar(&req.Contains, "contains", "", "only hosts with this `text` in them")
	cmd.Flags().StringVarP(&req.Namespace, "namespace", "n", "", "only services of this `namespace`")
	cmd.Flags().StringVar(&req.Source, "source", "", "only services that this `source` reports")
	return cmd
}

func portsOf(s *api.Service) string {
	ports := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		ports[i] = fmt.Sprintf("%d/%s", p.Number, p.Protocol)
	}
	return strings.Join(ports, ",")
}

func healthCell(s *api.Service) cell {
	text := fmt.Sprintf("%d of %d", s.HealthyCount, s.EndpointCount)
	switch {
	case s.HealthyCount == 0:
		return red(text)
	case s.HealthyCount < s.EndpointCount:
		return yellow(text)
	}
	return green(text)
}

func (a *app) serviceShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show HOST",
		Short:   "Show a service with its endpoints, and who reports each",
		Example: "  meshctl service show payments\n  meshctl service show payments@zk-main",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := ask(cmd.Context(), a, "asking for the service", func(ctx context.Context, c *api.Client) (*api.Service, error) {
				return c.Catalog.GetService(ctx, &api.GetServiceRequest{Host: args[0]})
			})
			if err != nil {
				return err
			}
			return a.show(s, func(t *screen) {
				t.pair("host", s.Host)
				t.pair("ports", portsOf(s))
				t.pair("sources", strings.Join(s.Sources, ", "))
				t.pair("healthy", healthCell(s))
				t.flush()
				t.header("address", "port", "health", "weight", "sidecar of", "registered", "sources", "labels")
				for _, e := range s.Endpoints {
					health := green(e.Health)
					if e.Health != "healthy" {
						health = red(e.Health)
					}
					t.row(e.Address, e.Port, health, e.Weight, e.Workload, e.Registered, strings.Join(e.Sources, ","), labels(e.Labels))
				}
			})
		},
	}
}

func (a *app) sourceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "source", Aliases: []string{"sources"}, Short: "Show the registries that the server reads", RunE: group}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List registries, how fresh each is and what it holds that cannot be understood",
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := ask(cmd.Context(), a, "listing sources", func(ctx context.Context, c *api.Client) (*api.ListSourcesResponse, error) {
				return c.Catalog.ListSources(ctx, &api.ListSourcesRequest{})
			})
			if err != nil {
				return err
			}
			return a.show(resp, func(t *screen) {
				t.header("source", "kind", "phase", "for", "read", "skipped", "error")
				phases := map[string]func(string) cell{"live": green, "stale": red, "syncing": yellow}
				for _, s := range resp.Sources {
					colour := phases[s.Phase]
					if colour == nil {
						colour = plain
					}
					t.row(s.Name, s.Kind, colour(s.Phase), age(s.Since), age(s.Read), s.SkippedCount, s.Error)
				}
				t.flush()
				for _, s := range resp.Sources {
					for _, skip := range s.Skipped {
						t.row(yellow(fmt.Sprintf("%s: skipped %s: %s", s.Name, skip.Where, skip.Reason)))
					}
				}
			})
		},
	})
	return cmd
}
