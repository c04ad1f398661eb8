package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/testenv/load/registry"
	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
)

const (
	lagServices = 100
	lagChanges  = 500
	// lagRate is how many changes a second begin, whether or not those before
	// them have arrived.
	lagRate = 100
	// lagProbe is how often a caller asks for the changed service. Endpoints take
	// turns, so a new one is seen at most as many probes late as there are.
	lagProbe = time.Millisecond
	lagLimit = 10 * time.Second
)

// application is many instances in one process; each answers with its own address.
type application struct {
	server    *http.Server
	listeners []net.Listener
	group     errgroup.Group
}

func newApplication(ctx context.Context, instances int) (*application, error) {
	a := &application{server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()) // the caller sees what is missing
	})}}
	for range instances {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(err, a.close())
		}
		a.listeners = append(a.listeners, l)
		a.group.Go(func() error {
			if err := a.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	return a, nil
}

func (a *application) instance(i int) netip.AddrPort {
	return a.listeners[i].Addr().(*net.TCPAddr).AddrPort()
}

func (a *application) close() error { return errors.Join(a.server.Close(), a.group.Wait()) }

// lag measures from an application's registration to the first request that the
// sidecar sends to it.
func (s *suite) lag(ctx context.Context, name string) (err error) {
	dir, err := s.fresh(name)
	if err != nil {
		return err
	}
	app, err := newApplication(ctx, lagServices+lagChanges)
	if err != nil {
		return err
	}
	stop := []func() error{app.close}
	defer func() {
		for _, f := range slices.Backward(stop) {
			err = errors.Join(err, f())
		}
	}()
	reg, err := registry.Start(ctx, name, dir)
	if err != nil {
		return err
	}
	stop = append(stop, reg.Stop)
	l := &lagRun{app: app, registry: reg}
	for i := range lagServices {
		l.services = append(l.services, fmt.Sprintf("shop-%02d", i))
		if err := reg.Register(ctx, registry.Instance{Service: l.services[i], Address: app.instance(i)}); err != nil {
			return err
		}
	}
	mesh, err := subject.StartMesh(ctx, subject.MeshConfig{
		Name: "meshserver", Bin: s.bin, Dir: dir, Core: subject.AnyCore, Registries: reg.Settings, RoundRobin: l.services,
	})
	if err != nil {
		return err
	}
	stop = append(stop, mesh.Stop)
	port, admin := 0, 0
	for _, into := range []*int{&port, &admin} {
		*into, err = subject.Port()
		if err != nil {
			return err
		}
	}
	sidecar, err := subject.StartSidecar(ctx, subject.Sidecar{Name: "sidecar", Dir: dir, Core: subject.AnyCore, Mesh: mesh, Port: port, Admin: admin})
	if err != nil {
		return err
	}
	stop = append(stop, sidecar.Stop)
	l.target = fmt.Sprintf("http://127.0.0.1:%d/", port)
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	defer transport.CloseIdleConnections()
	l.client = &http.Client{Transport: transport, Timeout: 5 * time.Second}
	for i, service := range l.services {
		if err := sidecar.Await(ctx, func(ctx context.Context) error { return l.reaches(ctx, service, app.instance(i)) }); err != nil {
			return err
		}
	}
	if err := l.changes(ctx); err != nil {
		return err
	}
	after := make([]time.Duration, lagChanges)
	for i := range after {
		after[i] = max(0, l.used[i]-l.wrote[i])
	}
	for _, all := range [][]time.Duration{l.used, l.wrote, after} {
		slices.Sort(all)
	}
	at := func(all []time.Duration, p float64) float64 {
		return ms(all[min(len(all)-1, int(p*float64(len(all))))])
	}
	s.results.add(registryLag, name, 0,
		figure{"p50_ms", at(l.used, 0.5)}, figure{"p99_ms", at(l.used, 0.99)}, figure{"max_ms", at(l.used, 1)},
		figure{"write_p50_ms", at(l.wrote, 0.5)}, figure{"write_p99_ms", at(l.wrote, 0.99)},
		figure{"after_write_p50_ms", at(after, 0.5)}, figure{"after_write_p99_ms", at(after, 0.99)})
	return nil
}

// lagRun is one run of changes.
type lagRun struct {
	app      *application
	registry *registry.Registry
	services []string
	client   *http.Client
	target   string // the sidecar's explicit proxy

	used, wrote []time.Duration // a change each
}

// changes registers instances at the rate and waits until the last is used.
func (l *lagRun) changes(ctx context.Context) error {
	l.used, l.wrote = make([]time.Duration, lagChanges), make([]time.Duration, lagChanges)
	g, ctx := errgroup.WithContext(ctx)
	tick := time.NewTicker(time.Second / lagRate)
	defer tick.Stop()
	for i := range lagChanges {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return g.Wait()
		}
		g.Go(func() error { return l.change(ctx, i) })
	}
	return g.Wait()
}

// change registers instance i and probes until it answers. The time begins before
// the registry is told, so the registry's own write is part of it.
func (l *lagRun) change(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, lagLimit)
	defer cancel()
	service, at := l.services[i%lagServices], l.app.instance(lagServices+i)
	began := time.Now()
	written := make(chan error, 1)
	go func() {
		err := l.registry.Register(ctx, registry.Instance{Service: service, Address: at})
		l.wrote[i] = time.Since(began)
		written <- err
	}()
	tick := time.NewTicker(lagProbe)
	defer tick.Stop()
	for {
		err := l.reaches(ctx, service, at)
		if err == nil {
			l.used[i] = time.Since(began)
			return <-written
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("change %d, %v of %s: %w", i, at, service, err)
		}
	}
}

// reaches asks for a service and wants the answer of one instance.
func (l *lagRun) reaches(ctx context.Context, service string, at netip.AddrPort) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.target, nil)
	if err != nil {
		return err
	}
	req.Host = service
	resp, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if string(text) != at.String() {
		return fmt.Errorf("status %d from %.100q", resp.StatusCode, text)
	}
	return nil
}
