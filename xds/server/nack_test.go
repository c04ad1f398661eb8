package server_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

func startWithStatus(t *testing.T, rs ...*resource.Resource) (*servertest.World, *grpc.ClientConn, *status.Registry) {
	t.Helper()
	reg := status.NewRegistry()
	w := servertest.NewWorld(probes()...)
	w.Put(rs...)
	return w, servertest.Connect(t, w, server.Config{Log: quietLog(), Status: reg}), reg
}

func TestNackedVersionIsNotSentAgain(t *testing.T) {
	for _, delta := range []bool{true, false} {
		w, conn := start(t, cds("a", 1), cds("b", 1))
		c, all, again := openSotW(t, conn), "CDS a,b", "CDS a,b"
		if delta {
			c, all, again = openDelta(t, conn), "CDS a", "CDS b"
		}
		c.subscribe(resource.Cluster)
		c.wantAck("CDS a,b")
		w.Put(cds("a", 2))
		c.nack(c.want(all), "Error adding/updating cluster(s) a: bad")
		c.quiet()
		// Another change: this client keeps the a that it has.
		w.Put(cds("b", 2))
		r := c.wantAck(again)
		if got := string(r.raw["a"]); !delta && got != string(cds("a", 1).Body) {
			t.Error("the set carries the refused version of a, want the one that is held")
		}
		w.Put(cds("a", 3))
		c.wantAck(all)
		c.quiet()
	}
}

func TestRefusedResourceIsQuarantined(t *testing.T) {
	w, conn, reg := startWithStatus(t, cds("a", 1), cds("ab", 1))
	first := openDelta(t, conn)
	first.subscribe(resource.Cluster)
	first.wantAck("CDS a,ab")
	bad := servertest.Simple(resource.Cluster, "a", 2, "destinationrule/default/cart")
	w.Put(bad, cds("ab", 2))
	first.nack(first.want("CDS a,ab"), "a: lb_policy: unknown")
	first.quiet()

	second := openDelta(t, conn)
	second.subscribe(resource.Cluster)
	r := second.wantAck("CDS a,ab")
	if got, want := r.bodies["a"], cds("a", 1).Version; got != want {
		t.Errorf("new stream got version %s of a, want the last good one %s", got, want)
	}
	if got, want := r.bodies["ab"], cds("ab", 2).Version; got != want {
		t.Errorf("new stream got version %s of ab, want the newest %s", got, want)
	}
	refusals := reg.Refusals()
	if len(refusals) != 1 {
		t.Fatalf("refusals %+v, want one", refusals)
	}
	f := refusals[0]
	if f.Name != "a" || f.Type != resource.Cluster || f.Detail != "a: lb_policy: unknown" || !f.Quarantined ||
		f.Version != bad.Version || !slices.Equal(f.Origins, bad.Origins) || f.NodeID != "node-"+t.Name() {
		t.Errorf("refusal %+v", f)
	}

	// New content goes to everybody.
	w.Put(cds("a", 3))
	for _, c := range []*rawClient{first, second} {
		if r := c.wantAck("CDS a"); r.bodies["a"] != cds("a", 3).Version {
			t.Errorf("got version %s, want the newest", r.bodies["a"])
		}
		c.quiet()
	}
}

func TestQuarantineEndsWhenAnotherStreamAcknowledges(t *testing.T) {
	w, conn := start(t, cds("a", 1))
	odd, fine := openDelta(t, conn), openDelta(t, conn)
	for _, c := range []*rawClient{odd, fine} {
		c.subscribe(resource.Cluster)
		c.wantAck("CDS a")
		c.quiet()
	}
	w.Put(cds("a", 2))
	late := fine.want("CDS a")
	odd.nack(odd.want("CDS a"), "a: I am odd")
	odd.quiet()
	third := openDelta(t, conn)
	third.subscribe(resource.Cluster)
	if r := third.wantAck("CDS a"); r.bodies["a"] != cds("a", 1).Version {
		t.Fatalf("got version %s, want the last good one", r.bodies["a"])
	}
	fine.ack(late)
	if r := third.wantAck("CDS a"); r.bodies["a"] != cds("a", 2).Version {
		t.Errorf("got version %s, want the newest, since a client has taken it", r.bodies["a"])
	}
	odd.quiet()
}

func TestOneOddClientDoesNotQuarantineWhatOthersTook(t *testing.T) {
	w, conn := start(t, cds("a", 1))
	fine, odd := openDelta(t, conn), openDelta(t, conn)
	for _, c := range []*rawClient{fine, odd} {
		c.subscribe(resource.Cluster)
		c.wantAck("CDS a")
	}
	w.Put(cds("a", 2))
	fine.wantAck("CDS a")
	fine.quiet()
	odd.nack(odd.want("CDS a"), "a: I am odd")
	odd.quiet()
	third := openDelta(t, conn)
	third.subscribe(resource.Cluster)
	if r := third.wantAck("CDS a"); r.bodies["a"] != cds("a", 2).Version {
		t.Errorf("got version %s, want the newest", r.bodies["a"])
	}
}

func TestWithoutALastGoodVersionTheNewestIsServed(t *testing.T) {
	_, conn := start(t, cds("a", 1))
	for range 2 {
		c := openDelta(t, conn)
		c.subscribe(resource.Cluster)
		c.nack(c.want("CDS a"), "a: bad")
		c.quiet()
	}
}

func TestUnnamedCulpritIsFound(t *testing.T) {
	var all []*resource.Resource
	for i := range 16 {
		all = append(all, eds(fmt.Sprintf("c%02d", i), 1))
	}
	_, conn, reg := startWithStatus(t, all...)
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints, "*")
	taken := map[string]bool{}
	refusals := 0
	for len(taken) < 15 || refusals == 0 || len(reg.Refusals()) == 0 {
		r := c.next()
		if refusals++; refusals > 40 {
			t.Fatal("responses without end")
		}
		if _, bad := r.bodies["c11"]; bad {
			c.nack(r, "something is wrong")
			if len(r.bodies) == 1 {
				eventually(t, "the refusal is reported", func() bool { return len(reg.Refusals()) > 0 })
			}
			continue
		}
		for n := range r.bodies {
			taken[n] = true
		}
		c.ack(r)
	}
	if f := reg.Refusals(); len(f) != 1 || f[0].Name != "c11" {
		t.Errorf("refusals %+v, want c11 alone", f)
	}
	c.quiet()
}

func TestRestOfARefusedResponseComesAgain(t *testing.T) {
	// Envoy stops at the first mistake among load assignments and names that one.
	w, conn := start(t, eds("a", 1), eds("b", 1), eds("c", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints, "a", "b", "c")
	c.wantAck("EDS a,b,c")
	w.Put(eds("a", 2), eds("b", 2), eds("c", 2))
	c.nack(c.want("EDS a,b,c"), "load assignment b: port")
	c.wantAck("EDS a,c")
	c.quiet()
}
