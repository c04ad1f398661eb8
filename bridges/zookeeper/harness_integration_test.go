//go:build integration

package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/bridgetest"
	"github.com/isthmus-mesh/isthmus/bridges/zookeeper"
	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/testenv/faultproxy"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// layout says how a harness registers an instance.
type layout interface {
	// folder is where a service's entries are.
	folder(service string) string
	// entry is the node's name and data. A changed instance has another name,
	// or the same and other data.
	entry(i bridgetest.Instance, when time.Time) (name string, data []byte)
}

type dubboLayout struct{}

func (dubboLayout) folder(service string) string { return "/dubbo/" + service + "/providers" }

func (dubboLayout) entry(i bridgetest.Instance, when time.Time) (string, []byte) {
	return wire.Provider{Protocol: "dubbo", Address: i.Address, Path: i.Service, Params: map[string]string{
		"interface": i.Service, "version": i.Version, "application": "shop", "methods": "a,b", "side": "provider",
		"timestamp": fmt.Sprint(when.UnixMilli()), "pid": "1", "dynamic": "true", "release": "3.3.6",
	}}.Encode(), nil
}

type springLayout struct{}

func (springLayout) folder(service string) string { return "/services/" + service }

func (springLayout) entry(i bridgetest.Instance, when time.Time) (string, []byte) {
	id := fmt.Sprintf("id-%s-%d", i.Address.Addr(), i.Address.Port())
	data, err := wire.Instance{
		Name: i.Service, ID: id, Address: i.Address.Addr(), Port: i.Address.Port(), Class: wire.ClassSpring, Enabled: true, Registered: when,
		Metadata: map[string]string{"instance_status": "UP", "version": i.Version},
	}.Encode()
	if err != nil {
		panic(err) // strings always encode
	}
	return id, data
}

// harness drives a real ZooKeeper.
type harness struct{ layout layout }

// Start implements bridgetest.Harness.
func (h harness) Start(t testing.TB) bridgetest.Registry {
	r := &registry{ZooKeeper: peers.StartZooKeeper(t), layout: h.layout, nodes: map[string]string{}}
	r.connect(t)
	return r
}

// Proxy implements bridgetest.Harness.
func (h harness) Proxy(t testing.TB, target string) bridgetest.Proxy {
	return faultproxy.Start(t, target)
}

// registry is a ZooKeeper and the session of the applications in it.
type registry struct {
	*peers.ZooKeeper
	layout layout
	conn   *zk.Conn

	mu    sync.Mutex        // guards the field below
	nodes map[string]string // path of the node by service and address
}

func (r *registry) connect(t testing.TB) {
	conn, _, err := zk.Connect([]string{r.ZooKeeper.Addr}, 10*time.Second, zk.WithLogger(silent{}), zk.WithDialer(dialPatient))
	if err != nil {
		t.Fatal(err)
	}
	r.conn = conn
	t.Cleanup(conn.Close)
}

// dialPatient makes connections whose reads wait for 4 s at most, as applications'
// clients do. This library alone would wait for a minute when a server that is
// just starting takes a connection and forgets it, and lose its session.
func dialPatient(network, address string, _ time.Duration) (net.Conn, error) {
	c, err := net.DialTimeout(network, address, 2*time.Second)
	return patient{c}, err
}

type patient struct{ net.Conn }

func (p patient) SetReadDeadline(time.Time) error {
	return p.Conn.SetReadDeadline(time.Now().Add(4 * time.Second))
}

// silent drops what the client says about connections that tests cut.
type silent struct{}

func (silent) Printf(string, ...any) {}

func (r *registry) Addr() string { return r.ZooKeeper.Addr }

func (r *registry) Source(t testing.TB, via string) bridges.Source {
	return newSource(t, zookeeper.Config{Name: "zk-test", Servers: []string{via}, SessionTimeout: 2 * time.Second})
}

