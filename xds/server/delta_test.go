package server_test

import (
	"maps"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

func start(t *testing.T, rs ...*resource.Resource) (*servertest.World, *grpc.ClientConn) {
	t.Helper()
	w := servertest.NewWorld(probes()...)
	w.Put(rs...)
	conn := servertest.Connect(t, w, server.Config{Log: quietLog()})
	return w, conn
}

func cds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Cluster, name, seed)
}

func eds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Endpoints, name, seed)
}

func lds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Listener, name, seed)
}

func rds(name string, seed int) *resource.Resource {
	return servertest.Simple(resource.Route, name, seed)
}

func key(t resource.Type, name string) resource.Key { return resource.Key{Type: t, Name: name} }

func TestDeltaWildcard(t *testing.T) {
	for _, names := range [][]string{nil, {"*"}} {
		w, conn := start(t, cds("a", 1), cds("b", 1))
		w.PutOnDemand(cds("rare", 1))
		c := openDelta(t, conn)
		c.subscribe(resource.Cluster, names...)
		c.wantAck("CDS a,b")
		c.quiet()
		w.Put(cds("c", 1))
		c.wantAck("CDS c")
		w.Put(cds("a", 2))
		c.wantAck("CDS a")
		w.Put(cds("a", 2)) // the same content
		w.PutOnDemand(cds("rarer", 1))
		c.quiet()
		w.Delete(key(resource.Cluster, "b"))
		c.wantAck("CDS  -b")
		w.Put(cds("b", 1))
		c.wantAck("CDS b")
		c.quiet()
		c.subscribe(resource.Cluster, "rare")
		c.wantAck("CDS rare")
		w.PutOnDemand(cds("rare", 2))
		c.wantAck("CDS rare")
		c.unsubscribe(resource.Cluster, "rare")
		c.wantAck("CDS  -rare")
		c.quiet()
	}
}

func TestDeltaWildcardOverNothingIsAnswered(t *testing.T) {
	w, conn := start(t)
	c := openDelta(t, conn)
	c.subscribe(resource.Cluster)
	c.wantAck("CDS ")
	w.Put(cds("a", 1))
	c.wantAck("CDS a")
	c.quiet()
}

func TestDeltaOnlyClustersAndListenersHaveTheLegacyWildcard(t *testing.T) {
	_, conn := start(t, eds("a", 1), eds("b", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints)
	c.quiet()
	c.subscribe(resource.Endpoints, "*")
	c.wantAck("EDS a,b")
}

func TestDeltaNames(t *testing.T) {
	w, conn := start(t, eds("a", 1), eds("b", 1), eds("c", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints, "a", "none")
	c.wantAck("EDS a -none")
	c.subscribe(resource.Endpoints, "b")
	c.wantAck("EDS b")
	w.Put(eds("a", 2), eds("c", 2))
	c.wantAck("EDS a")
	w.Put(eds("none", 1))
	c.wantAck("EDS none")
	w.Delete(key(resource.Endpoints, "none"))
	c.wantAck("EDS  -none")
	w.Put(eds("none", 1))
	c.wantAck("EDS none")
	c.unsubscribe(resource.Endpoints, "a")
	c.quiet()
	w.Put(eds("a", 3))
	c.quiet()
	// Naming it again, or twice, gets it again: the client may have dropped it.
	c.subscribe(resource.Endpoints, "a", "b", "b")
	c.wantAck("EDS a,b")
	c.unsubscribe(resource.Endpoints, "a", "b", "none", "never")
	c.quiet()
	w.Put(eds("a", 4), eds("b", 4))
	w.Delete(key(resource.Endpoints, "none"))
	c.quiet()
}

func TestDeltaUnsubscribeWithinAWildcard(t *testing.T) {
	w, conn := start(t, cds("a", 1), cds("b", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Cluster, "*", "a", "ghost")
	c.wantAck("CDS a,b -ghost")
	c.unsubscribe(resource.Cluster, "a", "ghost")
	c.wantAck("CDS a -ghost") // the wildcard still has a
	w.Put(cds("a", 2))
	c.wantAck("CDS a")
	c.subscribe(resource.Cluster, "b")
	c.wantAck("CDS b")
	c.unsubscribe(resource.Cluster, "*")
	c.quiet()
	w.Put(cds("a", 3))
	c.quiet()
	w.Put(cds("b", 3))
	c.wantAck("CDS b")
}

func TestDeltaReconnectGetsWhatDiffers(t *testing.T) {
	w, conn := start(t, cds("same", 1), cds("changed", 1), cds("gone", 1), eds("same", 1), eds("changed", 1), eds("gone", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Cluster)
	clusters := c.wantAck("CDS changed,gone,same")
	c.subscribe(resource.Endpoints, "same", "changed", "gone")
	endpoints := c.wantAck("EDS changed,gone,same")
	c.cancel()
	eventually(t, "the stream leaves", func() bool { return w.Joined() == 0 })

	w.Put(cds("changed", 2), cds("new", 1), eds("changed", 2))
	w.Delete(key(resource.Cluster, "gone"), key(resource.Endpoints, "gone"))
	c = openDelta(t, conn)
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resource.Cluster.URL(), InitialResourceVersions: clusters.bodies,
	})
	c.wantAck("CDS changed,new")
	c.wantAck("CDS  -gone")
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), ResourceNamesSubscribe: []string{"same", "changed", "gone"},
		InitialResourceVersions: endpoints.bodies,
	})
	c.wantAck("EDS changed")
	c.wantAck("EDS  -gone")
	c.quiet()
}

