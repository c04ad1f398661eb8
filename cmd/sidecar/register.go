package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/proxy/admin"
	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// registrar keeps the workload registered at MeshServer's built-in registry
// while the sidecar runs, under a lease: if both die, the lease ends by itself.
// The application's own health goes with it, port by port: a port that takes no
// connections is left out within a second, and announced again when it answers.
// Only when none answers is the whole workload announced, as unhealthy.
type registrar struct {
	client   *api.Client
	workload *model.Workload
	ttl      time.Duration
	log      *slog.Logger
	// open reports whether the workload's inbound listeners take calls: who is
	// registered earlier is called in vain. Set it before run.
	open func() bool

	left    chan struct{} // closed when run has taken the workload out
	lease   string
	alive   []bool // by inbound port, as registered
	failure atomic.Pointer[string]
}

const (
	// probeEvery is how often the application's ports are tried.
	probeEvery = time.Second
	// openEvery is how often a starting sidecar looks for its listeners.
	openEvery = 20 * time.Millisecond
)

// run registers and renews until ctx ends, then leaves.
func (r *registrar) run(ctx context.Context) error {
	defer close(r.left)
	if r.idle() {
		<-ctx.Done()
		return nil
	}
	defer r.client.Close()
	if !r.awaitOpen(ctx) {
		return nil
	}
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	var renewed time.Time
	for {
		alive := r.probe(ctx)
		if r.lease == "" || !slices.Equal(alive, r.alive) || time.Since(renewed) > r.ttl/3 {
			if err := r.keep(ctx, alive); err != nil && ctx.Err() == nil {
				r.fail(err)
			} else if err == nil {
				r.fail(nil)
				renewed = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			r.leave(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
		}
	}
}

// awaitOpen returns once the inbound listeners are open, false when ctx ended
// before.
func (r *registrar) awaitOpen(ctx context.Context) bool {
	tick := time.NewTicker(openEvery)
	defer tick.Stop()
	for !r.open() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// idle reports that there is nothing to register.
func (r *registrar) idle() bool { return r.client == nil }

// keep registers the workload, or renews its lease when nothing changed.
func (r *registrar) keep(ctx context.Context, alive []bool) error {
	// The end of the process must not tear a call: MeshServer may have taken the
	// workload in, and who does not hear its lease cannot take it out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	same := slices.Equal(alive, r.alive)
	if r.lease != "" && same {
		_, err := r.client.Workloads.Renew(ctx, &api.RenewRequest{LeaseId: r.lease})
		if err == nil || connect.CodeOf(err) != connect.CodeNotFound {
			return err
		}
		// The lease ended, or MeshServer lost it: register anew.
	}
	w := announced(r.workload, alive)
	resp, err := r.client.Workloads.Register(ctx, &api.RegisterRequest{Workload: w, Ttl: durationpb.New(r.ttl)})
	if err != nil {
		return err
	}
	if r.lease == "" || !same {
		r.log.Info("workload registered", "workload", w.Name, "healthy", slices.Contains(alive, true), "silent", silent(r.workload, alive), "ttl", resp.Ttl.AsDuration())
	}
	r.lease, r.alive = resp.LeaseId, alive
	return nil
}

// leave takes the workload out at once, so that nobody is sent to a sidecar
// that is about to stop.
func (r *registrar) leave(ctx context.Context) {
	if r.lease == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := r.client.Workloads.Leave(ctx, &api.LeaveRequest{LeaseId: r.lease}); err != nil {
		r.log.Warn("workload not taken out, its lease will end", "error", err, "ttl", r.ttl)
	}
}

// fail records why the workload is not registered; nil clears it. It logs a
// change only: the loop comes by every second.
func (r *registrar) fail(err error) {
	if err == nil {
		if r.failure.Swap(nil) != nil {
			r.log.Info("registration works again")
		}
		return
	}
	text := err.Error()
	if old := r.failure.Swap(&text); old == nil {
		r.log.Warn("workload not registered, trying again", "server", r.client.Server(), "error", err)
	}
}

// conditions say why the workload is not registered; none when it is.
func (r *registrar) conditions() []admin.Condition {
	if p := r.failure.Load(); p != nil {
		return []admin.Condition{{Name: "registration", Detail: *p}}
	}
	return nil
}

// probe reports of every inbound port whether the application behind it takes
// connections. All are tried at once: one that hangs must not use up the time of
// the others.
func (r *registrar) probe(ctx context.Context) []bool {
	limited, cancel := context.WithTimeout(ctx, probeEvery)
	defer cancel()
	alive := make([]bool, len(r.workload.Inbound))
	var all sync.WaitGroup
	for i, in := range r.workload.Inbound {
		all.Go(func() {
			at := in.App
			if at.Addr().IsUnspecified() {
				at = netip.AddrPortFrom(r.workload.Address, at.Port())
			}
			c, err := new(net.Dialer).DialContext(limited, "tcp", at.String())
			if err != nil {
				return
			}
			_ = c.Close() // it answered; nothing was sent
			alive[i] = true
		})
	}
	all.Wait()
	if ctx.Err() != nil && r.alive != nil {
		return r.alive // the sidecar stops: that says nothing of the application
	}
	return alive
}

// announced is the workload with the ports that answer; when none does, with all
// of them, as unhealthy.
func announced(w *model.Workload, alive []bool) *api.Workload {
	out := toAPI(w)
	if !slices.Contains(alive, true) {
		out.Health = model.Unhealthy.String()
		return out
	}
	answering := out.Inbound[:0]
	for i, in := range out.Inbound {
		if alive[i] {
			answering = append(answering, in)
		}
	}
	out.Inbound = answering
	return out
}

// silent names the application's addresses that do not answer.
func silent(w *model.Workload, alive []bool) (out []string) {
	for i, in := range w.Inbound {
		if !alive[i] {
			out = append(out, in.App.String())
		}
	}
	return out
}

func toAPI(w *model.Workload) *api.Workload {
	out := &api.Workload{
		Name: w.Name, Namespace: w.Namespace, App: w.App, Address: w.Address.String(), Labels: w.Labels.Map(), Weight: w.Weight, MeshTls: w.MeshTLS,
		Locality: &api.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, SubZone: w.Locality.SubZone},
	}
	for _, in := range w.Inbound {
		out.Inbound = append(out.Inbound, &api.Inbound{
			App: in.App.String(), Listen: in.Listen.String(), Protocol: in.Protocol.String(), Service: in.Service, ServicePort: uint32(in.ServicePort),
		})
	}
	return out
}

// newRegistrar checks the address of the Mesh API; it connects in run.
func newRegistrar(server string, w *model.Workload, ttl time.Duration, log *slog.Logger) (*registrar, error) {
	client, err := api.NewClient(api.ClientConfig{Server: server, Timeout: 5 * time.Second, Agent: "isthmus-sidecar"})
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	return &registrar{client: client, workload: w, ttl: ttl, log: log, left: make(chan struct{})}, nil
}
