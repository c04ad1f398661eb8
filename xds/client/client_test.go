package client_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/xds/client"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const answerTime = 20 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(answerTime)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never came true: %s", what)
		case <-tick.C:
		}
	}
}

// recorder is a handler that keeps what it is given, but for what it is told to reject.
type recorder struct {
	mu      sync.Mutex
	held    map[string]string // "CDS a" -> version
	bodies  map[string][]byte
	log     []string // "CDS a,b -c ?d"
	reject  map[string]client.Rejection
	updates int // resources ever received
}

func newRecorder() *recorder {
	return &recorder{held: map[string]string{}, bodies: map[string][]byte{}, reject: map[string]client.Rejection{}}
}

func (r *recorder) Apply(c client.Change) (rejected []client.Rejection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, n := range c.Updated {
		r.updates++
		names = append(names, n.Name)
		if no, bad := r.reject[n.Version]; bad {
			rejected = append(rejected, no)
			continue
		}
		r.held[c.Type.String()+" "+n.Name] = n.Version
		r.bodies[c.Type.String()+" "+n.Name] = n.Body
	}
	slices.Sort(names)
	line := c.Type.String() + " " + strings.Join(names, ",")
	for _, n := range c.Removed {
		delete(r.held, c.Type.String()+" "+n)
		line += " -" + n
	}
	for _, n := range c.Missing {
		line += " ?" + n
	}
	r.log = append(r.log, line)
	return rejected
}

func (r *recorder) has(rs ...*resource.Resource) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	want := map[string]string{}
	for _, res := range rs {
		want[res.Type.String()+" "+res.Name] = res.Version
	}
	return maps.Equal(want, r.held)
}

func (r *recorder) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

func listener(name string, routes ...string) *resource.Resource {
	l := &listenerv3.Listener{Name: name}
	for _, route := range routes {
		hcm, err := anypb.New(&hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{
			Rds: &hcmv3.Rds{RouteConfigName: route, ConfigSource: servertest.ADS()},
		}})
		if err != nil {
			panic(err)
		}
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Filters: []*listenerv3.Filter{
			{Name: "http", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: hcm}},
		}})
	}
	return servertest.Make(resource.Listener, name, l)
}

