package watch

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// scene runs body in a bubble with a zoo and a mesh of its own.
func scene(t *testing.T, name string, body func(t *testing.T, z *zoo, m *mesh)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { body(t, newZoo(t), &mesh{held: map[model.Host]*model.Service{}}) })
	})
}

func TestFollower(t *testing.T) {
	scene(t, "reads all at first and then one service a change", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		z.put(provider("a.Pay", "10.0.0.1:20880", "1"), "")
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		if len(m.updates) != 1 || !m.updates[0].Full || len(m.updates[0].Services) != 3 || m.last().Phase != model.Live {
			t.Fatalf("updates %+v, status %+v", m.updates, m.last())
		}
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
		g.want("shop", "10.0.0.2:80 1 healthy")
		if name := m.held["a.cart"].Name; name != "a.Cart" {
			t.Errorf("name %q, want the case kept", name)
		}

		z.put(provider("a.Cart", "10.0.0.3:20880", "2"), "")
		g.settle(time.Second)
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "OUT_OF_SERVICE"))
		g.settle(time.Second)
		z.put("/services/new/y", spring("new", "10.0.0.4:80", "1", "UP"))
		g.settle(time.Second)
		if len(m.updates) != 4 {
			t.Errorf("%d updates, want one a change", len(m.updates))
		}
		for _, u := range m.updates[1:] {
			if u.Full || len(u.Services) != 1 || len(u.Removed) != 0 {
				t.Errorf("update %+v, want one service", u)
			}
		}
		g.want("a.cart", "10.0.0.1:20880 1 healthy", "10.0.0.3:20880 2 healthy")
		g.want("shop", "10.0.0.2:80 1 draining")
		g.want("new", "10.0.0.4:80 1 healthy")
	})

	scene(t, "a changed entry costs one request beside the list", func(t *testing.T, z *zoo, m *mesh) {
		for i := range 50 {
			z.put(fmt.Sprintf("/services/shop/%d", i), spring("shop", fmt.Sprintf("10.0.0.%d:80", i+1), "1", "UP"))
		}
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		before := z.requests
		z.put("/services/shop/7", spring("shop", "10.0.0.8:80", "2", "UP"))
		g.settle(time.Second)
		if n := z.requests - before; n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
		before = z.requests
		z.put("/services/shop/new", spring("shop", "10.0.0.99:80", "1", "UP"))
		g.settle(time.Second)
		if n := z.requests - before; n != 2 {
			t.Errorf("%d requests, want the list and the new entry", n)
		}
	})

	scene(t, "the first change goes at once and a storm is one read a window", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		z.put(provider("a.Cart", "10.0.0.2:20880", "1"), "")
		g.settle(time.Millisecond)
		if len(m.updates) != 2 {
			t.Errorf("%d updates after a millisecond, want 2", len(m.updates))
		}
		for i := range 100 {
			z.put(provider("a.Cart", fmt.Sprintf("10.0.1.%d:20880", i+1), "1"), "")
			g.settle(time.Millisecond)
		}
		g.settle(time.Second)
		if n := len(m.updates) - 2; n < 4 || n > 7 {
			t.Errorf("%d updates for 100 changes in 100 ms, want one each 20 ms", n)
		}
		if n := len(g.endpoints("a.cart")); n != 102 {
			t.Errorf("%d endpoints, want 102", n)
		}
	})

	scene(t, "a service that loses its last provider stays, with its ports", func(t *testing.T, z *zoo, m *mesh) {
		node := provider("a.Cart", "10.0.0.1:20880", "1")
		z.put(node, "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		z.remove(node)
		g.settle(time.Second)
		s := m.held["a.cart"]
		if s == nil || len(s.Endpoints) != 0 || len(s.Ports) != 1 || s.Ports[0].Number != 20880 {
			t.Errorf("service %+v, want it without endpoints", s)
		}
		z.put(provider("a.Cart", "10.0.0.2:50051", "1", "protocol=tri"), "")
		g.settle(time.Second)
		if s := m.held["a.cart"]; len(s.Ports) != 1 || s.Ports[0].Number != 50051 || s.Ports[0].Protocol != model.Triple {
			t.Errorf("ports %+v, want the new one alone", s.Ports)
		}
		z.remove("/dubbo/a.Cart")
		g.settle(time.Second)
		if last := m.updates[len(m.updates)-1]; len(last.Removed) != 1 || m.held["a.cart"] != nil {
			t.Errorf("last update %+v, want the removal", last)
		}
	})

	scene(t, "an interface that nobody provides yet is waited for", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/dubbo/a.Cart/consumers/c", "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		if len(m.held) != 0 || m.last().Phase != model.Live {
			t.Errorf("held %v, status %+v", m.held, m.last())
		}
		z.put("/dubbo/a.Cart/routers", "")
		g.settle(time.Second)
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		g.settle(time.Second)
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
		z.put(provider("a.Cart", "10.0.0.2:20880", "1"), "")
		g.settle(time.Second)
		g.want("a.cart", "10.0.0.1:20880 1 healthy", "10.0.0.2:20880 1 healthy")
	})

	scene(t, "a provider appears while its interface is read", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/dubbo/a.Cart/consumers/c", "")
		z.before["/dubbo/a.Cart"] = func() { z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "") }
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
	})

	scene(t, "roots that do not exist are waited for", func(t *testing.T, z *zoo, m *mesh) {
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		if m.last().Phase != model.Live || len(m.updates) != 1 {
			t.Fatalf("status %+v, updates %+v", m.last(), m.updates)
		}
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		g.settle(time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy")
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
		z.remove("/services")
		g.settle(time.Second)
		z.put("/services/shop/x", spring("shop", "10.0.0.3:80", "1", "UP"))
		g.settle(time.Second)
		g.want("shop", "10.0.0.3:80 1 healthy")
	})

	scene(t, "an entry that goes between list and read is gone", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		z.put("/services/shop/y", spring("shop", "10.0.0.3:80", "1", "UP"))
		z.before["/services/shop/y"] = func() { z.remove("/services/shop/y") }
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy")
		g.wantSkipped()
	})

	scene(t, "an entry that changes while it is read is read again", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		z.before["/services/shop/y"] = func() { z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "2", "UP")) }
		z.put("/services/shop/y", spring("shop", "10.0.0.3:80", "1", "UP"))
		g.settle(time.Second)
		g.want("shop", "10.0.0.2:80 2 healthy", "10.0.0.3:80 1 healthy")
	})
}

