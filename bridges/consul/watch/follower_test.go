package watch

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

var errCut = &wire.Error{Kind: wire.Unavailable, Text: "connection refused"}

func end(t *testing.T, f *following) {
	t.Helper()
	if err := f.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestChangesGoOutAtOnceAndAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("", "cart", "c1", "10.0.0.1", 80)
			a.put("", "pay", "p1", "", 81)
			a.put("", "consul", "consul", "10.0.0.9", 8300)
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		want := map[string][]string{"cart": {"10.0.0.1:80 healthy"}, "pay": {"10.9.9.9:81 healthy"}}
		if d := cmp.Diff(want, f.all()); d != "" {
			t.Errorf("first read (-want +got):\n%s", d)
		}
		if u := f.took(); len(u) != 1 || !u[0].Full {
			t.Errorf("first read came as %d updates", len(u))
		}
		if st := f.said(); st.Phase != model.Live || st.Err != "" || st.Read.IsZero() {
			t.Errorf("after the first read: %+v", st)
		}
		pass(time.Minute)
		a.do(func() { a.put("", "cart", "c2", "10.0.0.2", 80) })
		synctest.Wait() // no time passes
		u := f.took()
		if len(u) != 1 || u[0].Full || len(u[0].Services) != 1 || u[0].Services[0].Host != "cart" || len(u[0].Services[0].Endpoints) != 2 {
			t.Fatalf("a new instance: %+v", u)
		}
		if eps := u[0].Services[0].Endpoints; !eps[0].Changed.IsZero() || !eps[1].Changed.Equal(time.Now()) {
			t.Errorf("dates: %v, %v", eps[0].Changed, eps[1].Changed)
		}
		a.do(func() { a.put("", "new", "n1", "10.0.0.3", 80) })
		a.do(func() { a.remove("", "pay", "p1") })
		pass(time.Second)
		want = map[string][]string{"cart": {"10.0.0.1:80 healthy", "10.0.0.2:80 healthy"}, "new": {"10.0.0.3:80 healthy"}}
		if d := cmp.Diff(want, f.all()); d != "" {
			t.Errorf("a service came and one went (-want +got):\n%s", d)
		}
		pass(5 * time.Minute)
		f.took()
		pass(20 * time.Minute)
		if u := f.took(); len(u) != 0 {
			t.Errorf("nothing changed, but: %+v", u)
		}
	})
}

func TestAllFailingIsNotNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		critical := func(e *wire.Entry) { e.Checks = []wire.Check{{CheckID: "c", Status: "critical"}} }
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
		f := follow(t, a, &mesh{})
		defer end(t, f)
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80, critical) })
		pass(time.Second)
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.1:80 unhealthy"}}, f.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

func TestFlappingInstanceIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		f.took()
		a.asked()
		for i := range 1000 { // one a millisecond
			a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 1000+i) })
			pass(time.Millisecond)
		}
		pass(time.Second)
		if lists, services, _ := a.asked(); lists > 8 || services > 25 {
			t.Errorf("%d queries of the list and %d of the service in a second, want at most 8 and 25", lists, services)
		}
		if u := f.took(); len(u) > 25 {
			t.Errorf("%d updates", len(u))
		}
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.1:1999 healthy"}}, f.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}

func TestOutageFreezesAndIsProbedByOneQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			for i := range 100 {
				a.put("", fmt.Sprintf("s%d", i), "x", "10.0.0.1", 80)
			}
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		f.took()
		a.do(func() { a.fail[""] = errCut })
		synctest.Wait()
		if st := f.said(); st.Phase != model.Stale || !strings.Contains(st.Err, "connection refused") {
			t.Errorf("in the outage: %v, %q", st.Phase, st.Err)
		}
		pass(time.Second)
		a.asked()
		pass(time.Minute)
		lists, services, most := a.asked()
		if lists > 30 || services != 0 || most > 1 {
			t.Errorf("a minute of outage saw %d queries of the list, %d of services, %d at once", lists, services, most)
		}
		a.do(func() {
			a.fail[""] = nil
			a.remove("", "s7", "x")
			a.put("", "s8", "x", "10.0.0.2", 80)
		})
		pass(6 * time.Second)
		if got := f.all(); len(got) != 99 || got["s8"][0] != "10.0.0.2:80 healthy" || f.said().Phase != model.Live {
			t.Errorf("after it: %d services, s8 %v, %v", len(got), got["s8"], f.said())
		}
		for _, u := range f.took() {
			if u.Full || len(u.Services)+len(u.Removed) != 1 {
				t.Errorf("update of what did not change: %+v", u)
			}
		}
	})
}

func TestRefusedTokenIsTriedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		a.do(func() { a.fail[""] = &wire.Error{Kind: wire.Denied, Text: "ACL not found"} })
		pass(time.Minute)
		a.asked()
		pass(10 * time.Minute)
		if lists, services, _ := a.asked(); lists+services > 21 || lists == 0 {
			t.Errorf("%d + %d queries in 10 min with a token that is refused", lists, services)
		}
		if st := f.said(); st.Phase != model.Stale || !strings.Contains(st.Err, "ACL not found") || len(f.all()) != 1 {
			t.Errorf("%v, %v", st, f.all())
		}
		a.do(func() { a.fail[""] = nil })
		pass(time.Minute)
		if st := f.said(); st.Phase != model.Live {
			t.Errorf("after the token was allowed: %v", st)
		}
	})
}

func TestRightsTakenAwayHideAndDoNotDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("", "cart", "c1", "10.0.0.1", 80)
			a.put("", "pay", "p1", "10.0.0.2", 80)
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		hide := func(yes bool, names ...string) func() {
			return func() {
				for _, n := range names {
					a.hide[n] = yes
					a.changed["/"+n], a.changed["/"] = a.index, a.index
				}
			}
		}
		a.do(hide(true, "pay"))
		pass(time.Minute)
		st := f.said()
		if got := keys(f.all()); len(got) != 2 || st.Phase != model.Stale || !strings.Contains(st.Err, "service pay") {
			t.Errorf("one service hidden: %v, %v", got, st)
		}
		a.do(hide(true, "pay", "cart"))
		pass(time.Minute)
		if got := keys(f.all()); len(got) != 2 || !strings.Contains(f.said().Err, "sees no service") {
			t.Errorf("all hidden: %v, %v", got, f.said())
		}
		a.do(func() { a.remove("", "pay", "p1") })
		a.do(hide(false, "pay", "cart"))
		pass(2 * time.Minute)
		if got := keys(f.all()); len(got) != 1 || f.said().Phase != model.Live {
			t.Errorf("all to be seen, pay gone: %v, %v", got, f.said())
		}
	})
}

func TestTokenWithoutAnyRightIsNotAnEmptyRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("", "cart", "c1", "10.0.0.1", 80)
			a.hide["cart"] = true
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		if u := f.took(); len(u) != 0 || f.said().Phase != model.Syncing || f.said().Err == "" {
			t.Errorf("updates %v, %v", u, f.said())
		}
	})
}

func TestIndexThatGoesBackwardsStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		a.do(func() { // a snapshot was restored: everything is younger and of an earlier index
			a.index = 5
			a.put("", "cart", "c1", "10.0.0.7", 80)
		})
		pass(11 * time.Minute) // the query returns when its wait is over
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.7:80 healthy"}}, f.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		a.do(func() { a.put("", "cart", "c1", "10.0.0.8", 80) })
		synctest.Wait()
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.8:80 healthy"}}, f.all()); d != "" {
			t.Errorf("a change after it (-want +got):\n%s", d)
		}
	})
}

func TestServersThatDoNotBlockArePolledSlowly(t *testing.T) {
	for name, spoil := range map[string]func(*agent){
		"no index":        func(a *agent) { a.noIndex = true },
		"returns at once": func(a *agent) { a.eager = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAgent()
				a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
				spoil(a)
				f := follow(t, a, &mesh{})
				defer end(t, f)
				a.asked()
				pass(time.Minute)
				if lists, services, _ := a.asked(); lists > 62 || services > 62 {
					t.Errorf("%d + %d queries a minute", lists, services)
				}
				a.do(func() { a.put("", "cart", "c1", "10.0.0.2", 80) })
				pass(time.Second)
				if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.2:80 healthy"}}, f.all()); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			})
		})
	}
}

func TestMoreServicesThanQueriesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		const n = 1000
		name := func(i int) string { return fmt.Sprintf("s%03d", i) }
		a.do(func() {
			for i := range n {
				a.put("", name(i), "x", "10.0.0.1", 80)
			}
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		if len(f.all()) != n {
			t.Fatalf("%d services after the first read", len(f.all()))
		}
		for _, i := range []int{0, n / 2, n - 1} {
			a.do(func() { a.put("", name(i), "x", "10.0.0.2", 80) })
			pass(rotation + 2*time.Second)
			if got := f.all()[name(i)]; got[0] != "10.0.0.2:80 healthy" {
				t.Errorf("%s is still %v after %v", name(i), got, rotation+2*time.Second)
			}
		}
		a.asked()
		pass(time.Minute)
		_, services, most := a.asked()
		if most > 150 {
			t.Errorf("%d queries at once, want at most 150", most)
		}
		if perSecond := services / 60; perSecond > 150 {
			t.Errorf("%d queries a second", perSecond)
		}
		// A new service does not wait for its turn.
		a.do(func() { a.put("", "new", "x", "10.0.0.3", 80) })
		synctest.Wait()
		if f.all()["new"] == nil {
			t.Error("a new service waits for its turn")
		}
		// Fewer services again: they all wait for changes.
		a.do(func() {
			for i := 100; i < n; i++ {
				a.remove("", name(i), "x")
			}
		})
		pass(time.Minute)
		a.asked()
		pass(time.Minute)
		if _, services, _ := a.asked(); services > 101 || len(f.all()) != 101 {
			t.Errorf("%d queries a minute for %d services", services, len(f.all()))
		}
	})
}

func TestAgentThatRefusesConnectionsIsAskedLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.limit = 40 // others hold the rest
			for i := range 100 {
				a.put("", fmt.Sprintf("s%d", i), "x", "10.0.0.1", 80)
			}
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		if len(f.all()) != 100 {
			t.Errorf("%d services, want all 100; %v", len(f.all()), f.said())
		}
		pass(time.Minute)
		a.do(func() { a.limit = 0 })
		pass(10 * time.Minute)
		if f.said().Phase != model.Live {
			t.Errorf("after others left: %v", f.said())
		}
	})
}

func TestSilentAgentIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
		f := follow(t, a, &mesh{})
		defer end(t, f)
		pass(time.Minute)
		a.mu.Lock()
		a.fail["ping"] = errCut // open queries go on waiting
		a.fail["list"] = errCut
		a.mu.Unlock()
		pass(16 * time.Second)
		if st := f.said(); st.Phase != model.Stale || len(f.all()) != 1 {
			t.Errorf("after 16 s of silence: %v", st)
		}
		a.do(func() {
			a.fail["ping"], a.fail["list"] = nil, nil
			a.put("", "cart", "c1", "10.0.0.2", 80)
		})
		pass(16 * time.Second)
		if st := f.said(); st.Phase != model.Live || f.all()["cart"][0] != "10.0.0.2:80 healthy" {
			t.Errorf("after it answers again: %v, %v", st, f.all())
		}
	})
}

func TestNothingIsReportedBeforeEverythingWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("", "cart", "c1", "10.0.0.1", 80)
			a.put("", "pay", "p1", "10.0.0.2", 80)
			a.fail["pay"] = errCut
		})
		f := follow(t, a, &mesh{})
		pass(time.Minute)
		if u := f.took(); len(u) != 0 {
			t.Errorf("updates %+v", u)
		}
		if err := f.stop(); !errors.Is(err, errCut) || !strings.Contains(err.Error(), "service pay") {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestUnreachableRegistryEndsRunBeforeTheFirstRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.fail[""] = errCut
		f := follow(t, a, &mesh{})
		pass(time.Second)
		if err := f.stop(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("Run: %v", err)
		}
		if u := f.took(); len(u) != 0 {
			t.Errorf("updates %+v", u)
		}
	})
}

func TestServiceThatOnlyFailsIsNamedAsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("", "cart", "c1", "10.0.0.1", 80)
			a.put("", "pay", "p1", "10.0.0.2", 80)
		})
		m := &mesh{}
		end(t, follow(t, a, m))
		m.took()
		a.do(func() {
			a.fail["pay"] = &wire.Error{Kind: wire.Failing, Text: "500 rpc error"}
			a.put("", "cart", "c1", "10.0.0.3", 80)
		})
		f := follow(t, a, m)
		defer end(t, f)
		pass(time.Minute)
		want := map[string][]string{"cart": {"10.0.0.3:80 healthy"}, "pay": {"10.0.0.2:80 healthy"}}
		if d := cmp.Diff(want, f.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if u := f.took(); len(u) != 1 || !u[0].Full {
			t.Errorf("%d updates", len(u))
		}
		if st := f.said(); st.Phase != model.Stale || !strings.Contains(st.Err, "service pay: 500 rpc error") {
			t.Errorf("%v", st)
		}
		a.do(func() { a.fail["pay"] = nil; a.remove("", "pay", "p1") })
		pass(time.Minute)
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.3:80 healthy"}}, f.all()); d != "" || f.said().Phase != model.Live {
			t.Errorf("read at last, %v (-want +got):\n%s", f.said(), d)
		}
	})
}

