package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

func (a *app) ruleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rule",
		Aliases: []string{"rules"},
		Short:   "Apply, show, check and roll back rules",
		Long: `A rule is named kind/namespace/name, such as virtualservice/default/cart; kind/name
means the namespace "default". Rules are Istio's VirtualService, DestinationRule,
ServiceEntry and WorkloadEntry.`,
		RunE: group,
	}
	cmd.AddCommand(a.ruleApply(), a.ruleGet(), a.ruleList(), a.ruleDelete(), a.ruleHistory(), a.ruleRollback(), a.ruleCheck())
	return cmd
}

func (a *app) ruleGet() *cobra.Command {
	return &cobra.Command{
		Use:   "get RULE",
		Short: "Show a rule, and on how many proxies it is in force",
		Long:  "Show a rule. -o yaml prints the rule itself, to be changed and applied again.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkKeys(args); err != nil {
				return err
			}
			r, err := ask(cmd.Context(), a, "asking for the rule", func(ctx context.Context, c *api.Client) (*api.Rule, error) {
				return c.Rules.Get(ctx, &api.GetRuleRequest{Rule: args[0]})
			})
			if err != nil {
				return err
			}
			if a.format == "yaml" {
				_, err := fmt.Fprint(a.Out, withNewline(r.Yaml))
				return err
			}
			return a.show(r, func(t *screen) {
				t.pair("rule", keyOf(r))
				t.pair("applied", appliedCell(r.Applied))
				for _, n := range r.Applied.GetRefusedNodes() {
					t.pair("refused by", red(n))
				}
				for _, n := range r.Applied.GetWaitingNodes() {
					t.pair("waiting for", yellow(n))
				}
				if r.Source == "file" {
					t.pair("source", "a file of the server")
				} else {
					t.pair("revision", fmt.Sprintf("%d, %s by %s", r.Revision, moment(r.Time), r.Author))
					t.pair("reason", r.Reason)
				}
				t.flush()
				for _, w := range r.Warnings {
					t.row(warningCell(w, ""))
				}
				t.text("---\n" + withNewline(r.Yaml))
			})
		},
	}
}

func withNewline(s string) string { return strings.TrimRight(s, "\n") + "\n" }

func keyOf(r *api.Rule) string {
	return strings.ToLower(r.Kind) + "/" + r.Namespace + "/" + r.Name
}

// appliedCell says "applied on N of M sidecars".
func appliedCell(p *api.Applied) cell {
	if p.GetPending() {
		return yellow("being put in force")
	}
	text := fmt.Sprintf("on %d of %d", p.GetApplied(), p.GetTotal())
	switch {
	case p.GetRefused() > 0:
		return red(fmt.Sprintf("%s, refused by %d", text, p.Refused))
	case p.GetWaiting() > 0:
		return yellow(text)
	case p.GetTotal() == 0:
		return dim("no proxy uses it")
	}
	return green(text)
}

func (a *app) ruleList() *cobra.Command {
	var namespace, kind string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List rules, with the number of proxies that took each",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := &api.ListRulesResponse{}
			_, err := ask(cmd.Context(), a, "listing rules", func(ctx context.Context, c *api.Client) (any, error) {
				req := &api.ListRulesRequest{Namespace: namespace, Kind: kind}
				for {
					page, err := c.Rules.List(ctx, req)
					if err != nil {
						return nil, err
					}
					all.Rules, all.Revision = append(all.Rules, page.Rules...), page.Revision
					if req.PageToken = page.NextPageToken; req.PageToken == "" {
						return nil, nil
					}
				}
			})
			if err != nil {
				return err
			}
			return a.show(all, func(t *screen) {
				t.header("rule", "applied", "revision", "age", "author", "warnings")
				for _, r := range all.Rules {
					author, revision, since := r.Author, fmt.Sprint(r.Revision), age(r.Time)
					if r.Source == "file" {
						author, revision, since = "(file)", "", ""
					}
					t.row(keyOf(r), appliedCell(r.Applied), revision, since, author, warningCount(r.Warnings))
				}
			})
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only rules of this `namespace`")
	cmd.Flags().StringVar(&kind, "kind", "", "only rules of this `kind`")
	return cmd
}

