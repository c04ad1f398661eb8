package watch

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zoo is a small ZooKeeper: a tree with one-shot watches, and errors where a test
// wants them.
type zoo struct {
	t *testing.T

	mu       sync.Mutex
	nodes    map[string]*zooNode
	watches  map[string]bool // path, "list " or "get " before it
	fail     map[string]error
	before   map[string]func() // runs once, before path is read; without mu
	changed  map[string]struct{}
	requests int
}

type zooNode struct {
	data  string
	mtime int64
}

func newZoo(t *testing.T) *zoo {
	return &zoo{
		t: t, nodes: map[string]*zooNode{"/": {}}, watches: map[string]bool{}, fail: map[string]error{},
		before: map[string]func(){}, changed: map[string]struct{}{},
	}
}

// fire tells of a change at path to whoever watches it.
func (z *zoo) fire(kind, path string) {
	if z.watches[kind+path] {
		delete(z.watches, kind+path)
		z.changed[path] = struct{}{}
	}
}

// put creates or changes a node, and its parents.
func (z *zoo) put(node, data string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.putLocked(node, data)
}

func (z *zoo) putLocked(node, data string) {
	if parent := path.Dir(node); z.nodes[parent] == nil {
		z.putLocked(parent, "")
	}
	if old := z.nodes[node]; old != nil {
		old.data, old.mtime = data, time.Now().UnixMilli()
		z.fire("get ", node)
		return
	}
	z.nodes[node] = &zooNode{data: data, mtime: time.Now().UnixMilli()}
	z.fire("exists ", node)
	z.fire("list ", path.Dir(node))
}

// remove deletes a node and all below it.
func (z *zoo) remove(node string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for other := range z.nodes {
		if other == node || strings.HasPrefix(other, node+"/") {
			delete(z.nodes, other)
			z.fire("get ", other)
			z.fire("list ", other)
			z.fire("list ", path.Dir(other))
		}
	}
}

func (z *zoo) setFail(path string, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.fail[path] = err
}

func (z *zoo) take() map[string]struct{} {
	z.mu.Lock()
	defer z.mu.Unlock()
	paths := z.changed
	z.changed = map[string]struct{}{}
	return paths
}

func (z *zoo) read(path string) (*zooNode, error) {
	z.mu.Lock()
	hook := z.before[path]
	delete(z.before, path)
	z.mu.Unlock()
	if hook != nil {
		hook()
	}
	z.mu.Lock()
	z.requests++
	if err := z.fail[path]; err != nil {
		return nil, err
	}
	if n := z.nodes[path]; n != nil {
		return n, nil
	}
	return nil, zk.ErrNoNode
}

func (z *zoo) watch(kind, path string) {
	if z.watches[kind+path] {
		z.t.Errorf("a second watch was set on %s%s while the first stands", kind, path)
	}
	z.watches[kind+path] = true
}

func (z *zoo) list(node string, watch bool) ([]string, error) {
	_, err := z.read(node)
	defer z.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if watch {
		z.watch("list ", node)
	}
	var names []string
	for other := range z.nodes {
		if other != "/" && path.Dir(other) == node {
			names = append(names, path.Base(other))
		}
	}
	return names, nil
}

func (z *zoo) get(node string) ([]byte, int64, error) {
	n, err := z.read(node)
	defer z.mu.Unlock()
	if err != nil {
		return nil, 0, err
	}
	z.watch("get ", node)
	return []byte(n.data), n.mtime, nil
}

func (z *zoo) absent(node string) (bool, error) {
	_, err := z.read(node)
	defer z.mu.Unlock()
	if errors.Is(err, zk.ErrNoNode) {
		z.watch("exists ", node)
		return true, nil
	}
	return false, err
}

// mesh is a Sink and Holder that writes down what it hears.
type mesh struct {
	held     map[model.Host]*model.Service
	updates  []model.Update
	statuses []model.SourceStatus
}

