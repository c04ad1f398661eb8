package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
	"github.com/isthmus-mesh/isthmus/proxy"
	"github.com/isthmus-mesh/isthmus/proxy/admin"
	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
	"github.com/isthmus-mesh/isthmus/proxy/codec/http1"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
)

func run(ctx context.Context, sh *process.Shell, c bootstrap.Config) error {
	for _, a := range c.MeshServer {
		if !a.Addr().IsLoopback() {
			return process.Misuse(fmt.Errorf("meshserver: %v is not loopback; xDS between hosts needs an identity, which sidecars do not have yet", a))
		}
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	cfg := proxy.Config{
		Bootstrap: c, HTTP: http1.New(), TCP: tcp.New(),
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Version:     sh.Version, Log: sh.Log, Level: sh.Level, Registry: sh.Registry,
	}
	var err error
	cfg.HostName, err = os.Hostname()
	if err != nil {
		return err
	}
	if c.AccessLog.Path != "" {
		cfg.AccessLog = proxy.OpenLog(c.AccessLog.Path, sh.Streams.Out)
	}
	for _, l := range []struct {
		what, setting string
		at            bootstrap.Address
		into          *net.Listener
	}{
		{"the admin port", "admin", c.Admin, &cfg.Admin},
		{"metrics", "metrics", c.Metrics, &cfg.Metrics},
		{"readiness", "readiness", c.Readiness, &cfg.Readiness},
	} {
		if l.at.Off() {
			continue
		}
		listener, err := process.Listen(ctx, l.what, l.at.String(), l.setting)
		if err != nil {
			return err
		}
		defer listener.Close()
		*l.into = listener
	}
	reg, err := registration(sh, c)
	if err != nil {
		return process.Misuse(err)
	}
	cfg.Conditions = reg.conditions
	p, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	reg.open = func() bool { return inboundOpen(c, p) }
	return process.RunParts(ctx, process.Part{Run: reg.run}, process.Part{Run: func(ctx context.Context) error {
		return lastToLeave(ctx, reg, p.Run)
	}}, process.Part{Run: func(ctx context.Context) error {
		giveBack(ctx, sh.Log, p)
		<-ctx.Done()
		return nil
	}})
}

// giveBack returns what only the start needed, once the sidecar is configured
// and the first rush is over.
func giveBack(ctx context.Context, log *slog.Logger, p *proxy.Proxy) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for starting := true; starting; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		starting = slices.ContainsFunc(p.Conditions(), func(c admin.Condition) bool { return c.NotReady })
	}
	path, err := os.Executable()
	if err == nil {
		err = process.GiveBack(os.DirFS("/"), path)
	}
	if err != nil {
		log.Warn("memory of the start not given back", "error", err)
	}
}

// inboundOpen reports whether every inbound listener of c is bound.
func inboundOpen(c bootstrap.Config, p *proxy.Proxy) bool {
	bound := map[netip.AddrPort]bool{}
	for _, l := range p.Status() {
		bound[l.Addr] = l.Bound
	}
	for _, in := range c.Inbound {
		if !bound[in.Listen] {
			return false
		}
	}
	return true
}

// registration is what keeps the workload registered; it does nothing without
// inbound ports: who cannot be called need not be found.
func registration(sh *process.Shell, c bootstrap.Config) (*registrar, error) {
	if len(c.Inbound) == 0 || c.API == "off" {
		return &registrar{log: sh.Log, left: make(chan struct{})}, nil
	}
	return newRegistrar(c.API, c.Model(), c.Lease, sh.Log)
}

// lastToLeave lets serve go on until the workload is out of the registry and
// callers had the time to hear of it: who still comes finds an open port.
func lastToLeave(ctx context.Context, reg *registrar, serve func(context.Context) error) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	unhook := context.AfterFunc(ctx, func() {
		defer stop()
		if reg.idle() {
			return
		}
		<-reg.left
		time.Sleep(farewell)
	})
	defer unhook()
	return serve(serving)
}

// farewell is how long the way from the registry to every caller may take.
// Endpoint changes were measured to arrive within 150 ms on 10,000 streams.
const farewell = 500 * time.Millisecond
