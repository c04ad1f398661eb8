package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// change are the flags of every command that changes rules.
type change struct {
	author, reason string
	dryRun         bool
	expect         uint64
	wait           time.Duration
}

func (c *change) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.author, "author", "", "who changes it (default: $USER)")
	f.StringVar(&c.reason, "reason", "", "why, kept in the history")
	f.BoolVar(&c.dryRun, "dry-run", false, "show what would change; store nothing")
	f.Uint64Var(&c.expect, "expect-revision", 0, "refuse unless the rules are at this `revision`; 0 takes any")
	f.DurationVar(&c.wait, "wait", 0, "wait up to this `time` until all proxies took the change")
}

// check fills the author.
func (c *change) check(a *app) error {
	if c.author == "" {
		c.author = a.Getenv("USER")
	}
	if c.author == "" && !c.dryRun {
		return misuse("every change has an author: set --author, or USER in the environment")
	}
	if c.wait < 0 {
		return misuse("--wait %v, want more than 0", c.wait)
	}
	return nil
}

func (a *app) ruleApply() *cobra.Command {
	var c change
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f FILE...",
		Short: "Create and update all rules of files, or none of them",
		Example: `  meshctl rule apply -f canary.yaml --reason "ten percent to v2"
  meshctl rule apply -f rules/ --dry-run
  meshctl rule get virtualservice/cart -o yaml | sed s/90/50/ | meshctl rule apply -f -`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(a); err != nil {
				return err
			}
			all, err := a.readRules(append(files, args...))
			if err != nil {
				return err
			}
			body, err := text(all)
			if err != nil {
				return err
			}
			resp, err := ask(cmd.Context(), a, "applying", func(ctx context.Context, cl *api.Client) (*api.ApplyResponse, error) {
				return cl.Rules.Apply(ctx, &api.ApplyRequest{Yaml: body, Author: c.author, Reason: c.reason, DryRun: c.dryRun, ExpectedRevision: c.expect})
			})
			return a.changed(cmd.Context(), c, resp, err)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "`file`, folder, or - for standard input; may be repeated")
	c.flags(cmd)
	return cmd
}

func (a *app) ruleDelete() *cobra.Command {
	var c change
	var files []string
	cmd := &cobra.Command{
		Use:     "delete RULE...",
		Short:   "Delete all rules that are named, or none of them",
		Example: `  meshctl rule delete virtualservice/cart destinationrule/cart --reason "moved to v3"`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(a); err != nil {
				return err
			}
			if len(files) > 0 {
				all, err := a.readRules(files)
				if err != nil {
					return err
				}
				for _, r := range all {
					args = append(args, string(r.Key()))
				}
			}
			if len(args) == 0 {
				return misuse("name a rule to delete, such as virtualservice/default/cart")
			}
			if err := checkKeys(args); err != nil {
				return err
			}
			resp, err := ask(cmd.Context(), a, "deleting", func(ctx context.Context, cl *api.Client) (*api.ApplyResponse, error) {
				return cl.Rules.Delete(ctx, &api.DeleteRulesRequest{Rules: args, Author: c.author, Reason: c.reason, DryRun: c.dryRun, ExpectedRevision: c.expect})
			})
			return a.changed(cmd.Context(), c, resp, err)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "delete the rules of this `file`, folder, or - for standard input")
	c.flags(cmd)
	return cmd
}

func (a *app) ruleRollback() *cobra.Command {
	var c change
	var to uint64
	var everything bool
	cmd := &cobra.Command{
		Use:   "rollback [RULE] --to REVISION",
		Short: "Bring back a rule, or all of them, as it was at a revision",
		Example: `  meshctl rule rollback virtualservice/cart --to 12
  meshctl rule rollback --all --to 12 --dry-run`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case to == 0:
				return misuse("--to is missing or 0: name the revision to go back to (meshctl rule history lists them)")
			case everything == (len(args) == 1):
				return misuse("name one rule, or say --all for every rule")
			}
			if err := c.check(a); err != nil {
				return err
			}
			if err := checkKeys(args); err != nil {
				return err
			}
			req := &api.RollbackRequest{ToRevision: to, Author: c.author, Reason: c.reason, DryRun: c.dryRun, ExpectedRevision: c.expect}
			if len(args) == 1 {
				req.Rule = args[0]
			}
			resp, err := ask(cmd.Context(), a, "rolling back", func(ctx context.Context, cl *api.Client) (*api.ApplyResponse, error) {
				return cl.Rules.Rollback(ctx, req)
			})
			return a.changed(cmd.Context(), c, resp, err)
		},
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "the `revision` to go back to, from 1")
	cmd.Flags().BoolVar(&everything, "all", false, "roll back every rule")
	c.flags(cmd)
	return cmd
}

