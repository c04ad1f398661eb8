package upstream

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func endpoints(n int, edit func(i int, e *Endpoint)) []Endpoint {
	out := make([]Endpoint, n)
	for i := range out {
		out[i] = Endpoint{Addr: addr(i), Weight: 1}
		if edit != nil {
			edit(i, &out[i])
		}
	}
	return out
}

func cluster(s Settings) *Cluster {
	c := NewCluster("c", telemetry.NewUpstream("c", "c"))
	c.Configure(s)
	return c
}

func TestUpdatesKeepHostsThatStay(t *testing.T) {
	c := cluster(Settings{})
	c.SetEndpoints(endpoints(3, nil))
	before := c.Hosts()
	before[1].Active.Store(7)

	c.SetEndpoints(append(endpoints(2, func(i int, e *Endpoint) {
		if i == 1 {
			e.Weight, e.Workload = 5, "cart-1"
		}
	}), Endpoint{Addr: addr(9), Weight: 1}))
	after := c.Hosts()
	if len(after) != 3 || after[0] != before[0] || after[1] != before[1] {
		t.Fatalf("hosts that stayed are not the same values: %v, %v", before, after)
	}
	if got := after[1].Active.Load(); got != 7 {
		t.Errorf("requests under way: got %d, want 7 kept", got)
	}
	if got := after[1].Workload(); got != "cart-1" {
		t.Errorf("workload: got %q, want the new one", got)
	}
	if !before[2].Gone() || after[0].Gone() {
		t.Error("want the removed host gone, and only it")
	}
	if after[2].Addr != addr(9) {
		t.Errorf("new host: got %v, want %v", after[2].Addr, addr(9))
	}
}

func TestAnUpdateThatChangesNothingKeepsTheRound(t *testing.T) {
	c := cluster(Settings{})
	c.SetEndpoints(endpoints(3, nil))
	set := c.hosts.Load()
	c.SetEndpoints(endpoints(3, nil))
	if c.hosts.Load() != set {
		t.Error("an equal list made a new host set")
	}
	c.Configure(Settings{ConnectTimeout: time.Second})
	if c.hosts.Load() != set {
		t.Error("settings that do not concern the choice made a new host set")
	}
	c.Configure(Settings{Policy: balance.Random{}})
	if c.hosts.Load() == set {
		t.Error("another policy did not make a new host set")
	}
	if c.Hosts()[0] != set.hosts[0] {
		t.Error("another policy made new hosts")
	}
}

func TestOfTwoEndpointsWithOneAddressTheFirstCounts(t *testing.T) {
	c := cluster(Settings{})
	c.SetEndpoints([]Endpoint{{Addr: addr(1), Weight: 2}, {Addr: addr(1), Weight: 3}, {Addr: addr(0)}})
	if hosts := c.Hosts(); len(hosts) != 2 || hosts[1].Endpoint().Weight != 2 || hosts[0].Endpoint().Weight != 1 {
		t.Errorf("got %d hosts, want two with weights 1 and 2", len(hosts))
	}
}

// share returns the part of picks by priority and health.
func share(c *Cluster, n int) map[string]float64 {
	out := map[string]float64{}
	for i := range n {
		h := c.Pick(&Choice{Random: uint64(i) * 0x9e3779b97f4a7c15})
		if h == nil {
			out["none"]++
			continue
		}
		out[fmt.Sprintf("P%d %v", h.Endpoint().Priority, h.Endpoint().Health)]++
	}
	for k := range out {
		out[k] /= float64(n)
	}
	return out
}

