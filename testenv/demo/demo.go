package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/isthmus-mesh/isthmus/testenv/openloop"
)

// demo is the mesh on the stage.
type demo struct {
	*stage
	screen *screen

	xds, api, ops int // MeshServer's ports
	echoes        []*echo
	clientProxy   int
	clientAdmin   int

	meshserver *child
	load       *openloop.Loop
}

// echo is one instance of the application with its sidecar.
type echo struct {
	id, version         string
	app, inbound, admin int
	process             *child
}

func newDemo(st *stage, s *screen) (*demo, error) {
	d := &demo{stage: st, screen: s, echoes: []*echo{
		{id: "echo-v1-a", version: "v1"}, {id: "echo-v1-b", version: "v1"}, {id: "echo-v2-a", version: "v2"},
	}}
	wanted := map[*int]int{&d.xds: 15010, &d.api: 15080, &d.ops: 15014, &d.clientProxy: 15002, &d.clientAdmin: 15000}
	for _, e := range d.echoes {
		wanted[&e.app], wanted[&e.inbound], wanted[&e.admin] = 0, 0, 0
	}
	taken := map[int]bool{}
	for into, want := range wanted {
		for {
			p, err := port(want)
			if err != nil {
				return nil, err
			}
			if *into, want = p, 0; !taken[p] {
				taken[p] = true
				break
			}
		}
	}
	return d, nil
}

func (d *demo) start(ctx context.Context) error {
	if err := d.startMeshServer(ctx); err != nil {
		return err
	}
	for _, e := range d.echoes {
		if err := d.startEcho(ctx, e); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(`
workload: {name: client, app: client}
meshserver: [127.0.0.1:%d]
api: 127.0.0.1:%d
httpProxy: 127.0.0.1:%d
admin: 127.0.0.1:%d
readiness: "off"
metrics: "off"
dataDir: %s
`, d.xds, d.api, d.clientProxy, d.clientAdmin, filepath.Join(d.dir, "client"))
	if err := d.startSidecar(ctx, "client", config, d.clientAdmin); err != nil {
		return err
	}
	l, err := openloop.New(fmt.Sprintf("127.0.0.1:%d", d.clientProxy), "http://echo")
	if err != nil {
		return err
	}
	d.load = l
	return poll(ctx, "the client reaches an echo of each version through two sidecars", func(ctx context.Context) error {
		seen := map[string]bool{}
		for range 20 {
			version, err := l.Call(ctx, "GET", "")
			if err != nil {
				return err
			}
			seen[version] = true
		}
		if len(seen) != 2 {
			return fmt.Errorf("answers came from %v only", seen)
		}
		return nil
	})
}

func (d *demo) startMeshServer(ctx context.Context) error {
	file := filepath.Join(d.dir, "meshserver.yaml")
	config := fmt.Sprintf(`
dataDir: %s
xds: {listen: 127.0.0.1:%d}
api: {listen: 127.0.0.1:%d}
ops: {listen: 127.0.0.1:%d}
`, filepath.Join(d.dir, "meshserver"), d.xds, d.api, d.ops)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	c, err := d.stage.start("meshserver", "meshserver", "-config", file)
	if err != nil {
		return err
	}
	d.meshserver = c
	return c.waitServing(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", d.ops))
}

func (d *demo) startEcho(ctx context.Context, e *echo) error {
	app, err := d.stage.start(e.id, "echo", "-listen", fmt.Sprintf("127.0.0.1:%d", e.app), "-id", e.id, "-version", e.version)
	if err != nil {
		return err
	}
	e.process = app
	config := fmt.Sprintf(`
workload: {name: %s, app: echo, labels: {version: %s}}
meshserver: [127.0.0.1:%d]
api: 127.0.0.1:%d
httpProxy: "off"
admin: 127.0.0.1:%d
readiness: "off"
metrics: "off"
dataDir: %s
inbound:
- {app: 127.0.0.1:%d, listen: 127.0.0.1:%d, protocol: http, service: echo}
`, e.id, e.version, d.xds, d.api, e.admin, filepath.Join(d.dir, e.id+"-sidecar"), e.app, e.inbound)
	return d.startSidecar(ctx, e.id, config, e.admin)
}

func (d *demo) startSidecar(ctx context.Context, name, config string, admin int) error {
	file := filepath.Join(d.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	c, err := d.stage.start(name+"-sidecar", "sidecar", "-config", file)
	if err != nil {
		return err
	}
	return c.waitServing(ctx, fmt.Sprintf("http://127.0.0.1:%d/ready", admin))
}

// meshctl runs the built meshctl against the demo's MeshServer.
func (d *demo) meshctl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "meshctl"), append([]string{"--server", fmt.Sprintf("127.0.0.1:%d", d.api)}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", errors.Join(fmt.Errorf("meshctl %s: %w", strings.Join(args, " "), err), errors.New(stderr.String()))
	}
	return string(out), nil
}

func (d *demo) printCommands() {
	bin := d.bin
	server := fmt.Sprintf("--server 127.0.0.1:%d", d.api)
	d.screen.printf(`
The mesh stays up until you interrupt it. To look further:

  a request through two sidecars    curl -x 127.0.0.1:%d http://echo/hello
  what the mesh knows               %s/meshctl %s service show echo
  who has which configuration       %s/meshctl %s proxy status
  the rule and where it is applied  %s/meshctl %s rule get virtualservice/default/echo
  its history                       %s/meshctl %s rule history virtualservice/default/echo
  the client sidecar's clusters     curl http://127.0.0.1:%d/clusters
  its metrics                       curl http://127.0.0.1:%d/stats/prometheus
  what each xDS client has          grpcurl -plaintext 127.0.0.1:%d envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus

`, d.clientProxy, bin, server, bin, server, bin, server, bin, server, d.clientAdmin, d.clientAdmin, d.xds)
}
