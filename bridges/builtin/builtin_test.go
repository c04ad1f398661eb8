package builtin

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a sink that keeps what a catalog would.
type mesh struct {
	mu        sync.Mutex
	services  map[model.Host]*model.Service
	workloads map[string]*model.Workload
	applies   int
	firstFull bool
	status    model.SourceStatus
	held      *model.Service // of a former process; immutable
}

// Held implements bridges.Holder.
func (m *mesh) Held(host model.Host) *model.Service {
	if m.held != nil && m.held.Host == host {
		return m.held
	}
	return nil
}

func (m *mesh) Apply(u model.Update) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.applies == 0 {
		m.firstFull = u.Full
	}
	m.applies++
	if u.Full || m.services == nil {
		m.services, m.workloads = map[model.Host]*model.Service{}, map[string]*model.Workload{}
	}
	for _, s := range u.Services {
		m.services[s.Host] = s
	}
	for _, w := range u.Workloads {
		m.workloads[w.Name] = w
	}
	for _, h := range u.Removed {
		delete(m.services, h)
	}
	for _, n := range u.RemovedWorkloads {
		delete(m.workloads, n)
	}
}

func (m *mesh) Report(s model.SourceStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = s
}

// endpoints renders a host as "address labels", ascending; nil when there is none.
func (m *mesh) endpoints(h model.Host) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	if s := m.services[h]; s != nil {
		for _, e := range s.Endpoints {
			out = append(out, e.Address.String()+" "+e.Labels.String())
		}
	}
	return out
}

func (m *mesh) said() model.SourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

func (m *mesh) service(h model.Host) *model.Service {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.services[h]
}

func (m *mesh) workload(name string) *model.Workload {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.workloads[name]
}

func (m *mesh) beganFull() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.firstFull
}

func (m *mesh) count() (applies, services, workloads int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applies, len(m.services), len(m.workloads)
}

// echo is a workload as a sidecar registers it.
func echo(name, addr, app string) model.Workload {
	return model.Workload{
		Name: name, Namespace: "shop", App: "echo", Address: netip.MustParseAddr(addr),
		Labels: model.NewLabels(map[string]string{"version": "v1"}),
		Inbound: []model.Inbound{{
			App: netip.MustParseAddrPort(app), Listen: netip.MustParseAddrPort("0.0.0.0:20881"),
			Protocol: model.HTTP, Service: "Echo.Shop",
		}},
	}
}

// start runs r in the bubble of the test until its end.
func start(t *testing.T, r *Registry) (*mesh, func()) {
	t.Helper()
	return startWith(t, r, &mesh{})
}

func startWith(t *testing.T, r *Registry, m *mesh) (*mesh, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, m) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return m, stop
}

func registry(t *testing.T, cfg Config) *Registry {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func register(t *testing.T, r *Registry, w model.Workload, ttl time.Duration) string {
	t.Helper()
	id, err := r.Register(t.Context(), w, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestRegisteredWorkloadBecomesEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		m, stop := start(t, r)
		defer stop()
		if m.said().Phase != model.Live || !m.beganFull() {
			t.Errorf("an empty registry is %v, first update full: %v; want live and full", m.said().Phase, m.beganFull())
		}
		w := echo("echo-1", "10.0.0.7", "127.0.0.1:8080")
		w.Weight, w.Locality = 50, model.Locality{Region: "r1", Zone: "z1"}
		register(t, r, w, time.Minute)
		synctest.Wait()
		want := &model.Service{
			Host: "echo.shop", Name: "echo.shop", Namespace: "shop",
			Ports: []model.Port{{Number: 80, Protocol: model.HTTP}},
			Endpoints: []model.Endpoint{{
				Address: netip.MustParseAddrPort("10.0.0.7:8080"), Port: 80, Weight: 50,
				Labels:   model.NewLabels(map[string]string{"version": "v1", "app": "echo"}),
				Locality: model.Locality{Region: "r1", Zone: "z1"},
			}},
		}
		if d := cmp.Diff(want, m.service("echo.shop"), comparers); d != "" {
			t.Errorf("service (-want +got):\n%s", d)
		}
		if d := cmp.Diff(&w, m.workload("echo-1"), comparers); d != "" {
			t.Errorf("workload (-want +got):\n%s", d)
		}
	})
}

