package bridgetest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheSmallestRegistryPasses(t *testing.T) { Run(t, newMemory(faults{})) }

func TestLagOfTheSmallestRegistry(t *testing.T) {
	lags := Lag(t, newMemory(faults{}), "", 5, 20)
	if len(lags) != 20 || slices.Min(lags) <= 0 || slices.Max(lags) > patience {
		t.Errorf("lags %v", lags)
	}
}

// notes is a testing.TB that writes failures down instead of failing.
type notes struct {
	testing.TB
	mu    sync.Mutex
	texts []string
}

func (n *notes) Helper() {}

func (n *notes) add(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.texts = append(n.texts, text)
}

func (n *notes) Error(args ...any)                 { n.add(fmt.Sprint(args...)) }
func (n *notes) Errorf(format string, args ...any) { n.add(fmt.Sprintf(format, args...)) }

func (n *notes) want(t *testing.T, parts ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	ok := len(n.texts) == len(parts)
	for i := 0; ok && i < len(parts); i++ {
		ok = strings.Contains(n.texts[i], parts[i])
	}
	if !ok {
		t.Errorf("complaints %q, want %q", n.texts, parts)
	}
}

func TestASourceThatBreaksTheContractIsFound(t *testing.T) {
	all := estate(2, 2)
	for _, tt := range []struct {
		name   string
		faults faults
		want   []string
	}{
		{"none", faults{}, nil},
		{"an empty full before the true one", faults{emptyFirst: true}, []string{"lost 4 endpoints that the registry never took away, the first is {shop.service0"}},
		{"a delta before the full one", faults{deltaFirst: true}, []string{"the first Apply of a Run is delta", "lost 4 endpoints"}},
		{"live before the full one", faults{liveFirst: true}, []string{"live before the first full Apply"}},
		{"an error although its context ended it", faults{late: true}, []string{"after its context ended, want nil"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			complaints := &notes{TB: t}
			m := newMemory(tt.faults)
			m.PutAll(t, all)
			r := newRecorder(complaints)
			r.pin(all...)
			source := &checked{Source: memorySource{m}, t: complaints}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- source.Run(ctx, r) }()
			r.awaitAll(t, all...)
			r.await(t, "live", func() bool { return r.status.Phase == model.Live })
			cancel()
			if err := <-ended; err != nil && !tt.faults.late {
				t.Error(err)
			}
			complaints.want(t, tt.want...)
		})
	}
}

func TestALostEndpointIsFoundOnce(t *testing.T) {
	complaints := &notes{TB: t}
	r := newRecorder(complaints)
	all := estate(1, 2)
	m := newMemory(faults{})
	m.PutAll(t, all)
	u, _ := m.read(true)
	r.Apply(u)
	r.pin(all...)
	complaints.want(t)
	m.Remove(t, all[0])
	u, _ = m.read(false)
	r.Apply(u)
	r.Apply(u)
	complaints.want(t, "lost 1 endpoints")
	r.unpin(all[1])
	r.Apply(model.Update{Removed: []model.Host{"shop.service0"}})
	complaints.want(t, "lost 1 endpoints")
}

func TestABrokenInstanceThatGoesIsALoss(t *testing.T) {
	complaints := &notes{TB: t}
	r := newRecorder(complaints)
	all := estate(1, 2)
	m := newMemory(faults{forgetful: true})
	m.PutAll(t, all)
	u, _ := m.read(true)
	r.Apply(u)
	r.pin(all...)
	m.Break(t, all[0])
	u, skipped := m.read(false)
	r.Apply(u)
	complaints.want(t, "lost 1 endpoints")
	if len(skipped) != 1 {
		t.Errorf("skipped %v", skipped)
	}
}

func TestAChangedVersionOfAPinnedInstanceIsALoss(t *testing.T) {
	complaints := &notes{TB: t}
	r := newRecorder(complaints)
	all := estate(1, 1)
	m := newMemory(faults{})
	m.PutAll(t, all)
	u, _ := m.read(true)
	r.Apply(u)
	r.pin(all...)
	all[0].Version = "v2"
	m.Put(t, all[0])
	u, _ = m.read(false)
	r.Apply(u)
	complaints.want(t, "lost 1 endpoints")
}

func TestCallsOfTwoGoroutinesAreFound(t *testing.T) {
	complaints := &notes{TB: t}
	hold, inside := make(chan struct{}), make(chan struct{})
	s := &checkedSink{t: complaints, Sink: slowSink{inside: inside, hold: hold}}
	var group sync.WaitGroup
	group.Go(func() { s.Apply(model.Update{Full: true}) })
	<-inside
	s.Report(model.SourceStatus{})
	close(hold)
	group.Wait()
	s.over.Store(true)
	s.Report(model.SourceStatus{})
	complaints.want(t, "Report while another call was under way", "Report after Run returned")
}

type slowSink struct{ inside, hold chan struct{} }

func (s slowSink) Apply(model.Update) {
	close(s.inside)
	<-s.hold
}

func (slowSink) Report(model.SourceStatus) {}

var _ bridges.Sink = slowSink{}

func TestWellFormed(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:1")
	ports := []model.Port{{Number: 80}}
	for _, tt := range []struct {
		name    string
		service model.Service
		want    string
	}{
		{"right", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{{Address: a, Port: 80}, {Address: b, Port: 80}}}, ""},
		{"upper case", model.Service{Host: "A", Namespace: "n"}, "not folded"},
		{"no namespace", model.Service{Host: "a"}, "no namespace"},
		{"ports twice", model.Service{Host: "a", Namespace: "n", Ports: []model.Port{{Number: 80}, {Number: 80}}}, "ports do not ascend"},
		{"no address", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{{Port: 80}}}, "has address"},
		{"twice", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{{Address: a, Port: 80}, {Address: a, Port: 80}}}, "stands twice"},
		{"a port that is none", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{{Address: a, Port: 81}}}, "which the service lacks"},
		{"out of order", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{{Address: b, Port: 80}, {Address: a, Port: 80}}}, "do not ascend"},
		{"a catalog's field", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{{Address: a, Port: 80, Workload: "w"}}}, "only the catalog"},
		{
			"large labels", model.Service{Host: "a", Namespace: "n", Ports: ports, Endpoints: []model.Endpoint{
				{Address: a, Port: 80, Labels: model.NewLabels(map[string]string{"a": strings.Repeat("x", 2000)})},
			}}, "bytes of labels",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(wellFormed(&tt.service), "; ")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAwaitWakesAtOnce(t *testing.T) {
	r := newRecorder(t)
	go r.Report(model.SourceStatus{Source: "x", Phase: model.Live})
	start := time.Now()
	r.awaitPhase(t, model.Live)
	if took := time.Since(start); took > patience/2 {
		t.Errorf("took %v", took)
	}
}
