package bridges

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is a Source that plays one function a run.
type scripted struct {
	name string
	runs []func(ctx context.Context, sink Sink) error // the last one is repeated
	n    int
}

func (s *scripted) Name() string { return s.name }
func (s *scripted) Kind() string { return "scripted" }

func (s *scripted) Run(ctx context.Context, sink Sink) error {
	run := s.runs[min(s.n, len(s.runs)-1)]
	s.n++
	return run(ctx, sink)
}

// stay waits for the end of ctx, as a healthy source does.
func stay(ctx context.Context, _ Sink) error {
	<-ctx.Done()
	return nil
}

// mesh is a Sink that writes down what it hears.
type mesh struct {
	mu       sync.Mutex
	updates  []model.Update
	statuses []model.SourceStatus
	services map[model.Host]*model.Service
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
	m.statuses = append(m.statuses, s)
}

func (m *mesh) hosts() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for h := range m.services {
		names = append(names, string(h))
	}
	slices.Sort(names)
	return names
}

func (m *mesh) last() model.SourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.statuses) == 0 {
		return model.SourceStatus{}
	}
	return m.statuses[len(m.statuses)-1]
}

// phases are the distinct phases in their order.
func (m *mesh) phases() []model.SourcePhase {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []model.SourcePhase
	for _, s := range m.statuses {
		if len(out) == 0 || out[len(out)-1] != s.Phase {
			out = append(out, s.Phase)
		}
	}
	return out
}

// service makes a service with n endpoints.
func service(host string, n int) *model.Service {
	s := &model.Service{Host: model.Host(host), Name: host, Namespace: "default", Ports: []model.Port{{Number: 80, Protocol: model.HTTP, Name: "http"}}}
	for i := range n {
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(1 + i%250)}), 8080), Port: 80,
			Weight: uint32(i), Health: model.Health(i % 3), Labels: model.NewLabels(map[string]string{"version": fmt.Sprint("v", i%2), "app": host}),
			Locality: model.Locality{Zone: "a"}, Changed: time.Unix(1_700_000_000+int64(i), 0).UTC(),
		})
	}
	return s
}

func workload(name string) *model.Workload {
	return &model.Workload{
		Name: name, Namespace: "default", App: "shop", Address: netip.MustParseAddr("10.0.0.9"), Labels: model.NewLabels(map[string]string{"a": "b"}),
		Weight: 3, Health: model.Draining, MeshTLS: true,
		Inbound: []model.Inbound{{
			App: netip.MustParseAddrPort("127.0.0.1:8080"), Listen: netip.MustParseAddrPort("0.0.0.0:20881"), Protocol: model.GRPC, Service: "cart", ServicePort: 80,
		}},
	}
}

// full is a run that reports all of these and stays.
func full(services ...*model.Service) func(context.Context, Sink) error {
	return func(ctx context.Context, sink Sink) error {
		sink.Apply(model.Update{Full: true, Services: services})
		sink.Report(model.SourceStatus{Phase: model.Live})
		return stay(ctx, sink)
	}
}