// checkKeys reports every wrong name before the server is asked.
func checkKeys(keys []string) error {
	var wrong []string
	for _, k := range keys {
		if _, err := rules.ParseKey(k); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	if len(wrong) > 0 {
		return misuse("%s", strings.Join(wrong, "\n"))
	}
	return nil
}

// changed shows what a change did, and waits for the proxies when asked to.
func (a *app) changed(ctx context.Context, c change, resp *api.ApplyResponse, err error) error {
	if err != nil {
		return err
	}
	if err := a.show(resp, func(t *screen) { changeTable(t, resp) }); err != nil {
		return err
	}
	if c.wait == 0 || c.dryRun {
		return nil
	}
	return a.await(ctx, c.wait, resp)
}

func changeTable(t *screen, resp *api.ApplyResponse) {
	verb := map[api.Outcome]cell{
		api.Outcome_CREATED: green("created"), api.Outcome_UPDATED: green("updated"),
		api.Outcome_UNCHANGED: dim("unchanged"), api.Outcome_DELETED: yellow("deleted"),
	}
	for _, r := range resp.Results {
		v := verb[r.Outcome]
		if resp.DryRun && r.Outcome != api.Outcome_UNCHANGED {
			v.text = "would be " + v.text
		}
		t.row(r.Rule, v)
	}
	t.flush()
	for _, r := range resp.Results {
		for _, w := range r.Warnings {
			t.row(warningCell(w, r.Rule))
		}
	}
	for _, w := range resp.Warnings {
		t.row(warningCell(w, "elsewhere"))
	}
	t.flush()
	if !resp.DryRun {
		t.row(fmt.Sprintf("rules are at revision %d", resp.Revision))
		return
	}
	signs := map[api.ResourceChange_Kind]cell{
		api.ResourceChange_ADDED: green("+"), api.ResourceChange_CHANGED: yellow("~"), api.ResourceChange_REMOVED: red("-"),
	}
	for _, c := range resp.Changes {
		t.row(signs[c.Kind], c.Type, c.Name, fmt.Sprintf("for %d of scope %s", c.Proxies, c.Scope))
	}
	t.flush()
	switch {
	case resp.ChangesOmitted > 0:
		t.row(fmt.Sprintf("and %d more resources", resp.ChangesOmitted))
	case len(resp.Changes) == 0 && resp.Scopes == 0:
		t.row("no proxy is connected, so no resource can be foretold")
	case len(resp.Changes) == 0:
		t.row("no connected proxy would get anything else")
	}
}

// warningCell shows a warning, of the rule that is named unless the reader knows
// it; those that make requests fail are red.
func warningCell(w, rule string) cell {
	text := w
	if rule != "" {
		text = rule + ": " + w
	}
	if strings.HasPrefix(w, "error: ") {
		return red(text)
	}
	return yellow(text)
}

// poll is how often await asks.
const poll = 100 * time.Millisecond

// await waits until every proxy took the rules of resp, or one refused.
func (a *app) await(ctx context.Context, limit time.Duration, resp *api.ApplyResponse) error {
	var waitFor []string
	for _, r := range resp.Results {
		if r.Outcome == api.Outcome_CREATED || r.Outcome == api.Outcome_UPDATED {
			waitFor = append(waitFor, r.Rule)
		}
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	bound, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p := a.progress("waiting for the proxies")
	defer p.stop()
	for {
		state, waiting := "", false
		for _, key := range waitFor {
			r, err := c.Rules.Get(bound, &api.GetRuleRequest{Rule: key})
			if bound.Err() != nil && ctx.Err() == nil {
				return fmt.Errorf("after %v not every proxy took the change%s (meshctl proxy list --unsynced)", limit, state)
			}
			if err != nil {
				return err
			}
			if r.Applied.GetPending() {
				waiting = true
				continue
			}
			if n := r.Applied.GetRefused(); n > 0 {
				return fmt.Errorf("%s is refused by %d of %d proxies, such as %s (meshctl proxy status says why)",
					key, n, r.Applied.Total, strings.Join(r.Applied.RefusedNodes, ", "))
			}
			if r.Applied.GetWaiting() > 0 {
				waiting = true
			}
			state = fmt.Sprintf(": %s is applied on %d of %d", key, r.Applied.GetApplied(), r.Applied.GetTotal())
		}
		if !waiting {
			return nil
		}
		p.now("waiting for the proxies" + state)
		select {
		case <-time.After(poll):
		case <-bound.Done():
		}
	}
}