func warningCount(w []string) cell {
	switch {
	case len(w) == 0:
		return plain("")
	case slices.ContainsFunc(w, func(s string) bool { return strings.HasPrefix(s, "error: ") }):
		return red(fmt.Sprint(len(w)))
	}
	return yellow(fmt.Sprint(len(w)))
}

func (a *app) ruleHistory() *cobra.Command {
	var limit int
	var before uint64
	cmd := &cobra.Command{
		Use:   "history [RULE]",
		Short: "Show who changed a rule, or any rule, when and why",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return misuse("--limit %d, want at least 1", limit)
			}
			if err := checkKeys(args); err != nil {
				return err
			}
			req := &api.HistoryRequest{Before: before}
			if len(args) == 1 {
				req.Rule = args[0]
			}
			all := &api.HistoryResponse{}
			_, err := ask(cmd.Context(), a, "asking for the history", func(ctx context.Context, c *api.Client) (any, error) {
				for {
					req.PageSize = uint32(min(limit-len(all.Rules), 1000))
					page, err := c.Rules.History(ctx, req)
					if err != nil {
						return nil, err
					}
					all.Rules = append(all.Rules, page.Rules...)
					if req.PageToken = page.NextPageToken; req.PageToken == "" || len(all.Rules) >= limit {
						return nil, nil
					}
				}
			})
			if err != nil {
				return err
			}
			return a.show(all, func(t *screen) {
				t.header("revision", "time", "author", "what", "rule", "reason")
				for _, r := range all.Rules {
					what := plain("written")
					if r.Deleted {
						what = yellow("deleted")
					}
					t.row(r.Revision, moment(r.Time), r.Author, what, keyOf(r), r.Reason)
				}
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "most `states` to show")
	cmd.Flags().Uint64Var(&before, "before", 0, "only what is older than this `revision`")
	return cmd
}

func (a *app) ruleCheck() *cobra.Command {
	var files []string
	var against string
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Find mistakes in rules, without a server",
		Long: `Find mistakes in rules. It needs no server; --against server also reads the rules
and services that are there, so that it knows whether a host and a subset exist.
Warnings do not make it fail.`,
		Example: `  meshctl rule check canary.yaml
  meshctl rule check -f rules/ --against server`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.readRules(append(files, args...))
			if err != nil {
				return err
			}
			result := &api.CheckResponse{}
			if against == "" {
				result = checkAlone(all)
			} else {
				if against != "server" {
					a.server = against
				}
				body, err := text(all)
				if err != nil {
					return err
				}
				result, err = ask(cmd.Context(), a, "checking", func(ctx context.Context, c *api.Client) (*api.CheckResponse, error) {
					return c.Rules.Check(ctx, &api.CheckRequest{Yaml: body})
				})
				if err != nil {
					return err
				}
			}
			if len(result.Problems) > 0 {
				lines := make([]string, len(result.Problems))
				for i, p := range result.Problems {
					lines[i] = p.Message
				}
				return fmt.Errorf("the server, of another release than this meshctl, refuses:\n%s", strings.Join(lines, "\n"))
			}
			return a.show(result, func(t *screen) {
				warnings := 0
				for _, r := range result.Results {
					for _, w := range r.Warnings {
						warnings++
						t.row(warningCell(w, fileOf(all, r.Rule)+": "+r.Rule))
					}
				}
				t.row(fmt.Sprintf("%s, no mistake, %s", count(len(result.Results), "rule"), count(warnings, "warning")))
			})
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "`file`, folder, or - for standard input; may be repeated")
	cmd.Flags().StringVar(&against, "against", "", `check with what is there at this server; "server" means that of --server`)
	return cmd
}

// checkAlone reads rules by themselves. What is not there may be elsewhere, so
// these findings are warnings.
func checkAlone(all []source) *api.CheckResponse {
	plain := make([]*rules.Rule, len(all))
	for i, s := range all {
		plain[i] = s.Rule
	}
	findings := rules.Analyze(rules.NewSet(plain...), nil)
	slices.SortStableFunc(findings, byFileThenRule(all))
	out := &api.CheckResponse{}
	for _, s := range all {
		r := &api.RuleResult{Rule: string(s.Key())}
		for _, f := range findings {
			if f.Rule == s.Key() {
				f.Rule, f.Severity = "", rules.Warning
				r.Warnings = append(r.Warnings, f.String())
			}
		}
		out.Results = append(out.Results, r)
	}
	return out
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