func TestFollowerWhenPartsCannotBeRead(t *testing.T) {
	scene(t, "a failed read freezes its service and no other", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		z.put(provider("a.Pay", "10.0.0.1:20880", "1"), "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		z.setFail("/dubbo/a.Cart/providers", zk.ErrAPIError)
		z.remove(provider("a.Cart", "10.0.0.1:20880", "1"))
		z.put(provider("a.Pay", "10.0.0.2:20880", "1"), "")
		g.settle(2 * time.Second)
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
		g.want("a.pay", "10.0.0.1:20880 1 healthy", "10.0.0.2:20880 1 healthy")
		g.wantSkipped("/dubbo/a.Cart: cannot be read, its last known state stays: zk: api error")
		if m.last().Phase != model.Live {
			t.Errorf("status %+v", m.last())
		}
		z.setFail("/dubbo/a.Cart/providers", nil)
		g.settle(retryRead + time.Second)
		g.want("a.cart")
		g.wantSkipped()
	})

	scene(t, "a service unreadable from the start is taken from what the mesh holds", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		z.put(provider("a.Pay", "10.0.0.1:20880", "1"), "")
		play(t, z, m, bothRoots...).settle(time.Second)

		z.watches = map[string]bool{} // a new session
		z.setFail("/dubbo/a.Cart/providers", zk.ErrNoAuth)
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		if last := m.updates[1]; !last.Full || len(last.Services) != 2 {
			t.Errorf("update %+v, want a full one with both", last)
		}
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
		g.wantSkipped("/dubbo/a.Cart: cannot be read")
	})

	scene(t, "of an entry that fails the service keeps all it had", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		z.put("/services/shop/y", spring("shop", "10.0.0.3:80", "1", "UP"))
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		z.setFail("/services/shop/x", zk.ErrAPIError)
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "2", "UP"))
		z.remove("/services/shop/y")
		g.settle(2 * time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy", "10.0.0.3:80 1 healthy")
		z.setFail("/services/shop/x", nil)
		g.settle(retryRead + time.Second)
		g.want("shop", "10.0.0.2:80 2 healthy")
		g.wantSkipped()
	})

	scene(t, "an instance overwritten by something unreadable keeps what it registered", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		z.put("/services/shop/y", spring("shop", "10.0.0.3:80", "1", "UP"))
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		for _, broken := range []string{`{"name":17}`, "", `{"address":"10.0.0.2","port":80}`, `{"address":"shop.internal","port":80}`} {
			z.put("/services/shop/x", broken)
			g.settle(2 * time.Second)
			g.want("shop", "10.0.0.2:80 1 healthy", "10.0.0.3:80 1 healthy")
			if skipped := m.last().Skipped; len(skipped) != 1 || skipped[0].Where != "/services/shop/x" || !strings.HasSuffix(skipped[0].Reason, "; its last known registration stays") {
				t.Errorf("%s: skipped %+v", broken, skipped)
			}
		}
		z.put("/services/shop/z", spring("shop", "10.0.0.4:80", "1", "UP")) // the list is read anew
		g.settle(2 * time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy", "10.0.0.3:80 1 healthy", "10.0.0.4:80 1 healthy")

		// Another session knows of it, too, and of what goes in the meantime.
		z.watches = map[string]bool{}
		z.put("/services/shop/y", "{}")
		z.remove("/services/shop/z")
		g = resume(t, z, m, g.memory, bothRoots...)
		g.settle(time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy", "10.0.0.3:80 1 healthy")
		z.put("/services/shop/x", spring("shop", "10.0.0.5:80", "2", "UP"))
		z.remove("/services/shop/y")
		g.settle(2 * time.Second)
		g.want("shop", "10.0.0.5:80 2 healthy")
		g.wantSkipped()
		z.remove("/services/shop")
		g.settle(2 * time.Second)
		z.put("/services/shop/x", "{}") // nobody we know
		g.settle(2 * time.Second)
		g.want("shop")
	})

	scene(t, "an entry closed to us does not hold up its neighbours", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/services/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		z.put("/services/shop/y", spring("shop", "10.0.0.3:80", "1", "UP"))
		z.setFail("/services/shop/x", zk.ErrNoAuth)
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("shop", "10.0.0.3:80 1 healthy")
		g.wantSkipped("/services/shop/x: cannot be read: zk: not authenticated")
		z.setFail("/services/shop/x", nil)
		z.put("/services/shop/z", spring("shop", "10.0.0.4:80", "1", "UP"))
		g.settle(2 * time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy", "10.0.0.3:80 1 healthy", "10.0.0.4:80 1 healthy")
		g.wantSkipped()
	})

	scene(t, "a root that cannot be listed keeps the source from being live", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		z.put("/services", "")
		z.setFail("/services", zk.ErrNoAuth)
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		if len(m.updates) != 0 || m.last().Phase == model.Live || !strings.Contains(m.last().Err, "list /services: zk: not authenticated") {
			t.Errorf("updates %+v, status %+v", m.updates, m.last())
		}
		z.setFail("/services", nil)
		g.settle(retryRead + time.Second)
		if len(m.updates) != 1 || m.last().Phase != model.Live {
			t.Errorf("updates %+v, status %+v", m.updates, m.last())
		}
		z.setFail("/dubbo", zk.ErrAPIError)
		z.put(provider("a.Pay", "10.0.0.1:20880", "1"), "")
		g.settle(time.Second)
		if m.last().Phase != model.Stale || len(m.held) != 1 {
			t.Errorf("status %+v, held %v", m.last(), m.held)
		}
		z.setFail("/dubbo", nil)
		g.settle(retryRead + time.Second)
		if m.last().Phase != model.Live || len(m.held) != 2 {
			t.Errorf("status %+v, held %v", m.last(), m.held)
		}
	})

	scene(t, "what is no service or no instance is named and left out", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/dubbo/config/x", "")
		z.put("/dubbo/mapping/a.Cart", "shop")
		z.put("/dubbo/metadata/a.Cart", "")
		z.put("/dubbo/a b/providers/x", "")
		z.put("/dubbo/a.Cart/providers/hello", "")
		z.put(provider("a.Cart", "10.0.0.1:20880", "1"), "")
		z.put("/services/shop/folder", "")
		z.put("/services/app/10.0.0.1:20880", strings.ReplaceAll(spring("app", "10.0.0.1:20880", "1", "UP"), string(wire.ClassSpring), string(wire.ClassDubbo)))
		z.put("/services/plain/1", `{"address":"10.0.0.1","port":80}`)
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("a.cart", "10.0.0.1:20880 1 healthy")
		if len(m.held) != 1 {
			t.Errorf("held %v, want one service", m.held)
		}
		g.wantSkipped(
			`/dubbo/a b: not a service: host "a b"`, "/dubbo/a.Cart/hello: provider URL", "/services/app: 1 instances of Dubbo 3's application level",
			`/services/plain/1: payload.@class is ""`, "/services/shop/folder: no data: not an instance",
		)
		z.remove("/dubbo/a b")
		z.remove("/dubbo/a.Cart/providers/hello")
		z.remove("/services/app")
		z.remove("/services/plain")
		z.remove("/services/shop")
		g.settle(2 * time.Second)
		g.wantSkipped()
	})

	scene(t, "the list of what was skipped is bounded", func(t *testing.T, z *zoo, m *mesh) {
		for i := range 250 {
			z.put(fmt.Sprintf("/services/shop/%d", i), "{}")
		}
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		skipped := m.last().Skipped
		if len(skipped) != maxSkipped+1 || skipped[maxSkipped].Reason != "and 150 more" {
			t.Errorf("%d entries, the last %+v", len(skipped), skipped[len(skipped)-1])
		}
	})
}

