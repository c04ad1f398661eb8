package server_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// mirror is a client that acknowledges everything and holds what it was sent.
type mirror struct {
	raw *rawClient

	mu     sync.Mutex // guards all below, and sending
	held   map[resource.Type]map[string]string
	latest map[resource.Type]response
	names  map[resource.Type][]string // SotW: names of the subscription
}

func newMirror(t *testing.T, conn *grpc.ClientConn, delta bool) *mirror {
	t.Helper()
	m := &mirror{
		held: map[resource.Type]map[string]string{}, latest: map[resource.Type]response{},
		names: map[resource.Type][]string{},
	}
	m.raw = openDelta(t, conn)
	if !delta {
		m.raw = openSotW(t, conn)
	}
	m.raw.node = &corev3.Node{Id: "mirror"}
	for _, k := range []resource.Type{resource.Cluster, resource.Endpoints} {
		m.held[k] = map[string]string{}
	}
	go func() {
		for r := range m.raw.recv {
			m.take(r)
		}
	}()
	return m
}

func (m *mirror) take(r response) {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := m.held[r.t]
	if !m.raw.delta && r.t == resource.Cluster {
		clear(held)
	}
	for n, body := range r.raw {
		if r.t == resource.Cluster || slices.Contains(m.names[r.t], n) {
			held[n] = string(body)
		}
	}
	for _, n := range r.removed {
		delete(held, n)
	}
	m.latest[r.t] = r
	if m.raw.delta {
		_ = m.raw.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.t.URL(), ResponseNonce: r.nonce}) // the end is seen by who waits
		return
	}
	_ = m.raw.stream.SendMsg(&discoveryv3.DiscoveryRequest{
		TypeUrl: r.t.URL(), ResponseNonce: r.nonce, VersionInfo: r.version, ResourceNames: m.names[r.t],
	})
}

// subscribe sets the names of load assignments that are wanted.
func (m *mirror) subscribe(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.names[resource.Endpoints]
	m.names[resource.Endpoints] = names
	var more, fewer []string
	for _, n := range names {
		if !slices.Contains(old, n) {
			more = append(more, n)
		}
	}
	for _, n := range old {
		if !slices.Contains(names, n) {
			fewer = append(fewer, n)
			delete(m.held[resource.Endpoints], n)
		}
	}
	if m.raw.delta {
		m.raw.send(&discoveryv3.DeltaDiscoveryRequest{
			TypeUrl: resource.Endpoints.URL(), ResourceNamesSubscribe: more, ResourceNamesUnsubscribe: fewer,
		})
		return
	}
	last := m.latest[resource.Endpoints]
	m.raw.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), ResponseNonce: last.nonce, VersionInfo: last.version, ResourceNames: names,
	})
}

// state copies what is held; of load assignments those that truth has: the state of
// the world has no deletion for them.
func (m *mirror) state(truth map[resource.Type]map[string]string) map[resource.Type]map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[resource.Type]map[string]string{
		resource.Cluster: maps.Clone(m.held[resource.Cluster]), resource.Endpoints: {},
	}
	for n, body := range m.held[resource.Endpoints] {
		if _, exists := truth[resource.Endpoints][n]; exists || m.raw.delta {
			all[resource.Endpoints][n] = body
		}
	}
	return all
}

// reference is one of go-control-plane's caches behind its server.
type reference struct {
	conn *grpc.ClientConn
	set  func(*testing.T, *resource.Snapshot)
}

func items(t *testing.T, s *resource.Snapshot, k resource.Type) map[string]types.Resource {
	t.Helper()
	all := map[string]types.Resource{}
	for n, r := range s.Tables[k].All() {
		m, err := (&anypb.Any{TypeUrl: k.URL(), Value: r.Body}).UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		all[n] = m
	}
	return all
}