// counted is the sum of a counter over its labels.
func counted(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

var comparers = cmp.Options{
	cmpopts.EquateComparable(model.Labels{}, netip.AddrPort{}, netip.Addr{}),
}

func TestLeaseEndsAndRenewalKeepsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		r := registry(t, Config{Registerer: reg})
		m, stop := start(t, r)
		defer stop()
		register(t, r, echo("dies", "127.0.0.2", "127.0.0.1:8081"), 10*time.Second)
		lives := register(t, r, echo("lives", "127.0.0.3", "127.0.0.1:8082"), 10*time.Second)
		for range 4 {
			time.Sleep(4 * time.Second)
			if err := r.Renew(t.Context(), lives); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if d := cmp.Diff([]string{"127.0.0.3:8082 app=echo,version=v1"}, m.endpoints("echo.shop")); d != "" {
			t.Errorf("after 16 s (-want +got):\n%s", d)
		}
		time.Sleep(10*time.Second - time.Nanosecond)
		synctest.Wait()
		if got := m.endpoints("echo.shop"); len(got) != 1 {
			t.Errorf("an instant before the end: %v", got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if _, services, workloads := m.count(); services != 0 || workloads != 0 {
			t.Errorf("after the last lease ended: %d services, %d workloads", services, workloads)
		}
		if err := r.Renew(t.Context(), lives); !errors.Is(err, ErrUnknownLease) {
			t.Errorf("renewing an ended lease: %v", err)
		}
		if got := counted(t, reg, "mesh_bridges_builtin_leases_ended_total"); got != 2 {
			t.Errorf("%v leases counted as ended, want 2", got)
		}
	})
}

func TestLeaveIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		m, stop := start(t, r)
		defer stop()
		id := register(t, r, echo("a", "127.0.0.2", "127.0.0.1:8081"), time.Hour)
		register(t, r, echo("b", "127.0.0.3", "127.0.0.1:8081"), time.Hour)
		synctest.Wait()
		if err := r.Leave(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d := cmp.Diff([]string{"127.0.0.3:8081 app=echo,version=v1"}, m.endpoints("echo.shop")); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if err := r.Leave(t.Context(), id); !errors.Is(err, ErrUnknownLease) {
			t.Errorf("leaving twice: %v", err)
		}
		if got := r.List(); len(got) != 1 || got[0].Workload.Name != "b" || got[0].TTL != time.Hour {
			t.Errorf("List: %+v", got)
		}
	})
}

func TestRegisteringAgainReplacesTheLeaseAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		m, stop := start(t, r)
		defer stop()
		w := echo("a", "127.0.0.2", "127.0.0.1:8081")
		first := register(t, r, w, 10*time.Second)
		synctest.Wait()
		before, _, _ := m.count()
		second := register(t, r, w, 20*time.Second)
		synctest.Wait()
		if after, _, _ := m.count(); after != before {
			t.Errorf("the same workload again made %d updates", after-before)
		}
		if err := r.Renew(t.Context(), first); !errors.Is(err, ErrUnknownLease) {
			t.Errorf("the replaced lease: %v", err)
		}
		time.Sleep(15 * time.Second)
		if err := r.Renew(t.Context(), second); err != nil {
			t.Errorf("the new lease after 15 s of 20: %v", err)
		}
		w.Labels = model.NewLabels(map[string]string{"version": "v2"})
		register(t, r, w, 20*time.Second)
		synctest.Wait()
		if d := cmp.Diff([]string{"127.0.0.2:8081 app=echo,version=v2"}, m.endpoints("echo.shop")); d != "" {
			t.Errorf("changed labels (-want +got):\n%s", d)
		}
		w.Inbound[0].Service = "other"
		register(t, r, w, 20*time.Second)
		synctest.Wait()
		if m.endpoints("echo.shop") != nil || len(m.endpoints("other")) != 1 {
			t.Errorf("a changed service: old %v, new %v", m.endpoints("echo.shop"), m.endpoints("other"))
		}
	})
}

func TestSuccessorAtTheSameAddressHoldsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		m, stop := start(t, r)
		defer stop()
		register(t, r, echo("z-old", "127.0.0.2", "127.0.0.1:8081"), time.Minute)
		w := echo("a-new", "127.0.0.2", "127.0.0.1:8081")
		w.Labels = model.NewLabels(map[string]string{"version": "v2"})
		id := register(t, r, w, time.Minute)
		synctest.Wait()
		if d := cmp.Diff([]string{"127.0.0.2:8081 app=echo,version=v2"}, m.endpoints("echo.shop")); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if old, now := m.workload("z-old").Inbound, m.workload("a-new").Inbound; len(old) != 0 || len(now) != 1 {
			t.Errorf("the earlier one is reported with %v, the later with %v", old, now)
		}
		if err := r.Leave(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(m.workload("z-old").Inbound) != 1 {
			t.Error("the earlier one does not get its port back")
		}
	})
}

func TestConflictingProtocolIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		m, stop := start(t, r)
		defer stop()
		register(t, r, echo("a", "127.0.0.2", "127.0.0.1:8081"), time.Minute)
		w := echo("b", "127.0.0.3", "127.0.0.1:8081")
		w.Inbound[0].Protocol = model.HTTP2
		register(t, r, w, time.Second)
		synctest.Wait()
		if len(m.said().Skipped) != 1 || !strings.Contains(m.said().Skipped[0].Reason, "workload b announces http2") {
			t.Errorf("skipped: %v", m.said().Skipped)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(m.said().Skipped) != 0 {
			t.Errorf("after b ended: %v", m.said().Skipped)
		}
	})
}

func TestWorkloadWithoutSidecarIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		m, stop := start(t, r)
		defer stop()
		w := echo("plain", "10.0.0.9", "10.0.0.9:8080")
		w.Inbound[0].Listen = netip.AddrPort{}
		register(t, r, w, time.Minute)
		synctest.Wait()
		if got := m.endpoints("echo.shop"); len(got) != 1 || len(m.workload("plain").Inbound) != 0 {
			t.Errorf("endpoints %v, inbound %v", got, m.workload("plain").Inbound)
		}
	})
}

func TestRestartGivesEveryLeaseItsWholeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := registry(t, Config{Dir: dir})
		_, stop := start(t, r)
		kept := register(t, r, echo("kept", "127.0.0.2", "127.0.0.1:8081"), 10*time.Second)
		gone := register(t, r, echo("gone", "127.0.0.3", "127.0.0.1:8081"), 10*time.Second)
		synctest.Wait()
		time.Sleep(9 * time.Second)
		if err := r.Leave(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stop()

		time.Sleep(time.Hour) // a long outage
		r = registry(t, Config{Dir: dir})
		m, stop := start(t, r)
		defer stop()
		if d := cmp.Diff([]string{"127.0.0.2:8081 app=echo,version=v1"}, m.endpoints("echo.shop")); d != "" {
			t.Errorf("after the restart (-want +got):\n%s", d)
		}
		if !m.beganFull() || m.said().Phase != model.Live {
			t.Errorf("first update full: %v, phase %v", m.beganFull(), m.said().Phase)
		}
		time.Sleep(9 * time.Second)
		if err := r.Renew(t.Context(), kept); err != nil {
			t.Errorf("9 s after the restart: %v", err)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := m.endpoints("echo.shop"); got != nil {
			t.Errorf("a lease that was renewed once ended not: %v", got)
		}
	})
}

func TestDamagedFileIsPutAsideAndNothingIsReportedAsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := registry(t, Config{Dir: dir})
		m, stop := start(t, r)
		register(t, r, echo("a", "127.0.0.2", "127.0.0.1:8081"), time.Hour)
		register(t, r, echo("short", "127.0.0.3", "127.0.0.1:8081"), time.Second)
		synctest.Wait()
		stop()
		lost := echo("lost", "127.0.0.4", "127.0.0.1:8081") // held by the mesh, not in the file
		m.held = derived(t, lost)
		path := filepath.Join(dir, "builtin.leases")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append([]byte("{\"id\":}\n"), data...), 0o600); err != nil {
			t.Fatal(err)
		}
		r = registry(t, Config{Dir: dir})
		held := m.held
		m, stop = startWith(t, r, &mesh{held: held})
		defer stop()
		want := []string{"127.0.0.2:8081 app=echo,version=v1", "127.0.0.3:8081 app=echo,version=v1", "127.0.0.4:8081 app=echo,version=v1"}
		if d := cmp.Diff(want, m.endpoints("echo.shop")); d != "" || m.workload("a") == nil || m.beganFull() {
			t.Errorf("at once, full %v (-want +got):\n%s", m.beganFull(), d)
		}
		if m.said().Phase != model.Syncing || !strings.Contains(m.said().Err, "line 1") {
			t.Errorf("at once: %v, %q", m.said().Phase, m.said().Err)
		}
		time.Sleep(2 * time.Second) // the short lease ends
		id := register(t, r, echo("new", "127.0.0.5", "127.0.0.1:8081"), time.Minute)
		register(t, r, echo("left", "127.0.0.6", "127.0.0.1:8081"), time.Minute)
		synctest.Wait()
		want = append(want, "127.0.0.5:8081 app=echo,version=v1", "127.0.0.6:8081 app=echo,version=v1")
		if d := cmp.Diff(want, m.endpoints("echo.shop")); d != "" || m.said().Phase != model.Syncing {
			t.Errorf("while settling, %v (-want +got):\n%s", m.said().Phase, d)
		}
		if err := r.Renew(t.Context(), id); err != nil {
			t.Error(err)
		}
		time.Sleep(settleTime)
		synctest.Wait()
		want = []string{want[0], want[3], want[4]}
		if d := cmp.Diff(want, m.endpoints("echo.shop")); d != "" || m.said().Phase != model.Live {
			t.Errorf("after %v, %v (-want +got):\n%s", settleTime, m.said().Phase, d)
		}
		if _, err := os.Stat(path + ".damaged"); err != nil {
			t.Error(err)
		}
	})
}