func TestInstanceThatCannotBeReadKeepsWhatWasKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("", "cart", "c1", "10.0.0.1", 80)
			a.put("", "cart", "c2", "10.0.0.2", 80)
			a.put("", "cart", "c3", "10.0.0.3", 80)
		})
		f := follow(t, a, &mesh{})
		defer end(t, f)
		a.do(func() {
			a.remove("", "cart", "c1")
			a.remove("", "cart", "c2")
			a.broken["cart"] = []wire.Rejected{{At: 0, Key: wire.Key{Node: "n1", ID: "c1"}, Reason: "port is a string"}}
		})
		pass(time.Second)
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.1:80 healthy", "10.0.0.3:80 healthy"}}, f.all()); d != "" {
			t.Errorf("c2 went, c1 is unreadable (-want +got):\n%s", d)
		}
		if st := f.said(); len(st.Skipped) != 1 || st.Skipped[0].Where != "cart[0]" {
			t.Errorf("skipped %v", st.Skipped)
		}
		a.do(func() { a.broken["cart"] = nil; a.put("", "cart", "c3", "10.0.0.4", 80) })
		pass(time.Second)
		if d := cmp.Diff(map[string][]string{"cart": {"10.0.0.4:80 healthy"}}, f.all()); d != "" {
			t.Errorf("c1 went (-want +got):\n%s", d)
		}
		if st := f.said(); len(st.Skipped) != 0 {
			t.Errorf("skipped %v", st.Skipped)
		}
	})
}

func TestDatacentersMergeAndFailApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent()
		a.do(func() {
			a.put("dc1", "cart", "c1", "10.1.0.1", 80)
			a.put("dc2", "cart", "c1", "10.2.0.1", 80)
			a.put("dc2", "pay", "p1", "10.2.0.2", 80)
		})
		f := follow(t, a, &mesh{}, func(c *Config) { c.Datacenters = []string{"dc1", "dc2"} })
		defer end(t, f)
		want := map[string][]string{"cart": {"10.1.0.1:80 healthy", "10.2.0.1:80 healthy"}, "pay": {"10.2.0.2:80 healthy"}}
		if d := cmp.Diff(want, f.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		a.do(func() { a.fail["dc2!"] = &wire.Error{Kind: wire.Failing, Text: "No path to datacenter"} })
		pass(time.Minute)
		if st := f.said(); st.Phase != model.Stale || !strings.HasPrefix(st.Err, "data centre dc2: No path") {
			t.Errorf("%v", st)
		}
		a.do(func() { a.put("dc1", "cart", "c1", "10.1.0.9", 80) })
		pass(time.Second)
		want["cart"] = []string{"10.1.0.9:80 healthy", "10.2.0.1:80 healthy"}
		if d := cmp.Diff(want, f.all()); d != "" {
			t.Errorf("dc1 changed while dc2 is away (-want +got):\n%s", d)
		}
		a.do(func() { a.fail["dc2!"] = nil; a.remove("dc2", "cart", "c1") })
		pass(time.Minute)
		want["cart"] = []string{"10.1.0.9:80 healthy"}
		if d := cmp.Diff(want, f.all()); d != "" || f.said().Phase != model.Live {
			t.Errorf("dc2 is back, %v (-want +got):\n%s", f.said(), d)
		}
	})
}

func TestNextServerIsAskedWhenOneFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, a := newAgent(), newAgent()
		dead.fail[""], dead.fail["ping"] = errCut, errCut
		a.do(func() { a.put("", "cart", "c1", "10.0.0.1", 80) })
		servers := func(c *Config) { c.Servers = []Registry{dead, a} }
		first := follow(t, a, &mesh{}, servers)
		if err := first.stop(); err == nil {
			t.Fatal("the dead one was not asked first")
		}
		ended := make(chan error, 1)
		m := &mesh{}
		go func() { ended <- first.follow.Run(t.Context(), m) }()
		synctest.Wait()
		if len(m.all()) != 1 {
			t.Errorf("the next Run asks the dead one again: %v", m.said())
		}
		a.do(func() { a.fail[""], a.fail["ping"] = errCut, errCut })
		dead.do(func() {
			dead.fail[""], dead.fail["ping"] = nil, nil
			dead.put("", "cart", "c1", "10.0.0.2", 80)
		})
		pass(time.Minute)
		if got := m.all()["cart"]; got[0] != "10.0.0.2:80 healthy" || m.said().Phase != model.Live {
			t.Errorf("they changed roles: %v, %v", got, m.said())
		}
	})
}