// Whoever may look at the mesh sees what was skipped.
func TestSkippedProvidersShowNoSecrets(t *testing.T) {
	scene(t, "credentials and parameters", func(t *testing.T, z *zoo, m *mesh) {
		for _, name := range []string{
			"dubbo://10.0.0.1:20880/a.Pay?interface=a.Pay&token=s3cret&password=s3cret",      // of another interface
			"dubbo://me:s3cret@10.0.0.2:0/a.Cart?token=s3cret",                               // no port
			"dubbo://me:s3cret/x@10.0.0.3:1/a.Cart?token=s3cret",                             // a slash in the password
			"odd://10.0.0.4:1/a.Cart?interface=a.Cart&accesskey=s3cret",                      // no service port
			"dubbo://10.0.0.5:1/a.Cart?interface=a.Cart&weight=many&username=a&token=s3cret", // half accepted
			"dubbo://10.0.0.6:1/a.Cart?token=s3cret\x01",
			"me:s3cret@10.0.0.7:1?token=s3cret",
		} {
			z.put("/dubbo/a.Cart/providers/"+url.QueryEscape(name), "")
		}
		z.put("/dubbo/a.Cart/providers/dubbo%3A%2F%2F10.0.0.8%3A1%2Fa.Cart%3Ftoken%3Ds3cret%zz", "")
		z.put("/dubbo/a.Cart/providers/dubbo%253A%252F%252F10.0.0.9%253A1%252Fa.Cart%253Ftoken%253Ds3cret", "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		skipped := m.last().Skipped
		if len(skipped) != 9 {
			t.Errorf("%d entries, want 9", len(skipped))
		}
		for _, r := range skipped {
			if text := r.Where + " " + r.Reason; strings.Contains(text, "s3cret") || strings.Contains(text, "token") {
				t.Errorf("shown: %s", text)
			}
		}
		if !slices.ContainsFunc(skipped, func(r model.Rejected) bool { return r.Where == "/dubbo/a.Cart/dubbo://10.0.0.1:20880/a.Pay" }) {
			t.Errorf("protocol, address and interface are not shown: %+v", skipped)
		}
	})
}

func TestFollowerMergesRoots(t *testing.T) {
	scene(t, "one host in two roots is one service", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("cart", "10.0.0.1:20880", "1"), "")
		z.put("/services/CART/x", spring("CART", "10.0.0.2:80", "1", "UP"))
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("cart", "10.0.0.1:20880 1 healthy", "10.0.0.2:80 1 healthy")
		if s := m.held["cart"]; len(s.Ports) != 2 || s.Ports[0].Number != 80 || s.Ports[1].Number != 20880 {
			t.Errorf("ports %+v", s.Ports)
		}
		z.remove("/dubbo/cart")
		g.settle(time.Second)
		g.want("cart", "10.0.0.2:80 1 healthy")
	})

	scene(t, "a provider that came back is once there, as registered last", func(t *testing.T, z *zoo, m *mesh) {
		z.put(provider("a.Cart", "10.0.0.1:20880", "1", "timestamp=1795361611901"), "")
		z.put(provider("a.Cart", "10.0.0.1:20880", "2", "timestamp=1795361611902"), "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("a.cart", "10.0.0.1:20880 2 healthy")
		if got, _ := m.held["a.cart"].Endpoints[0].Labels.Get(variantsLabel); got != "/1,/2" {
			t.Errorf("%s is %q, want both", variantsLabel, got)
		}
	})

	scene(t, "an interface whose name is escaped", func(t *testing.T, z *zoo, m *mesh) {
		node := strings.Replace(provider("a.Outer$Inner", "10.0.0.1:20880", "1"), "/dubbo/a.Outer$Inner", "/dubbo/a.Outer%24Inner", 1)
		z.put(node, "")
		g := play(t, z, m, bothRoots...)
		g.settle(time.Second)
		g.want("a.outer$inner", "10.0.0.1:20880 1 healthy")
	})

	scene(t, "the root of the tree as Spring's root", func(t *testing.T, z *zoo, m *mesh) {
		z.put("/zookeeper/quota", "")
		z.put("/shop/x", spring("shop", "10.0.0.2:80", "1", "UP"))
		g := play(t, z, m, Root{Spring, "/"})
		g.settle(time.Second)
		z.put("/shop/y", spring("shop", "10.0.0.3:80", "1", "UP"))
		g.settle(time.Second)
		g.want("shop", "10.0.0.2:80 1 healthy", "10.0.0.3:80 1 healthy")
		g.wantSkipped()
	})
}