// derived is the service that a workload alone makes.
func derived(t *testing.T, w model.Workload) *model.Service {
	t.Helper()
	hosts, err := check(&w, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return (&run{}).service(hosts[0], []*lease{{workload: &w, hosts: hosts}})
}

func TestFullDiskIsShownAndHealsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r := registry(t, Config{Dir: dir})
		m, stop := start(t, r)
		defer stop()
		aside := dir + ".aside" // root may write anywhere, so the folder goes away instead of its rights
		if err := os.Rename(dir, aside); err != nil {
			t.Fatal(err)
		}
		id := register(t, r, echo("a", "127.0.0.2", "127.0.0.1:8081"), time.Hour)
		time.Sleep(beat)
		synctest.Wait()
		if got := m.endpoints("echo.shop"); len(got) != 1 || len(m.said().Skipped) != 1 || m.said().Skipped[0].Where != "leases file" {
			t.Errorf("endpoints %v, skipped %v", got, m.said().Skipped)
		}
		if err := os.Rename(aside, dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(beat)
		synctest.Wait()
		if len(m.said().Skipped) != 0 {
			t.Errorf("after the disk came back: %v", m.said().Skipped)
		}
		stop()
		again := registry(t, Config{Dir: dir})
		_, stop2 := start(t, again)
		defer stop2()
		if err := again.Renew(t.Context(), id); err != nil {
			t.Errorf("the lease was not saved: %v", err)
		}
	})
}

func TestFileStaysSmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := registry(t, Config{Dir: dir})
		_, stop := start(t, r)
		defer stop()
		w := echo("a", "127.0.0.2", "127.0.0.1:8081")
		for range 3 * slack {
			register(t, r, w, time.Minute)
			synctest.Wait()
		}
		data, err := os.ReadFile(filepath.Join(dir, "builtin.leases"))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), "\n"); n > slack+2 {
			t.Errorf("%d lines for one workload, want at most %d", n, slack+2)
		}
	})
}

func TestFullRegistryRefusesNewOnesOnly(t *testing.T) {
	r := registry(t, Config{MaxWorkloads: 1})
	w := echo("a", "127.0.0.2", "127.0.0.1:8081")
	register(t, r, w, time.Minute)
	if _, err := r.Register(t.Context(), echo("b", "127.0.0.3", "127.0.0.1:8081"), time.Minute); !errors.Is(err, ErrFull) {
		t.Errorf("a second one: %v", err)
	}
	register(t, r, w, time.Minute)
}

func TestSecondRunIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := registry(t, Config{})
		_, stop := start(t, r)
		defer stop()
		if err := r.Run(t.Context(), &mesh{}); err == nil {
			t.Error("Run ran twice at once")
		}
	})
}

func TestManyCallersAtOnce(t *testing.T) {
	r := registry(t, Config{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	m := &mesh{}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, m) }()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w := echo("w"+string(rune('a'+i)), "127.0.0.2", "127.0.0.1:"+[]string{"8081", "8082", "8083", "8084", "8085", "8086", "8087", "8088"}[i])
			for range 50 {
				id, err := r.Register(ctx, w, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				if err := r.Renew(ctx, id); err != nil {
					t.Error(err)
				}
				r.List()
				if err := r.Leave(ctx, id); err != nil {
					t.Error(err)
				}
			}
			if _, err := r.Register(ctx, w, time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	deadline := time.After(10 * time.Second)
	for len(m.endpoints("echo.shop")) != 8 {
		select {
		case <-deadline:
			t.Fatalf("endpoints: %v", m.endpoints("echo.shop"))
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
