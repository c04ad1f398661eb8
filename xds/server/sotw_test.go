package server_test

import (
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

func TestSotWWildcardCarriesTheWholeState(t *testing.T) {
	for _, names := range [][]string{nil, {"*"}} {
		w, conn := start(t, cds("a", 1), cds("b", 1))
		w.PutOnDemand(cds("rare", 1))
		c := openSotW(t, conn)
		c.subscribe(resource.Cluster, names...)
		first := c.wantAck("CDS a,b", names...)
		w.Put(cds("a", 2))
		second := c.wantAck("CDS a,b", names...)
		if first.version == second.version {
			t.Error("the set changed, its version did not")
		}
		w.Put(cds("c", 1))
		c.wantAck("CDS a,b,c", names...)
		w.Delete(key(resource.Cluster, "c"), key(resource.Cluster, "b"))
		c.wantAck("CDS a", names...)
		w.Put(cds("b", 1))
		w.PutOnDemand(cds("rarer", 1))
		back := c.wantAck("CDS a,b", names...)
		if back.version != second.version {
			t.Errorf("version %s of the same set as before, want %s", back.version, second.version)
		}
		c.quiet()
	}
}

func TestSotWEmptyWorld(t *testing.T) {
	w, conn := start(t)
	c := openSotW(t, conn)
	c.subscribe(resource.Cluster)
	c.wantAck("CDS ")
	c.subscribe(resource.Listener, "absent")
	c.wantAck("LDS ", "absent") // what is not in the answer does not exist
	c.subscribe(resource.Endpoints, "absent")
	c.quiet() // state of the world has no word for it
	w.Put(cds("a", 1), lds("absent", 1), eds("absent", 1))
	c.wantAck("CDS a")
	c.wantAck("EDS absent", "absent")
	c.wantAck("LDS absent", "absent")
	c.quiet()
}

func TestSotWNames(t *testing.T) {
	for _, tt := range []struct {
		t     resource.Type
		whole bool
	}{{resource.Cluster, true}, {resource.Listener, true}, {resource.Endpoints, false}, {resource.Secret, false}} {
		t.Run(tt.t.String(), func(t *testing.T) {
			put := func(name string, seed int) *resource.Resource { return servertest.Simple(tt.t, name, seed) }
			pick := func(whole, part string) string {
				if tt.whole {
					return tt.t.String() + " " + whole
				}
				return tt.t.String() + " " + part
			}
			w, conn := start(t, put("a", 1), put("b", 1), put("c", 1))
			c := openSotW(t, conn)
			c.subscribe(tt.t, "a", "b", "late")
			c.wantAck(pick("a,b", "a,b"), "a", "b", "late")
			w.Put(put("a", 2), put("c", 2))
			c.wantAck(pick("a,b", "a"), "a", "b", "late")
			w.Put(put("late", 1))
			c.wantAck(pick("a,b,late", "late"), "a", "b", "late")
			c.quiet()
			// More names, repeated as clients do on every acknowledgement.
			r := c.subscribeWith(tt.t, "c", "a", "b", "late")
			if got := r.String(); got != pick("a,b,c,late", "c") {
				t.Fatalf("got %q", got)
			}
			c.ack(r, "c", "a", "b", "late")
			// Fewer names need no answer, and changes of the others are not sent.
			c.send(&discoveryv3.DiscoveryRequest{TypeUrl: tt.t.URL(), ResponseNonce: r.nonce, VersionInfo: r.version, ResourceNames: []string{"a"}})
			c.quiet()
			w.Put(put("b", 2))
			c.quiet()
			w.Put(put("a", 3))
			r = c.wantAck(pick("a", "a"), "a")
			// A name that was dropped is sent again when asked for again.
			c.send(&discoveryv3.DiscoveryRequest{TypeUrl: tt.t.URL(), ResponseNonce: r.nonce, VersionInfo: r.version, ResourceNames: []string{"a", "b"}})
			r = c.wantAck(pick("a,b", "b"), "a", "b")
			// No names at all: nothing any more, not everything.
			c.send(&discoveryv3.DiscoveryRequest{TypeUrl: tt.t.URL(), ResponseNonce: r.nonce, VersionInfo: r.version})
			c.quiet()
			w.Put(put("a", 4), put("b", 4))
			c.quiet()
		})
	}
}

// subscribeWith names what is wanted and returns the answer.
func (c *rawClient) subscribeWith(t resource.Type, names ...string) response {
	c.t.Helper()
	c.subscribe(t, names...)
	return c.next()
}

func TestSotWReconnectWithTheVersionOfTheSetGetsNothing(t *testing.T) {
	w, conn := start(t, cds("a", 1), eds("a", 1), eds("b", 1))
	c := openSotW(t, conn)
	c.subscribe(resource.Cluster)
	clusters := c.wantAck("CDS a")
	c.subscribe(resource.Endpoints, "a", "b")
	endpoints := c.wantAck("EDS a,b", "a", "b")
	c.cancel()

	c = openSotW(t, conn)
	c.send(&discoveryv3.DiscoveryRequest{TypeUrl: resource.Cluster.URL(), VersionInfo: clusters.version})
	c.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), VersionInfo: endpoints.version, ResourceNames: []string{"a", "b"},
	})
	c.quiet()
	w.Put(eds("b", 2))
	c.wantAck("EDS b", "a", "b")
	c.cancel()

	// Fewer names under the same version are another set.
	c = openSotW(t, conn)
	c.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), VersionInfo: endpoints.version, ResourceNames: []string{"a"},
	})
	c.wantAck("EDS a", "a")
	c.quiet()
}