func newSource(t testing.TB, cfg zookeeper.Config) *zookeeper.Source {
	t.Helper()
	s, err := zookeeper.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open is the ACL of everything that applications write.
func open() []zk.ACL { return zk.WorldACL(zk.PermAll) }

// try repeats what the death of a connection interrupted.
func try(t testing.TB, what string, do func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := bridges.Retry(ctx, 10*time.Millisecond, 200*time.Millisecond, func(context.Context) error { return do() })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (r *registry) mkdir(t testing.TB, folder string) {
	t.Helper()
	if folder == "/" {
		return
	}
	r.mkdir(t, path.Dir(folder))
	try(t, "create "+folder, func() error {
		_, err := r.conn.Create(folder, nil, zk.FlagPersistent, open())
		if errors.Is(err, zk.ErrNodeExists) {
			return nil
		}
		return err
	})
}

func (r *registry) Put(t testing.TB, i bridgetest.Instance) {
	t.Helper()
	r.put(t, i, true)
}

func (r *registry) put(t testing.TB, i bridgetest.Instance, mkdir bool) {
	t.Helper()
	folder := r.layout.folder(i.Service)
	if mkdir {
		r.mkdir(t, folder)
	}
	name, data := r.layout.entry(i, time.Now())
	node := folder + "/" + name
	try(t, "register", func() error {
		_, err := r.conn.Create(node, data, zk.FlagEphemeral, open())
		if errors.Is(err, zk.ErrNodeExists) {
			_, err = r.conn.Set(node, data, -1)
		}
		return err
	})
	key := i.Service + " " + i.Address.String()
	r.mu.Lock()
	old := r.nodes[key]
	r.nodes[key] = node
	r.mu.Unlock()
	if old != "" && old != node {
		r.delete(t, old)
	}
}

func (r *registry) delete(t testing.TB, node string) {
	t.Helper()
	try(t, "delete", func() error {
		err := r.conn.Delete(node, -1)
		if errors.Is(err, zk.ErrNoNode) {
			return nil
		}
		return err
	})
}

func (r *registry) PutAll(t testing.TB, all []bridgetest.Instance) {
	t.Helper()
	folders := map[string]bool{}
	for _, i := range all {
		if folder := r.layout.folder(i.Service); !folders[folder] {
			folders[folder] = true
			r.mkdir(t, folder)
		}
	}
	var group sync.WaitGroup
	for part := range slices.Chunk(all, 1+len(all)/16) {
		group.Go(func() {
			for _, i := range part {
				r.put(t, i, false)
			}
		})
	}
	group.Wait()
}

func (r *registry) Remove(t testing.TB, i bridgetest.Instance) {
	t.Helper()
	key := i.Service + " " + i.Address.String()
	r.mu.Lock()
	node := r.nodes[key]
	delete(r.nodes, key)
	r.mu.Unlock()
	r.delete(t, node)
}

func (r *registry) PutBroken(t testing.TB, service string) string {
	t.Helper()
	folder := r.layout.folder(service)
	r.mkdir(t, folder)
	node := folder + "/broken%zz"
	try(t, "store something broken", func() error {
		_, err := r.conn.Create(node, []byte(`{"name":17}`), zk.FlagEphemeral, open())
		return err
	})
	return "broken%zz"
}

// Break overwrites the data of the instance's node. A Dubbo provider's node says all
// by its name, which nobody can change.
func (r *registry) Break(t testing.TB, i bridgetest.Instance) string {
	t.Helper()
	if _, dubbo := r.layout.(dubboLayout); dubbo {
		return ""
	}
	r.mu.Lock()
	node := r.nodes[i.Service+" "+i.Address.String()]
	r.mu.Unlock()
	try(t, "overwrite "+node, func() error {
		_, err := r.conn.Set(node, []byte(`{"name":17}`), -1)
		return err
	})
	return path.Base(node)
}

// Expire ends the session of all applications, as the server does when they fall
// silent: one transaction that deletes all they registered.
func (r *registry) Expire(t testing.TB) {
	t.Helper()
	r.conn.Close()
	r.connect(t)
	r.mu.Lock()
	nodes := slices.Collect(maps.Values(r.nodes))
	clear(r.nodes)
	r.mu.Unlock()
	for _, node := range nodes {
		try(t, "see it go", func() error {
			there, _, err := r.conn.Exists(node)
			if there {
				return errors.New("still there: " + node)
			}
			return err
		})
	}
}

func (r *registry) Kill(testing.TB)    { r.ZooKeeper.Kill() }
func (r *registry) Restart(testing.TB) { r.ZooKeeper.Start() }
func (r *registry) Durable() bool      { return true }