func newReference(t *testing.T, linear bool) *reference {
	t.Helper()
	ref := &reference{}
	var c cache.Cache
	if linear {
		caches := map[string]cache.Cache{}
		for _, k := range []resource.Type{resource.Cluster, resource.Endpoints} {
			caches[k.URL()] = cache.NewLinearCache(k.URL())
		}
		c = &cache.MuxCache{
			Classify:      func(r *cache.Request) string { return r.GetTypeUrl() },
			ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
			Caches:        caches,
		}
		ref.set = func(t *testing.T, s *resource.Snapshot) {
			for _, k := range []resource.Type{resource.Cluster, resource.Endpoints} {
				caches[k.URL()].(*cache.LinearCache).SetResources(items(t, s, k))
			}
		}
	} else {
		sc := cache.NewSnapshotCache(false, cache.IDHash{}, nil)
		c = sc
		version := 0
		ref.set = func(t *testing.T, s *resource.Snapshot) {
			version++
			snap, err := cache.NewSnapshot(fmt.Sprint(version), map[string][]types.Resource{
				resource.Cluster.URL():   slices.Collect(maps.Values(items(t, s, resource.Cluster))),
				resource.Endpoints.URL(): slices.Collect(maps.Values(items(t, s, resource.Endpoints))),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := sc.SetSnapshot(t.Context(), "mirror", snap); err != nil {
				t.Fatal(err)
			}
		}
	}
	ref.conn = serveReference(t, c)
	return ref
}

func serveReference(t *testing.T, c cache.Cache) *grpc.ClientConn {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	lis := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, gcpserver.NewServer(ctx, c, nil))
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///oracle", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestSameInputsSameResourcesAsGoControlPlane(t *testing.T) {
	for _, linear := range []bool{true, false} {
		for _, delta := range []bool{true, false} {
			for seed := range uint64(3) {
				t.Run(fmt.Sprintf("linear=%v/delta=%v/%d", linear, delta, seed), func(t *testing.T) {
					agree(t, linear, delta, rand.New(rand.NewPCG(seed, 9)))
				})
			}
		}
	}
}

func agree(t *testing.T, linear, delta bool, rnd *rand.Rand) {
	w := servertest.NewWorld(cds("c0", 0))
	ours := newMirror(t, servertest.Connect(t, w, server.Config{Log: quietLog()}), delta)
	ref := newReference(t, linear)
	ref.set(t, w.Snapshot())
	theirs := newMirror(t, ref.conn, delta)
	names := []string{"c0"}
	for _, m := range []*mirror{ours, theirs} {
		m.mu.Lock()
		m.raw.subscribe(resource.Cluster)
		m.mu.Unlock()
		m.subscribe(names)
	}
	for step := range 40 {
		var put []*resource.Resource
		var del []resource.Key
		for range 1 + rnd.IntN(5) {
			k := []resource.Type{resource.Cluster, resource.Endpoints}[rnd.IntN(2)]
			name := fmt.Sprintf("c%d", rnd.IntN(12))
			if rnd.IntN(4) == 0 {
				del = append(del, key(k, name))
			} else {
				put = append(put, servertest.Simple(k, name, rnd.IntN(1000)))
			}
		}
		if rnd.IntN(4) != 0 {
			w.Change(put, del)
			ref.set(t, w.Snapshot())
		} else { // not at once with a change: the reference loses names then
			names = nil
			for i := range 12 {
				if rnd.IntN(2) == 0 {
					names = append(names, fmt.Sprintf("c%d", i))
				}
			}
			if len(names) == 0 {
				names = []string{"c0"}
			}
			ours.subscribe(names)
			theirs.subscribe(names)
		}
		truth := truthOf(w.Snapshot(), names)
		for who, m := range map[string]*mirror{"this server": ours, "go-control-plane": theirs} {
			waitFor(t, who, step, truth, m)
		}
	}
}

// Changes and subscriptions at the same time, and without waiting for the client in
// between: what it holds in the end is what there is.
func TestClientsConverge(t *testing.T) {
	for _, delta := range []bool{true, false} {
		for seed := range uint64(5) {
			t.Run(fmt.Sprintf("delta=%v/%d", delta, seed), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				w := servertest.NewWorld(cds("c0", 0))
				conn := servertest.Connect(t, w, server.Config{Log: quietLog()})
				var mirrors []*mirror
				for range 3 {
					m := newMirror(t, conn, delta)
					m.mu.Lock()
					m.raw.subscribe(resource.Cluster)
					m.mu.Unlock()
					mirrors = append(mirrors, m)
				}
				var names []string
				for step := range 300 {
					k := []resource.Type{resource.Cluster, resource.Endpoints}[rnd.IntN(2)]
					name := fmt.Sprintf("c%d", rnd.IntN(8))
					switch rnd.IntN(4) {
					case 0:
						w.Delete(key(k, name))
					case 1:
						names = []string{"c1"}
						for i := range 8 {
							if rnd.IntN(2) == 0 {
								names = append(names, fmt.Sprintf("c%d", i))
							}
						}
						names = slices.Compact(slices.Sorted(slices.Values(names)))
						for _, m := range mirrors {
							m.subscribe(names)
						}
					default:
						w.Put(servertest.Simple(k, name, step))
					}
					if step%50 == 49 {
						truth := truthOf(w.Snapshot(), names)
						for i, m := range mirrors {
							waitFor(t, fmt.Sprint("mirror ", i), step, truth, m)
						}
					}
				}
			})
		}
	}
}

func truthOf(s *resource.Snapshot, names []string) map[resource.Type]map[string]string {
	truth := map[resource.Type]map[string]string{resource.Cluster: {}, resource.Endpoints: {}}
	for n, r := range s.Tables[resource.Cluster].All() {
		truth[resource.Cluster][n] = string(r.Body)
	}
	for _, n := range names {
		if r := s.Get(resource.Endpoints, n); r != nil {
			truth[resource.Endpoints][n] = string(r.Body)
		}
	}
	return truth
}

func waitFor(t *testing.T, who string, step int, truth map[resource.Type]map[string]string, m *mirror) {
	t.Helper()
	deadline := time.After(answerTime)
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for {
		got := m.state(truth)
		if reflect.DeepEqual(truth, got) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("step %d: %s (-truth +client):\n%s", step, who, cmp.Diff(truth, got))
		case <-tick.C:
		}
	}
}