func TestHealthAndPriorityDecideAsInEnvoy(t *testing.T) {
	off := new(0.0)
	for _, tt := range []struct {
		name     string
		settings Settings
		health   [][]Health // by priority
		want     map[string]float64
	}{
		{"all healthy: the first priority alone", Settings{}, [][]Health{{0, 0, 0}, {0, 0, 0}}, map[string]float64{"P0 healthy": 1}},
		{"three of four are enough", Settings{}, [][]Health{{0, 0, 0, Unhealthy}, {0}}, map[string]float64{"P0 healthy": 1}},
		{"half spills by the factor of 1.4", Settings{}, [][]Health{{0, Unhealthy}, {0, 0}}, map[string]float64{"P0 healthy": 0.7, "P1 healthy": 0.3}},
		{"none healthy: the next takes all", Settings{}, [][]Health{{Unhealthy, Unhealthy}, {0, 0}}, map[string]float64{"P1 healthy": 1}},
		{"degraded fill up", Settings{}, [][]Health{{0, Degraded}}, map[string]float64{"P0 healthy": 0.7, "P0 degraded": 0.3}},
		{"a quarter healthy is panic", Settings{}, [][]Health{{0, Unhealthy, Unhealthy, Unhealthy}}, map[string]float64{"P0 healthy": 0.25, "P0 unhealthy": 0.75}},
		{"panic switched off", Settings{PanicPercent: off}, [][]Health{{0, Unhealthy, Unhealthy, Unhealthy}}, map[string]float64{"P0 healthy": 1}},
		{"nobody healthy is panic", Settings{}, [][]Health{{Unhealthy, Unhealthy}}, map[string]float64{"P0 unhealthy": 1}},
		{"nobody healthy, panic off", Settings{PanicPercent: off}, [][]Health{{Unhealthy, Unhealthy}}, map[string]float64{"none": 1}},
		{"no hosts", Settings{}, nil, map[string]float64{"none": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.settings.Policy = balance.Random{}
			c := cluster(tt.settings)
			var all []Endpoint
			for priority, list := range tt.health {
				for _, h := range list {
					all = append(all, Endpoint{Addr: addr(len(all)), Weight: 1, Health: h, Priority: uint32(priority)})
				}
			}
			c.SetEndpoints(all)
			got := share(c, 20000)
			for k, want := range tt.want {
				if math.Abs(got[k]-want) > 0.02 {
					t.Errorf("%s: got %.3f, want %.2f", k, got[k], want)
				}
			}
			if len(got) != len(tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRetriesAvoidTriedHosts(t *testing.T) {
	for _, p := range []balance.Policy{balance.RoundRobin{}, balance.Random{}, balance.LeastRequest{}, balance.RingHash{}} {
		t.Run(p.Name(), func(t *testing.T) {
			c := cluster(Settings{Policy: p})
			c.SetEndpoints(endpoints(4, nil))
			for i := range 200 {
				ch := Choice{Random: uint64(i) << 55, Hash: uint64(i) << 55, HasHash: true}
				for range 4 {
					h := c.Pick(&ch)
					for _, tried := range ch.Tried {
						if h == tried {
							t.Fatalf("picked %v twice while others were there", h.Addr)
						}
					}
					ch.Tried = append(ch.Tried, h)
				}
				if c.Pick(&ch) == nil {
					t.Fatal("no host after all were tried, want one of them")
				}
			}
		})
	}
}

func TestLimitsAndBudget(t *testing.T) {
	c := cluster(Settings{Limits: Limits{Connections: 2, Requests: 10, Retries: 5, RetryBudgetPercent: 40, RetryBudgetMin: 1}})
	take := func(acquire func() bool) (n int) {
		for acquire() {
			n++
		}
		return n
	}
	if got := take(c.AcquireConnection); got != 2 {
		t.Errorf("connections: got %d, want 2", got)
	}
	c.ReleaseConnection()
	if !c.AcquireConnection() || c.AcquireConnection() {
		t.Error("a released connection can be had once more, once")
	}
	if got := take(c.AcquireRetry); got != 1 {
		t.Errorf("retries with no request under way: got %d, want the least of the budget, 1", got)
	}
	c.ReleaseRetry()
	if got := take(c.AcquireRequest); got != 10 {
		t.Errorf("requests: got %d, want 10", got)
	}
	if got := take(c.AcquireRetry); got != 4 {
		t.Errorf("retries with 10 requests under way: got %d, want 40%% of them", got)
	}
	c.ReleaseRequest()
	c.ReleaseRetry()
	c = cluster(Settings{Limits: Limits{NoRetries: true}})
	if c.AcquireRetry() {
		t.Error("a retry where none is allowed")
	}
}

func TestDefaultsAreEnvoys(t *testing.T) {
	c := NewCluster("c", telemetry.NewUpstream("c", "c"))
	if c.Known() || c.Settings() == nil || c.Pick(&Choice{}) != nil {
		t.Error("a new cluster: want it unknown, with settings, without hosts")
	}
	c.Configure(Settings{})
	got := c.Settings()
	if !c.Known() || got.ConnectTimeout != 5*time.Second || got.IdleTimeout != time.Hour || got.Policy != (balance.RoundRobin{}) ||
		got.Limits != (Limits{Connections: 1024, Requests: 1024, Retries: 3, RetryBudgetPercent: 20, RetryBudgetMin: 3}) {
		t.Errorf("got %+v", got)
	}
	c.SetEndpoints(endpoints(1, nil))
	c.Retire()
	if c.Known() || c.Pick(&Choice{}) != nil {
		t.Error("a retired cluster: want it unknown, without hosts")
	}
}

func TestPickAndUpdateTogether(t *testing.T) {
	c := cluster(Settings{})
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		group.Go(func() {
			for i := uint64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if h := c.Pick(&Choice{Random: i}); h != nil {
					h.Active.Add(1)
					_ = h.Workload()
					h.Active.Add(-1)
				}
			}
		})
	}
	for i := range 300 {
		c.SetEndpoints(endpoints(i%7, func(j int, e *Endpoint) { e.Weight = uint32(i%3 + j) }))
		c.Configure(Settings{Policy: []balance.Policy{balance.RoundRobin{}, balance.LeastRequest{}}[i%2]})
	}
	close(stop)
	group.Wait()
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, p := range []balance.Policy{balance.RoundRobin{}, balance.Random{}, balance.LeastRequest{}, balance.RingHash{}} {
		c := cluster(Settings{Policy: p})
		c.SetEndpoints(endpoints(10, nil))
		var ch Choice
		tried := []*Host{c.Hosts()[0]}
		if got := testing.AllocsPerRun(100, func() {
			ch = Choice{Random: ch.Random + 1<<59, Tried: tried}
			c.Pick(&ch)
		}); got != 0 {
			t.Errorf("%s: got %v allocations a pick, want 0", p.Name(), got)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	c := cluster(Settings{Policy: balance.LeastRequest{}})
	c.SetEndpoints(endpoints(100, nil))
	var ch Choice
	b.ReportAllocs()
	for b.Loop() {
		ch.Random = ch.Random*6364136223846793005 + 1442695040888963407
		c.Pick(&ch)
	}
}

func BenchmarkSetEndpoints(b *testing.B) {
	c := cluster(Settings{Policy: balance.LeastRequest{}})
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		c.SetEndpoints(endpoints(1000, func(i int, e *Endpoint) {
			if i == 500 {
				e.Weight = uint32(n%2 + 1)
			}
		}))
	}
}
