package watch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a small Consul: a catalog with one index, blocking queries, and the
// ways in which real ones fail.
type agent struct {
	mu       sync.Mutex // guards the fields below
	index    uint64
	dcs      map[string]map[string][]wire.Entry // data centre, service
	changed  map[string]uint64                  // data centre + "/" + service: index of its last change
	broken   map[string][]wire.Rejected         // service: entries that cannot be read
	fail     map[string]error                   // "list", "ping", a service, a data centre or "" for all
	hide     map[string]bool                    // services that the token may not see
	noIndex  bool                               // answers name no index
	eager    bool                               // blocking queries return at once
	wake     chan struct{}                      // closed and replaced on each change
	flying   int
	most     int
	limit    int // answer Overloaded over so many at once; 0 means none
	lists    int // queries of the list
	services int // queries of services
}

func newAgent() *agent {
	return &agent{
		index: 10, dcs: map[string]map[string][]wire.Entry{"": {}}, changed: map[string]uint64{}, broken: map[string][]wire.Rejected{},
		fail: map[string]error{}, hide: map[string]bool{}, wake: make(chan struct{}),
	}
}

// do changes the agent and wakes whoever waits.
func (a *agent) do(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.index++
	f()
	close(a.wake)
	a.wake = make(chan struct{})
}

// put registers an instance; call within do.
func (a *agent) put(dc, service, id, addr string, port int, change ...func(*wire.Entry)) {
	e := wire.Entry{
		Node:    &wire.Node{Node: "n1", Address: "10.9.9.9", Datacenter: dc},
		Service: &wire.Service{ID: id, Service: service, Address: addr, Port: port},
	}
	for _, f := range change {
		f(&e)
	}
	list := slices.DeleteFunc(slices.Clone(a.dcs[dc][service]), func(e wire.Entry) bool { return e.Service.ID == id })
	if a.dcs[dc] == nil {
		a.dcs[dc] = map[string][]wire.Entry{}
	}
	a.dcs[dc][service] = append(list, e)
	a.changed[dc+"/"+service], a.changed[dc+"/"] = a.index, a.index
}

// remove deregisters an instance; call within do.
func (a *agent) remove(dc, service, id string) {
	list := slices.DeleteFunc(slices.Clone(a.dcs[dc][service]), func(e wire.Entry) bool { return e.Service.ID == id })
	a.dcs[dc][service] = list
	if len(list) == 0 {
		delete(a.dcs[dc], service)
	}
	a.changed[dc+"/"+service], a.changed[dc+"/"] = a.index, a.index
}

// ask blocks as Consul does and answers with what get returns under the lock.
func (a *agent) ask(ctx context.Context, q wire.Query, service string, names []string, get func()) (wire.Meta, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flying++
	a.most = max(a.most, a.flying)
	defer func() { a.flying-- }()
	end := time.Now().Add(q.Wait)
	for {
		for _, name := range append(names, q.Datacenter+"!", "") {
			if err := a.fail[name]; err != nil {
				return wire.Meta{}, err
			}
		}
		if a.limit > 0 && a.flying > a.limit {
			return wire.Meta{}, &wire.Error{Kind: wire.Overloaded, Text: "429"}
		}
		index := max(1, a.changed[q.Datacenter+"/"+service])
		if q.Index == 0 || index > q.Index || a.eager || !time.Now().Before(end) {
			get()
			if a.noIndex {
				index = 0
			}
			return wire.Meta{Index: index}, nil
		}
		wake := a.wake
		a.mu.Unlock()
		timer := time.NewTimer(time.Until(end))
		select {
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		a.mu.Lock()
		if ctx.Err() != nil {
			return wire.Meta{}, context.Cause(ctx)
		}
	}
}

func (a *agent) Services(ctx context.Context, q wire.Query) (wire.Catalog, wire.Meta, error) {
	out, hidden := wire.Catalog{}, false
	a.count(&a.lists)
	meta, err := a.ask(ctx, q, "", []string{"list"}, func() {
		for name, list := range a.dcs[q.Datacenter] {
			if a.hide[name] {
				hidden = true
				continue
			}
			out[name] = []string{}
			for _, e := range list {
				out[name] = append(out[name], e.Service.Tags...)
			}
		}
	})
	meta.Filtered = hidden
	return out, meta, err
}

func (a *agent) Health(ctx context.Context, service string, q wire.Query) (wire.Instances, wire.Meta, error) {
	var out wire.Instances
	hidden := false
	a.count(&a.services)
	meta, err := a.ask(ctx, q, service, []string{service}, func() {
		if hidden = a.hide[service]; !hidden {
			out = wire.Instances{Entries: slices.Clone(a.dcs[q.Datacenter][service]), Rejected: a.broken[service]}
		}
	})
	meta.Filtered = hidden
	return out, meta, err
}

func (a *agent) Ping(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fail["ping"]
}

func (a *agent) count(n *int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	*n++
}

// asked returns how many queries of lists and of services there were since the
// last call, and the most at once.
func (a *agent) asked() (lists, services, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lists, services, most = a.lists, a.services, a.most
	a.lists, a.services, a.most = 0, 0, a.flying
	return lists, services, most
}

// mesh is a sink that keeps what a supervisor would hold.
type mesh struct {
	mu       sync.Mutex // guards the fields below
	services map[model.Host]*model.Service
	status   model.SourceStatus
	updates  []model.Update
}

func (m *mesh) Apply(u model.Update) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.Full || m.services == nil {
		m.services = map[model.Host]*model.Service{}
	}
	for _, s := range u.Services {
		m.services[s.Host] = s
	}
	for _, h := range u.Removed {
		delete(m.services, h)
	}
	m.updates = append(m.updates, u)
}

func (m *mesh) Report(s model.SourceStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = s
}

// Held implements bridges.Holder.
func (m *mesh) Held(h model.Host) *model.Service {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.services[h]
}

func (m *mesh) said() model.SourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// took returns the updates since the last call.
func (m *mesh) took() []model.Update {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.updates
	m.updates = nil
	return out
}

// all renders everything held: host to its endpoints.
func (m *mesh) all() map[string][]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]string{}
	for h, s := range m.services {
		list := []string{}
		for _, e := range s.Endpoints {
			list = append(list, fmt.Sprintf("%v %v", e.Address, e.Health))
		}
		out[string(h)] = list
	}
	return out
}

// following is a follower that runs.
type following struct {
	*mesh
	agent   *agent
	follow  *Follower
	stop    func() error
	metrics *Metrics
}

// follow runs a follower of a in the bubble of the test until its end.
func follow(t *testing.T, a *agent, m *mesh, change ...func(*Config)) *following {
	t.Helper()
	metrics, err := NewMetrics("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Name: "test", Kind: "consul", Servers: []Registry{a}, Datacenters: []string{""},
		Rules: Rules{Namespace: "default", Protocol: model.HTTP}, Wait: 5 * time.Minute, Queries: 150, QueriesHTTP2: 1000,
		Heartbeat: 10 * time.Second, HeartbeatTime: 5 * time.Second, Log: slog.New(slog.DiscardHandler), Metrics: metrics,
	}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f := &following{mesh: m, agent: a, follow: New(cfg), metrics: metrics}
	ended := make(chan error, 1)
	go func() { ended <- f.follow.Run(ctx, m) }()
	f.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	synctest.Wait()
	return f
}

// pass lets the time of the bubble go by and then waits until nothing moves.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