func TestSotWStaleRequestIsIgnored(t *testing.T) {
	w, conn := start(t, eds("a", 1), eds("b", 1))
	c := openSotW(t, conn)
	c.subscribe(resource.Endpoints, "a")
	first := c.wantAck("EDS a", "a")
	w.Put(eds("a", 2))
	second := c.want("EDS a")
	c.ack(first, "a", "b")
	c.quiet()
	c.ack(second, "a", "b")
	c.wantAck("EDS b", "a", "b")
	c.quiet()
}

func TestSotWNamesBesideAWildcard(t *testing.T) {
	w, conn := start(t, cds("a", 1))
	w.PutOnDemand(cds("rare", 1))
	c := openSotW(t, conn)
	c.subscribe(resource.Cluster, "*", "rare")
	c.wantAck("CDS a,rare", "*", "rare")
	w.PutOnDemand(cds("rare", 2))
	r := c.wantAck("CDS a,rare", "*", "rare")
	c.send(&discoveryv3.DiscoveryRequest{TypeUrl: resource.Cluster.URL(), ResponseNonce: r.nonce, VersionInfo: r.version, ResourceNames: []string{"rare"}})
	c.quiet()
	w.Put(cds("a", 2))
	c.quiet()
	w.PutOnDemand(cds("rare", 3))
	c.wantAck("CDS rare", "rare")
	c.quiet()
}

func TestSotWSetVersionIsVerbatim(t *testing.T) {
	version := "1"
	w := servertest.NewWorld(cds("a", 1))
	conn := servertest.Connect(t, w, server.Config{Log: quietLog(), SetVersion: func(resource.Type) string { return version }})
	c := openSotW(t, conn)
	c.subscribe(resource.Cluster)
	if r := c.wantAck("CDS a"); r.version != "1" {
		t.Errorf("version %q, want the one that was set", r.version)
	}
}

func TestSotWKeepsWhatGoesUntilNothingRefersToIt(t *testing.T) {
	w, conn := start(t, cds("old", 1), rds("r", 1))
	c := openSotW(t, conn)
	c.subscribe(resource.Cluster)
	c.wantAck("CDS old")
	c.subscribe(resource.Route, "r")
	c.wantAck("RDS r", "r")
	w.Change([]*resource.Resource{cds("new", 1), rds("r", 2)}, []resource.Key{key(resource.Cluster, "old")})
	c.wantAck("CDS new,old")
	c.wantAck("RDS r", "r")
	c.wantAck("CDS new")
}