func cds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Cluster, name, seed)
}
func eds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Endpoints, name, seed)
}
func rds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Route, name, seed)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run starts a client until the test ends.
func run(t *testing.T, h client.Handler, targets []string, edit func(*client.Config)) *client.Client {
	t.Helper()
	cfg := client.Config{
		Node: &corev3.Node{Id: "sidecar~test"}, Targets: targets, Handler: h, Log: quiet(),
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		MinBackoff:  10 * time.Millisecond,
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestFollowsReferences(t *testing.T) {
	w := servertest.NewWorld(cds("a", 1), eds("a", 1), listener("in", "r1"), rds("r1", 1), rds("other", 1), eds("other", 1))
	h := newRecorder()
	c := run(t, h, []string{servertest.Serve(t, w, server.Config{Log: quiet()})}, nil)
	eventually(t, "everything referred to is there", func() bool {
		return h.has(cds("a", 1), eds("a", 1), listener("in", "r1"), rds("r1", 1))
	})
	<-c.Synced()
	if d := cmp.Diff([]string{"CDS a", "EDS a", "LDS in", "RDS r1"}, h.lines()); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	w.Put(cds("b", 1), eds("b", 1), eds("a", 2), listener("in", "r1", "r2"), rds("r2", 1))
	eventually(t, "new references are followed", func() bool {
		return h.has(cds("a", 1), eds("a", 2), cds("b", 1), eds("b", 1), listener("in", "r1", "r2"), rds("r1", 1), rds("r2", 1))
	})
	w.Change([]*resource.Resource{listener("in", "r2")}, []resource.Key{{Type: resource.Cluster, Name: "a"}})
	eventually(t, "what nothing refers to is dropped", func() bool {
		return h.has(cds("b", 1), eds("b", 1), listener("in", "r2"), rds("r2", 1))
	})
	if target, since := c.Connected(); target == "" || since.IsZero() {
		t.Error("not connected")
	}
}

func TestSubscribeByName(t *testing.T) {
	w := servertest.NewWorld()
	w.PutOnDemand(listener("svc:80", "svc:80"), rds("svc:80", 1))
	h := newRecorder()
	c := run(t, h, []string{servertest.Serve(t, w, server.Config{Log: quiet()})}, func(cfg *client.Config) {
		cfg.Subscribe = map[resource.Type][]string{resource.Listener: {"absent:80"}}
	})
	<-c.Synced()
	if lines := h.lines(); !slices.Contains(lines, "LDS  ?absent:80") {
		t.Errorf("changes %q, want the missing name among them", lines)
	}
	c.Subscribe(resource.Listener, "svc:80")
	eventually(t, "the listener and its routes are there", func() bool { return h.has(listener("svc:80", "svc:80"), rds("svc:80", 1)) })
	w.PutOnDemand(listener("absent:80"))
	eventually(t, "the missing name comes once it exists", func() bool {
		return h.has(listener("svc:80", "svc:80"), rds("svc:80", 1), listener("absent:80"))
	})
	c.Unsubscribe(resource.Listener, "svc:80", "absent:80")
	eventually(t, "everything is dropped", func() bool { return h.has() })
}

func TestRejectedResourceIsRefusedAndTheRestIsInForce(t *testing.T) {
	reg := status.NewRegistry()
	w := servertest.NewWorld(cds("a", 1), cds("b", 1))
	h := newRecorder()
	bad := cds("a", 2)
	h.reject[bad.Version] = client.Rejection{Name: "a", Field: "lb_policy", Reason: "is not known"}
	c := run(t, h, []string{servertest.Serve(t, w, server.Config{Log: quiet(), Status: reg})}, nil)
	<-c.Synced()
	w.Put(bad, cds("b", 2))
	eventually(t, "the good one is in force and the bad one reported", func() bool {
		f := reg.Refusals()
		return h.has(cds("a", 1), cds("b", 2)) && len(f) == 1 && f[0].Name == "a" && f[0].Detail == "a: lb_policy: is not known"
	})
	if v := c.Versions()[resource.Cluster]["a"]; v != cds("a", 1).Version {
		t.Errorf("holds version %s of a, want the one before", v)
	}
	w.Put(cds("a", 3))
	eventually(t, "new content is taken", func() bool { return h.has(cds("a", 3), cds("b", 2)) })
}

func TestMalformedResourceIsRefused(t *testing.T) {
	reg := status.NewRegistry()
	bad := &resource.Resource{Type: resource.Cluster, Name: "bad", Version: "v", Body: []byte{0xff}}
	h := newRecorder()
	c := run(t, h, []string{servertest.Serve(t, servertest.NewWorld(cds("a", 1), bad), server.Config{Log: quiet(), Status: reg})}, nil)
	<-c.Synced()
	eventually(t, "the good one is in force and the bad one reported", func() bool {
		f := reg.Refusals()
		return h.has(cds("a", 1)) && len(f) == 1 && f[0].Name == "bad"
	})
}

func TestReconnectsToAnotherServerAndGetsOnlyWhatDiffers(t *testing.T) {
	all := []*resource.Resource{listener("in", "r"), rds("r", 1)}
	for i := range 20 {
		all = append(all, cds(fmt.Sprint("c", i), 1), eds(fmt.Sprint("c", i), 1))
	}
	w := servertest.NewWorld(all...)
	h := newRecorder()
	first := listen(t)
	stop := serveOn(t, w, first)
	second := servertest.Serve(t, w, server.Config{Log: quiet()})
	c := run(t, h, []string{"127.0.0.1:1", first.Addr().String(), second}, nil)
	<-c.Synced()
	eventually(t, "all is there", func() bool { return h.has(all...) })
	stop()
	eventually(t, "it is on the second", func() bool { target, _ := c.Connected(); return target == second })
	h.mu.Lock()
	before := h.updates
	h.mu.Unlock()
	w.Put(eds("c3", 2))
	w.Delete(resource.Key{Type: resource.Cluster, Name: "c4"})
	want := slices.DeleteFunc(slices.Clone(all), func(r *resource.Resource) bool {
		return r.Name == "c4" || r.Type == resource.Endpoints && r.Name == "c3"
	})
	eventually(t, "the changes are there", func() bool { return h.has(append(want, eds("c3", 2))...) })
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.updates-before > 1 {
		t.Errorf("%d resources were sent again, want only the changed one", h.updates-before)
	}
}

func TestStartsFromInitialState(t *testing.T) {
	w := servertest.NewWorld(cds("a", 1), eds("a", 2), listener("in", "r"), rds("r", 1))
	h := newRecorder()
	initial := map[resource.Type][]client.Named{}
	for _, r := range []*resource.Resource{cds("a", 1), eds("a", 1), cds("gone", 1), eds("gone", 1), listener("in", "r"), rds("r", 1)} {
		initial[r.Type] = append(initial[r.Type], client.Named{Name: r.Name, Version: r.Version, Body: r.Body})
		h.held[r.Type.String()+" "+r.Name] = r.Version
	}
	c := run(t, h, []string{servertest.Serve(t, w, server.Config{Log: quiet()})}, func(cfg *client.Config) { cfg.Initial = initial })
	<-c.Synced()
	eventually(t, "it is up to date", func() bool { return h.has(cds("a", 1), eds("a", 2), listener("in", "r"), rds("r", 1)) })
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.updates != 1 {
		t.Errorf("%d resources were sent, want the changed one alone; changes: %q", h.updates, h.log)
	}
}

func TestListenersAreAskedForOnceClustersAreWarm(t *testing.T) {
	w := servertest.NewWorld(cds("a", 1), cds("without", 1), listener("in"))
	h := newRecorder()
	c := run(t, h, []string{servertest.Serve(t, w, server.Config{Log: quiet()})}, nil)
	<-c.Synced()
	lines := h.lines()
	if l, e := slices.Index(lines, "LDS in"), slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, "EDS") }); l < e || e < 0 {
		t.Errorf("changes %q, want endpoints, missing here, before listeners", lines)
	}
}

func TestConfigMistakesAreReportedTogether(t *testing.T) {
	_, err := client.New(client.Config{MinBackoff: -1})
	for _, want := range []string{"no Node with an id", "no Targets", "no Handler", "MinBackoff"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to contain %q", err, want)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return lis
}

// serveOn serves w until stop is called.
func serveOn(t *testing.T, w *servertest.World, lis net.Listener) (stop func()) {
	t.Helper()
	s, err := server.New(server.Config{World: w, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(s.ServerOptions()...)
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	return sync.OnceFunc(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
