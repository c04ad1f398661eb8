//go:build integration

package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// edit changes a bootstrap that meshctl wrote.
type edit func(t *testing.T, bootstrap map[string]any)

// asWritten leaves it alone.
func asWritten(*testing.T, map[string]any) {}

// stateOfTheWorld asks for whole lists where meshctl asks for changes.
func stateOfTheWorld(t *testing.T, bootstrap map[string]any) {
	ads := part(t, part(t, bootstrap, "dynamic_resources"), "ads_config")
	if ads["api_type"] != "DELTA_GRPC" {
		t.Fatalf("api_type %v, want DELTA_GRPC as written", ads["api_type"])
	}
	ads["api_type"] = "GRPC"
}

// withoutRuntime leaves an Envoy with its own bound on regular expressions.
func withoutRuntime(t *testing.T, bootstrap map[string]any) {
	part(t, bootstrap, "layered_runtime")
	delete(bootstrap, "layered_runtime")
}

func part(t *testing.T, of map[string]any, key string) map[string]any {
	t.Helper()
	inner, ok := of[key].(map[string]any)
	if !ok {
		t.Fatalf("the bootstrap has no %s: %v", key, of)
	}
	return inner
}

// startEnvoy starts an Envoy named name with the bootstrap that meshctl writes for
// it and change edits. proxy is the address of its explicit proxy.
func startEnvoy(t *testing.T, m *testenv.Mesh, name string, change edit, more ...string) (e *peers.Envoy, proxy string) {
	t.Helper()
	proxy = fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
	args := append([]string{"bootstrap", "--for", "envoy", "--app", "web", "--name", name, "--xds", m.XDS, "--http-proxy", proxy}, more...)
	bootstrap := map[string]any{}
	if err := yaml.Unmarshal([]byte(m.Ctl(args...)), &bootstrap); err != nil {
		t.Fatal(err)
	}
	change(t, bootstrap)
	text, err := yaml.Marshal(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return peers.StartEnvoy(t, file), proxy
}

// TestEnvoyBesideTheProvider: an Envoy takes the calls for an application whose
// workload meshctl registered; a client reaches it through its sidecar.
func TestEnvoyBesideTheProvider(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	app := echotest.Start(t, echo.Config{ID: "cart-1", Version: "v1"})
	listen := fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))
	inbound := fmt.Sprintf("app=%s,listen=%s,protocol=http,service=cart", app, listen)
	envoy, _ := startEnvoy(t, mesh, "cart-1", asWritten, "--inbound", inbound)
	lease := register(t, mesh, "--app", "cart", "--name", "cart-1", "--inbound", inbound, "--label", "version=v1")
	eventually(t, "callers are sent to the Envoy", shows(mesh, []string{listen, "cart-1"}, "service", "show", "cart"))

	client := mesh.Sidecar(testenv.Workload{Name: "web-1", App: "web"})
	c := caller(t, client.Proxy)
	eventually(t, "the application answers", answers(c, "http://cart/list?n=1", `"id":"cart-1"`, `"path":"/list"`))
	for range 20 {
		if err := answers(c, "http://cart/", `"id":"cart-1"`)(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := c.Post("http://cart/orders", "text/plain", strings.NewReader("one cart"))
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("POST: status %d, %v", resp.StatusCode, err)
	}
	eventually(t, "the Envoy carried all of it", func(ctx context.Context) error {
		_, port, _ := strings.Cut(app, ":")
		_, stats, err := get(ctx, http.DefaultClient, "http://"+envoy.Admin()+"/stats?filter=cluster.inbound.*"+port+".*upstream_rq_completed")
		if err == nil && !strings.Contains(stats, ": 22") {
			err = fmt.Errorf("Envoy counts %q, want 22 requests to the application", stats)
		}
		return err
	})

	mesh.Ctl("workload", "leave", lease)
	eventually(t, "who left is not called", func(ctx context.Context) error {
		status, _, err := get(ctx, c, "http://cart/")
		if err == nil && status != http.StatusServiceUnavailable && status != http.StatusNotFound {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
}

// register registers a workload in the built-in registry for an hour and returns
// its lease.
func register(t *testing.T, m *testenv.Mesh, args ...string) (lease string) {
	t.Helper()
	out := m.Ctl(append([]string{"workload", "register", "--ttl", "1h", "-o", "yaml"}, args...)...)
	var got struct {
		LeaseID string `json:"lease_id"`
	}
	if err := yaml.Unmarshal([]byte(out), &got); err != nil || got.LeaseID == "" {
		t.Fatalf("no lease in %q: %v", out, err)
	}
	return got.LeaseID
}

const variousRoutes = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart}
spec:
  host: cart
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec:
  hosts: [cart]
  http:
  - match: [{headers: {x-user: {exact: tester}}}]
    route: [{destination: {host: cart, subset: v2}}]
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    headers: {request: {set: {x-way: old}}, response: {add: {x-by: mesh}}}
    route: [{destination: {host: cart, subset: v1}}]
  - match: [{uri: {exact: /gone}}]
    directResponse: {status: 410, body: {string: it is gone}}
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /here, redirectCode: 308}
  - route: [{destination: {host: cart, subset: %s}}]
`

// TestEnvoyStateOfTheWorld: an Envoy that asks for whole lists gives the answers
// of one that asks for changes, before and after rules and endpoints change.
func TestEnvoyStateOfTheWorld(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	instance := func(id, version string) (lease string) {
		addr := echotest.Start(t, echo.Config{ID: id, Version: version})
		return register(t, mesh, "--app", "cart", "--name", id, "--inbound", "app="+addr+",protocol=http,service=cart", "--label", "version="+version)
	}
	instance("cart-a", "v1")
	instance("cart-b", "v2")
	subjects := map[string]string{}
	for name, change := range map[string]edit{"incremental": asWritten, "state-of-the-world": stateOfTheWorld} {
		_, subjects[name] = startEnvoy(t, mesh, name, change)
	}
	eventually(t, "each speaks its protocol", shows(mesh, []string{"state of the world"}, "proxy", "status", "state-of-the-world"))
	eventually(t, "each speaks its protocol", shows(mesh, []string{"incremental"}, "proxy", "status", "envoy~127.0.0.1~incremental."))

	// same asks both Envoys until each answers as wanted, and then compares.
	same := func(what string, wanted ...string) {
		t.Helper()
		got := map[string][]string{}
		for name, proxy := range subjects {
			c := caller(t, proxy)
			c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			eventually(t, name+": "+what, func(context.Context) error {
				got[name] = nil
				for _, r := range []struct{ path, user string }{{"/", ""}, {"/", "tester"}, {"/old/list?n=1", ""}, {"/gone", ""}, {"/moved", ""}} {
					line, err := answer(t.Context(), c, "http://cart"+r.path, r.user)
					if err != nil {
						return err
					}
					got[name] = append(got[name], line)
				}
				if d := cmp.Diff(wanted, got[name]); d != "" {
					return fmt.Errorf("answers (-want +got):\n%s", d)
				}
				return nil
			})
		}
		if d := cmp.Diff(got["incremental"], got["state-of-the-world"]); d != "" {
			t.Errorf("%s (-incremental +state of the world):\n%s", what, d)
		}
	}
	mesh.Apply(fmt.Sprintf(variousRoutes, "v1"))
	rest := []string{"200 v1 /new/list?n=1 way=old by=mesh", "410 it is gone", "308 to http://cart/here"}
	same("rules hold", append([]string{"200 v1 /", "200 v2 /"}, rest...)...)
	mesh.Apply(fmt.Sprintf(variousRoutes, "v2"))
	same("a changed rule holds", append([]string{"200 v2 /", "200 v2 /"}, rest...)...)
	mesh.Apply(fmt.Sprintf(strings.ReplaceAll(variousRoutes, "version: v2", "version: v3"), "v2"))
	same("an empty subset answers", append([]string{"503 no healthy upstream", "503 no healthy upstream"}, rest...)...)
	lease := instance("cart-c", "v3")
	same("a new endpoint is used", append([]string{"200 v3 /", "200 v3 /"}, rest...)...)
	mesh.Ctl("workload", "leave", lease)
	same("a removed endpoint is not", append([]string{"503 no healthy upstream", "503 no healthy upstream"}, rest...)...)
	eventually(t, "both took everything", func(context.Context) error {
		out, err := mesh.Ask("proxy", "list", "--unsynced", "-o", "json")
		if err == nil && strings.Contains(out, "envoy~") {
			err = fmt.Errorf("not synced: %s", out)
		}
		return err
	})
}

// answer is what a GET gives, in one line.
func answer(ctx context.Context, c *http.Client, url, user string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	if user != "" {
		req.Header.Set("X-User", user)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := readAll(resp)
	if err != nil {
		return "", err
	}
	line := fmt.Sprint(resp.StatusCode)
	var seen echo.Answer
	switch {
	case resp.Header.Get("Location") != "":
		line += " to " + resp.Header.Get("Location")
	case resp.StatusCode != http.StatusOK:
		line += " " + text
	default:
		if err := yaml.Unmarshal([]byte(text), &seen); err != nil {
			return "", err
		}
		line += " " + seen.Version + " " + seen.Path
		if seen.Query != "" {
			line += "?" + seen.Query
		}
		if way := seen.Headers["X-Way"]; len(way) > 0 {
			line += " way=" + strings.Join(way, ",")
		}
	}
	if by := resp.Header.Values("X-By"); len(by) > 0 {
		line += " by=" + strings.Join(by, ",")
	}
	return line, nil
}

const byRegex = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec:
  hosts: [cart]
  http:
  - match: [{uri: {regex: "%s"}}]
    directResponse: {status: 200, body: {string: matched}}
  - route: [{destination: {host: cart}}]
`

// TestRefusedRule: an Envoy with its own bound on regular expressions refuses
// what a sidecar takes. Who refused which rule, and why, is to be seen, the Envoy
// keeps what it had, and a better rule mends it.
func TestRefusedRule(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	addr := echotest.Start(t, echo.Config{ID: "cart-1", Version: "v1"})
	register(t, mesh, "--app", "cart", "--inbound", "app="+addr+",protocol=http,service=cart")
	client := mesh.Sidecar(testenv.Workload{Name: "web-1", App: "web"})
	_, proxy := startEnvoy(t, mesh, "picky", withoutRuntime)
	throughSidecar, throughEnvoy := caller(t, client.Proxy), caller(t, proxy)

	const rule, path = "virtualservice/default/cart", "http://cart/items/abc/details"
	mesh.Apply(fmt.Sprintf(byRegex, "/short"))
	eventually(t, "a short expression is taken by both", shows(mesh, []string{"on 2 of 2"}, "rule", "get", rule))
	eventually(t, "and holds", answers(throughEnvoy, "http://cart/short", "matched"))

	_, err := mesh.AskWith(fmt.Sprintf(byRegex, "/items/[a-z0-9]{1,60}/details"), "rule", "apply", "-f", "-", "--author", "test", "--wait", "30s")
	if err == nil || !strings.Contains(err.Error(), "is refused by 1 of 2 proxies, such as envoy~127.0.0.1~picky.") {
		t.Errorf("apply and wait: %v, want that one proxy refuses the rule", err)
	}
	eventually(t, "the rule names who refuses it", shows(mesh, []string{"on 1 of 2, refused by 1", "envoy~127.0.0.1~picky."}, "rule", "get", rule))
	_, port, _ := strings.Cut(proxy, ":")
	refusal := []string{"envoy~127.0.0.1~picky.default~default.mesh refuses RDS " + port, "shaped by " + rule, "regex '/items/"}
	eventually(t, "so does the status of all proxies", shows(mesh, refusal, "proxy", "status"))
	eventually(t, "and of the one", shows(mesh, refusal, "proxy", "status", "picky"))
	eventually(t, "the sidecar carries it out", answers(throughSidecar, path, "matched"))
	for what, url := range map[string]string{"the last rule": "http://cart/short", "the way": "http://cart/"} {
		if status, _, err := get(t.Context(), throughEnvoy, url); err != nil || status != http.StatusOK {
			t.Errorf("the Envoy that refused has lost %s: status %d, %v", what, status, err)
		}
	}

	mesh.Apply(fmt.Sprintf(byRegex, "/items/.*/details"))
	eventually(t, "a better rule is taken by both", shows(mesh, []string{"on 2 of 2"}, "rule", "get", rule))
	eventually(t, "and holds", answers(throughEnvoy, path, "matched"))
	eventually(t, "no refusal is left", func(context.Context) error {
		out, err := mesh.Ask("proxy", "status")
		if err == nil && strings.Contains(out, "refuse") {
			err = fmt.Errorf("still shown:\n%s", out)
		}
		return err
	})
}
