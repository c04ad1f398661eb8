package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/openloop"
)

const canaryRule = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets:
  - name: v1
    labels: {version: v1}
  - name: v2
    labels: {version: v2}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route:
    - destination: {host: echo, subset: v1}
      weight: 90
    - destination: {host: echo, subset: v2}
      weight: 10
`

// prove keeps the load going through every step and says what the callers saw.
func (d *demo) prove(ctx context.Context) error {
	loadCtx, stopLoad := context.WithCancel(ctx)
	loadDone := make(chan struct{})
	go func() {
		defer close(loadDone)
		d.load.Run(loadCtx)
	}()
	defer func() {
		stopLoad()
		<-loadDone
	}()
	d.screen.printf("\n%d requests a second in open loop, every %dth a POST, each answer checked by status and body:\n\n", openloop.PerSecond, openloop.PostEvery)
	err := errors.Join(
		d.phase(ctx, "traffic without a rule", d.noRule),
		d.phase(ctx, "a 90/10 canary while traffic flows", d.canary),
		d.phase(ctx, "kill one echo with SIGKILL", d.killEcho),
		d.phase(ctx, "restart MeshServer", d.restartMeshServer),
		d.phase(ctx, "kill MeshServer with SIGKILL and start it again", d.killMeshServer),
	)
	if lost := d.load.Lost(); lost > 0 {
		err = errors.Join(err, fmt.Errorf("%d requests could not leave: %d were waiting already", lost, openloop.MaxWaiting))
	}
	return err
}

// phase runs one part of the proof; the load since the last part is its own.
func (d *demo) phase(ctx context.Context, title string, part func(context.Context, *openloop.Tally) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.screen.printf("── %s\n", title)
	d.load.Take()
	sum := &openloop.Tally{Versions: map[string]int{}}
	err := part(ctx, sum)
	sum.Add(d.load.Take())
	d.screen.printf("   %d GET, %d failed; %d POST, %d failed; slowest %v\n", sum.Gets, sum.FailedGets, sum.Posts, sum.FailedPosts, sum.Slowest.Round(time.Millisecond))
	for _, e := range sum.Errors {
		d.screen.printf("   %s\n", e)
	}
	if sum.FailedGets > 0 {
		err = errors.Join(err, fmt.Errorf("%d GETs failed, want none", sum.FailedGets))
	}
	if want := int(0.8 * openloop.PerSecond); err == nil && sum.Requests() < want {
		err = fmt.Errorf("only %d requests were answered", sum.Requests())
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", title, err)
		d.screen.printf("   ✗ %v\n\n", err)
		return err
	}
	d.screen.printf("   ✓ held\n\n")
	return nil
}

// watch shows the split of each second and adds it to sum.
func (d *demo) watch(ctx context.Context, sum *openloop.Tally, seconds int) (last openloop.Tally) {
	for range seconds {
		select {
		case <-ctx.Done():
			return last
		case <-time.After(time.Second):
		}
		last = d.load.Take()
		sum.Add(last)
		d.screen.printf("   %s v1 %5.1f %%  v2 %5.1f %%  (%d requests/s)\n", bar(last.Share("v1")), last.Share("v1"), last.Share("v2"), last.Requests())
	}
	return last
}

func (d *demo) noRule(ctx context.Context, sum *openloop.Tally) error {
	d.watch(ctx, sum, 3)
	if sum.FailedPosts > 0 {
		return fmt.Errorf("%d POSTs failed with every instance alive", sum.FailedPosts)
	}
	if got := sum.Share("v1"); math.Abs(got-66.7) > 8 {
		return fmt.Errorf("v1 has two of three instances and gave %.1f %% of the answers", got)
	}
	return nil
}

func (d *demo) canary(ctx context.Context, sum *openloop.Tally) error {
	d.watch(ctx, sum, 1)
	out, err := d.meshctl(ctx, canaryRule, "rule", "apply", "-f", "-", "--author", "demo", "--reason", "first canary of v2")
	if err != nil {
		return err
	}
	d.screen.printf("%s", indent(out))
	last := d.watch(ctx, sum, 4)
	if sum.FailedPosts > 0 {
		return fmt.Errorf("%d POSTs failed with every instance alive", sum.FailedPosts)
	}
	if got := last.Share("v1"); math.Abs(got-90) > 6 {
		return fmt.Errorf("v1 gave %.1f %% of the answers, want about 90 %%", got)
	}
	return nil
}

func (d *demo) killEcho(ctx context.Context, sum *openloop.Tally) error {
	before, err := d.retries(ctx)
	if err != nil {
		return err
	}
	victim := d.echoes[1]
	if err := victim.process.kill(); err != nil {
		return err
	}
	d.screen.printf("   %s is dead\n", victim.id)
	d.watch(ctx, sum, 4)
	after, err := d.retries(ctx)
	if err != nil {
		return err
	}
	d.screen.printf("   the client's sidecar retried %d times\n", after-before)
	if after == before {
		return errors.New("no retry was counted: the death was not noticed, or the counter is wrong")
	}
	return nil
}

func (d *demo) restartMeshServer(ctx context.Context, sum *openloop.Tally) error {
	if err := d.meshserver.stop(); err != nil {
		return err
	}
	d.screen.printf("   MeshServer is down\n")
	d.watch(ctx, sum, 2)
	return d.backUp(ctx, sum)
}

func (d *demo) killMeshServer(ctx context.Context, sum *openloop.Tally) error {
	if err := d.meshserver.kill(); err != nil {
		return err
	}
	d.screen.printf("   MeshServer is dead\n")
	d.watch(ctx, sum, 2)
	return d.backUp(ctx, sum)
}

// backUp starts MeshServer again and checks that the rule is in force everywhere.
func (d *demo) backUp(ctx context.Context, sum *openloop.Tally) error {
	if err := d.startMeshServer(ctx); err != nil {
		return err
	}
	d.screen.printf("   MeshServer is back\n")
	d.watch(ctx, sum, 3)
	if got := sum.Share("v1"); math.Abs(got-90) > 6 {
		return fmt.Errorf("v1 gave %.1f %% of the answers, want about 90 %% all the while", got)
	}
	if sum.FailedPosts > 0 {
		return fmt.Errorf("%d POSTs failed", sum.FailedPosts)
	}
	return nil
}

var retryMetric = regexp.MustCompile(`(?m)^mesh_proxy_upstream_retries_total\{[^}]*echo[^}]*\} ([0-9.e+]+)$`)

// retries reads the client sidecar's own count.
func (d *demo) retries(ctx context.Context) (int, error) {
	status, body, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", d.clientAdmin))
	if err != nil || status != 200 {
		return 0, fmt.Errorf("read the client sidecar's metrics: status %d: %w", status, err)
	}
	sum := 0.0
	for _, m := range retryMetric.FindAllStringSubmatch(body, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %q: %w", m[0], err)
		}
		sum += v
	}
	return int(sum), nil
}

func indent(text string) string {
	return regexp.MustCompile(`(?m)^`).ReplaceAllString(text, "   ")
}

// poll repeats check until it succeeds, for thirty seconds.
func poll(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