func (m *mesh) Apply(u model.Update) {
	if u.Full {
		clear(m.held)
	}
	for _, s := range u.Services {
		m.held[s.Host] = s
	}
	for _, h := range u.Removed {
		delete(m.held, h)
	}
	m.updates = append(m.updates, u)
}

func (m *mesh) Report(s model.SourceStatus)         { m.statuses = append(m.statuses, s) }
func (m *mesh) Held(host model.Host) *model.Service { return m.held[host] }
func (m *mesh) last() model.SourceStatus            { return m.statuses[len(m.statuses)-1] }

// endpoints lists "address version health" of a host.
func (m *mesh) endpoints(host string) []string {
	var out []string
	if s := m.held[model.Host(host)]; s != nil {
		for _, e := range s.Endpoints {
			version, _ := e.Labels.Get("version")
			out = append(out, strings.TrimRight(fmt.Sprintf("%v %s %v", e.Address, version, e.Health), " "))
		}
	}
	return out
}

// game is a follower on a zoo, driven by hand inside a bubble.
type game struct {
	t *testing.T
	*zoo
	*mesh
	f      *follower
	memory *Memory
}

var bothRoots = []Root{{Dubbo, "/dubbo"}, {Spring, "/services"}}

func play(t *testing.T, z *zoo, m *mesh, roots ...Root) *game {
	return resume(t, z, m, &Memory{}, roots...)
}

// resume plays with what an earlier session remembered.
func resume(t *testing.T, z *zoo, m *mesh, memory *Memory, roots ...Root) *game {
	cfg := Config{Roots: roots, Namespace: "default", Log: slog.New(slog.DiscardHandler)}
	return &game{t: t, zoo: z, mesh: m, f: newFollower(cfg, z, memory, m), memory: memory}
}

// settle lets d pass, in which the follower reads what it wants to.
func (g *game) settle(d time.Duration) {
	end := time.After(d)
	for {
		synctest.Wait()
		g.f.changed(g.take(), time.Now())
		g.f.start(time.Now())
		g.f.status(g.t.Context(), time.Now())
		select {
		case r := <-g.f.readings:
			g.f.take(r, time.Now())
		case <-g.f.timer():
		case <-end:
			if g.f.reads == 0 {
				g.f.status(g.t.Context(), time.Now()) // as a heartbeat makes it
				return
			}
			end = time.After(time.Nanosecond)
		}
	}
}

func (g *game) want(host string, endpoints ...string) {
	g.t.Helper()
	if got := g.endpoints(host); !slices.Equal(got, endpoints) {
		g.t.Errorf("%s has %q, want %q", host, got, endpoints)
	}
}

func (g *game) wantSkipped(parts ...string) {
	g.t.Helper()
	skipped := g.last().Skipped
	ok := len(skipped) == len(parts)
	for i := 0; ok && i < len(parts); i++ {
		ok = strings.Contains(skipped[i].Where+": "+skipped[i].Reason, parts[i])
	}
	if !ok {
		g.t.Errorf("skipped %q, want %q", skipped, parts)
	}
}

// provider is the path of a Dubbo provider's node.
func provider(iface, address, version string, params ...string) string {
	m := map[string]string{"interface": iface, "version": version, "application": "shop"}
	for _, p := range params {
		key, value, _ := strings.Cut(p, "=")
		m[key] = value
	}
	protocol := "dubbo"
	if p := m["protocol"]; p != "" {
		protocol = p
		delete(m, "protocol")
	}
	name := wire.Provider{Protocol: protocol, Address: netip.MustParseAddrPort(address), Path: iface, Params: m}.Encode()
	return "/dubbo/" + iface + "/providers/" + name
}

// spring is the data of a Spring instance.
func spring(name, address, version, status string) string {
	a := netip.MustParseAddrPort(address)
	data, err := wire.Instance{
		Name: name, ID: address, Address: a.Addr(), Port: a.Port(), Class: wire.ClassSpring, Enabled: true,
		Metadata: map[string]string{"instance_status": status, "version": version},
	}.Encode()
	if err != nil {
		panic(err)
	}
	return string(data)
}
