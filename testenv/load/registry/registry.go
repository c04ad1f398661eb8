// Package registry starts the real registries from which MeshServer learns of
// endpoints, and writes to them as applications do.
package registry

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
)

// Names of the registries.
const (
	ZooKeeper = "zookeeper"
	Consul    = "consul"
)

// Names returns all registries.
func Names() []string { return []string{ZooKeeper, Consul} }

// Instance is what an application registers.
type Instance struct {
	Service string
	Address netip.AddrPort
}

// Registry is a registry that serves.
type Registry struct {
	// Settings is the registry's entry in meshserver.yaml.
	Settings string
	// Register adds an instance; it returns when the registry has taken it. Any
	// number of goroutines may call it.
	Register func(context.Context, Instance) error

	process *subject.Process
	leave   func()
}

// Start starts a registry with its files in dir.
func Start(ctx context.Context, name, dir string) (*Registry, error) {
	switch name {
	case ZooKeeper:
		return startZooKeeper(ctx, dir)
	case Consul:
		return startConsul(ctx, dir)
	}
	return nil, fmt.Errorf("registry %q is not known", name)
}

// Stop ends the registry.
func (r *Registry) Stop() error {
	if r.leave != nil {
		r.leave()
	}
	return r.process.Stop()
}

func address() (string, error) {
	port, err := subject.Port()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}