func TestDeltaWarmReconnectSendsEndpointsOfChangedClusterAgain(t *testing.T) {
	_, conn := start(t, cds("a", 2), cds("b", 1), eds("a", 1), eds("b", 1))
	c := openDelta(t, conn)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.Cluster.URL(), InitialResourceVersions: map[string]string{
		"a": cds("a", 1).Version, "b": cds("b", 1).Version,
	}})
	c.wantAck("CDS a")
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), ResourceNamesSubscribe: []string{"a", "b"},
		InitialResourceVersions: map[string]string{"a": eds("a", 1).Version, "b": eds("b", 1).Version},
	})
	c.wantAck("EDS a")
	c.quiet()
}

func TestDeltaCoalescesWhileAResponseIsUnanswered(t *testing.T) {
	w, conn := start(t, eds("a", 1), eds("b", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints, "a", "b")
	first := c.want("EDS a,b")
	other := openDelta(t, conn)
	other.subscribe(resource.Endpoints, "b")
	other.wantAck("EDS b")
	for seed := 2; seed < 700; seed++ { // more than the log holds
		w.Put(eds("a", seed))
	}
	w.Put(eds("b", 2))
	other.wantAck("EDS b") // so all of the above has been released
	c.quiet()              // other types go on
	c.ack(first)
	r := c.wantAck("EDS a,b")
	if got, want := r.bodies["a"], eds("a", 699).Version; got != want {
		t.Errorf("version of a %s, want %s", got, want)
	}
	c.quiet()
}

func TestDeltaStaleNonce(t *testing.T) {
	w, conn := start(t, eds("a", 1), eds("b", 1))
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints, "a")
	first := c.wantAck("EDS a")
	w.Put(eds("a", 2))
	second := c.want("EDS a")
	w.Put(eds("a", 3))
	c.ack(first) // stale: the second is still unanswered
	c.quiet()
	// Its subscriptions count nevertheless.
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), ResponseNonce: first.nonce, ResourceNamesSubscribe: []string{"b"},
	})
	c.quiet()
	c.ack(second)
	c.wantAck("EDS a,b")
	c.quiet()
}

func TestDeltaAnswersWhatANonceFromAnEarlierStreamAsks(t *testing.T) {
	_, conn := start(t, eds("a", 1))
	c := openDelta(t, conn)
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resource.Endpoints.URL(), ResponseNonce: "77", ResourceNamesSubscribe: []string{"a"},
	})
	c.wantAck("EDS a")
	c.quiet()
}

func TestDeltaSplitsLargeResponses(t *testing.T) {
	w := servertest.NewWorld(probes()...)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		w.Put(servertest.Endpoints(n, 1, 40)) // about 1 KB
	}
	conn := servertest.Connect(t, w, server.Config{Log: quietLog(), MaxResponseBytes: 2500})
	c := openDelta(t, conn)
	c.subscribe(resource.Endpoints, "*")
	got := map[string]string{}
	for range 3 {
		r := c.next()
		if len(r.bodies) > 2 {
			t.Errorf("response %v, want at most 2 resources", r)
		}
		maps.Copy(got, r.bodies)
		c.ack(r)
	}
	if len(got) != 5 {
		t.Errorf("got %v, want all five", got)
	}
	c.quiet()
}
