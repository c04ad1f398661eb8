package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/builtin"
	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules/file"
	"github.com/isthmus-mesh/isthmus/xds/store/sqlite"
	"github.com/isthmus-mesh/isthmus/xds/translate"
)

// meshserver is the process: the control plane and the bridges that feed it.
type meshserver struct {
	shell   *process.Shell
	server  *xds.MeshServer
	leases  *builtin.Registry
	bridges []*bridges.Supervisor
}

func run(ctx context.Context, sh *process.Shell, c Config) (err error) {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	rules, err := sqlite.Open(ctx, filepath.Join(c.DataDir, "rules.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rules.Close()) }()
	ops, err := process.ListenLoopback(ctx, "metrics and readiness", c.Ops.Listen, "-ops-listen")
	if err != nil {
		return err
	}
	defer ops.Close()
	ads, err := process.ListenLoopback(ctx, "xDS", c.XDS.Listen, "-xds-listen")
	if err != nil {
		return err
	}
	defer ads.Close()
	api, err := process.ListenLoopback(ctx, "the Mesh API", c.API.Listen, "-api-listen")
	if err != nil {
		return err
	}
	defer api.Close()

	m := &meshserver{shell: sh}
	m.leases, err = builtin.New(builtin.Config{Dir: c.DataDir, Log: sh.Log.With("registry", builtin.Kind), Registerer: sh.Registry})
	if err != nil {
		return err
	}
	names := []string{m.leases.Name()}
	for _, r := range c.Registries {
		names = append(names, r.Name)
	}
	m.server, err = xds.New(xds.Config{
		XDS: ads, API: api, Store: rules, RulesDir: c.Rules, Sources: names, StartWait: c.StartWait, Priority: c.Priority,
		Options: translate.Options{AccessLog: c.AccessLog},
		Leases:  m.leases, LeaseErrors: manage.LeaseErrors{Unknown: builtin.ErrUnknownLease, Invalid: builtin.ErrInvalid, Full: builtin.ErrFull},
		Conditions: m.apiConditions, Version: sh.Version, DataDir: c.DataDir, Roles: c.Roles, Log: sh.Log, Registerer: sh.Registry,
	})
	if err != nil {
		return err
	}
	if err := m.addBridges(c); err != nil {
		return process.Misuse(err)
	}
	operations, err := process.NewOps(process.OpsConfig{Listener: ops, Registry: sh.Registry, Log: sh.Log, Level: sh.Level, Ready: m.conditions})
	if err != nil {
		return err
	}
	parts := []process.Part{{Run: m.server.Run}, {Run: operations.Run}}
	for _, b := range m.bridges {
		parts = append(parts, process.Part{Run: b.Run})
	}
	sh.Log.Info("listening", "xds", ads.Addr().String(), "api", api.Addr().String(), "ops", ops.Addr().String())
	return process.RunParts(ctx, parts...)
}

// addBridges makes a supervised bridge of every registry. Their last complete
// reads are kept under the data folder.
func (m *meshserver) addBridges(c Config) error {
	add := func(s bridges.Source, dir string) error {
		b, err := bridges.New(bridges.Config{
			Source: s, Sink: m.server.Source(s.Name()), Dir: dir, Log: m.shell.Log.With("registry", s.Name()), Registerer: m.shell.Registry,
		})
		m.bridges = append(m.bridges, b)
		return err
	}
	// Leases are kept by the registry itself: what it holds is the truth.
	errs := []error{add(m.leases, "")}
	for i, r := range c.Registries {
		s, err := source(m.shell, r)
		if err == nil {
			err = add(s, filepath.Join(c.DataDir, "registries"))
		}
		if err != nil {
			errs = append(errs, everyLine(fmt.Sprintf("registries[%d] %s: ", i, r.Name), err))
		}
	}
	return errors.Join(errs...)
}

// everyLine puts prefix before each of the mistakes that err reports.
func everyLine(prefix string, err error) error {
	return errors.New(prefix + strings.ReplaceAll(err.Error(), "\n", "\n"+prefix))
}

// conditions are what /readyz shows: a registry that does not answer degrades
// the server, and nothing is lost by it.
func (m *meshserver) conditions() []process.Condition {
	all := []process.Condition{{Name: "xds"}}
	if !m.server.Serving() {
		all[0].NotReady, all[0].Detail = true, fmt.Sprintf("nothing is served before %s are read once; startWait serves without them", strings.Join(m.server.SilentSources(), ", "))
	}
	rules := process.Condition{Name: "rules"}
	if st := m.server.Rules(); st.Err != nil {
		rules.Degraded, rules.Detail = true, st.Err.Error()
	} else if n := len(st.Unreadable); n > 0 {
		rules.Degraded, rules.Detail = true, fmt.Sprintf("%d of the store cannot be read by this release and are not in force", n)
	}
	all = append(all, rules)
	for _, b := range m.bridges {
		st := b.Status()
		c := process.Condition{Name: "source " + st.Source}
		if st.Phase != model.Live {
			c.Degraded, c.Detail = true, st.Phase.String()+": "+st.Err
		} else if err := b.DiskError(); err != nil {
			c.Degraded, c.Detail = true, err.Error()
		} else if st.Source == builtin.Kind && len(st.Skipped) > 0 {
			// Nobody else writes into that registry: it is its own file.
			c.Degraded, c.Detail = true, st.Skipped[0].Where+": "+st.Skipped[0].Reason
		}
		all = append(all, c)
	}
	for _, st := range m.server.Catalog().View().Statuses() {
		if st.Kind == file.Kind && st.Phase != model.Live {
			all = append(all, process.Condition{Name: "source " + st.Source, Degraded: true, Detail: st.Phase.String() + ": " + st.Err})
		}
	}
	return all
}

func (m *meshserver) apiConditions() []manage.Condition {
	var all []manage.Condition
	for _, c := range m.conditions() {
		all = append(all, manage.Condition{Name: c.Name, Degraded: c.Degraded, NotReady: c.NotReady, Detail: c.Detail})
	}
	return all
}
