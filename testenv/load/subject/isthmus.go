package subject

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// MeshConfig says how MeshServer runs.
type MeshConfig struct {
	Name string // of its files in Dir
	Bin  string // built programs of the product
	Dir  string
	Core int
	// Site becomes rules in a folder; an empty one none.
	Site Site
	// Registries are lines of meshserver.yaml, the value of the key registries;
	// empty: none.
	Registries string
	// RoundRobin lists hosts whose endpoints are to take turns.
	RoundRobin []string
}

// Mesh is a MeshServer that serves.
type Mesh struct {
	MeshConfig
	XDS, API, Ops int
	Rules         string
	process       *Process
}

// StartMesh starts a MeshServer.
func StartMesh(ctx context.Context, cfg MeshConfig) (*Mesh, error) {
	m := &Mesh{MeshConfig: cfg, Rules: filepath.Join(cfg.Dir, cfg.Name+"-rules")}
	if err := os.MkdirAll(m.Rules, 0o755); err != nil {
		return nil, err
	}
	for _, into := range []*int{&m.XDS, &m.API, &m.Ops} {
		port, err := Port()
		if err != nil {
			return nil, err
		}
		*into = port
	}
	if _, err := render(m.Rules, "rules.yaml", m); err != nil {
		return nil, err
	}
	file, err := render(cfg.Dir, "meshserver.yaml", m)
	if err != nil {
		return nil, err
	}
	m.process, err = Start(Command{Name: cfg.Name, Path: filepath.Join(cfg.Bin, "meshserver"), Args: []string{"-config", file}, Dir: cfg.Dir, Core: cfg.Core})
	if err != nil {
		return nil, err
	}
	err = m.process.Await(ctx, func(ctx context.Context) error {
		_, err := Get(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", m.Ops))
		return err
	})
	if err != nil {
		return nil, errors.Join(err, m.process.Stop())
	}
	return m, nil
}

// Stop ends MeshServer.
func (m *Mesh) Stop() error { return m.process.Stop() }

// DataDir is where MeshServer keeps what it must not forget.
func (m *Mesh) DataDir() string { return filepath.Join(m.Dir, m.Name+"-data") }

// Sidecar is a sidecar's place in the mesh.
type Sidecar struct {
	Name      string // of its files in Dir
	Dir       string
	Core      int
	Mesh      *Mesh
	Port      int    // of the explicit proxy
	Admin     int    // port
	AccessLog string // file; empty: none
}

// StartSidecar starts a sidecar and returns once it is ready.
func StartSidecar(ctx context.Context, s Sidecar) (*Process, error) {
	if s.Mesh == nil {
		return nil, errors.New("a sidecar needs a MeshServer")
	}
	file, err := render(s.Dir, "sidecar.yaml", s)
	if err != nil {
		return nil, err
	}
	p, err := Start(Command{Name: s.Name, Path: filepath.Join(s.Mesh.Bin, "sidecar"), Args: []string{"-config", file}, Dir: s.Dir, Core: s.Core})
	if err != nil {
		return nil, err
	}
	err = p.Await(ctx, func(ctx context.Context) error {
		_, err := Get(ctx, fmt.Sprintf("http://127.0.0.1:%d/ready", s.Admin))
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func startIsthmus(ctx context.Context, cfg Config, v *values) (*Process, error) {
	return StartSidecar(ctx, Sidecar{
		Name: "sidecar", Dir: cfg.Dir, Core: cfg.Core, Mesh: cfg.Mesh, Port: v.Port, Admin: v.Admin, AccessLog: v.AccessLog,
	})
}

// Profile returns a CPU profile of a sidecar over the coming time, in the form of
// pprof.
func (r *Running) Profile(ctx context.Context, d time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, d+10*time.Second)
	defer cancel()
	return get(ctx, fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/profile?seconds=%d", r.admin, max(1, int(d.Seconds()))))
}
