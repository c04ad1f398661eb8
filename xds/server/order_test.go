package server_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// subscribed is a delta client that holds one resource "a" of each type.
func subscribed(t *testing.T) (*servertest.World, *rawClient) {
	t.Helper()
	w := servertest.NewWorld(cds("a", 1), eds("a", 1), lds("a", 1), rds("a", 1), servertest.Simple(resource.Secret, "a", 1))
	w.Put(probes()...)
	c := openDelta(t, servertest.Connect(t, w, server.Config{Log: quietLog()}))
	c.subscribe(resource.Cluster)
	c.wantAck("CDS a")
	c.subscribe(resource.Endpoints, "a")
	c.wantAck("EDS a")
	c.subscribe(resource.Listener)
	c.wantAck("LDS a")
	c.subscribe(resource.Route, "a")
	c.wantAck("RDS a")
	c.subscribe(resource.Secret, "a")
	c.wantAck("SDS a")
	c.quiet() // all that was acknowledged has arrived
	return w, c
}

func TestAdditionsComeInOrderAndDeletionsInReverse(t *testing.T) {
	w, c := subscribed(t)
	w.Put(rds("a", 2), lds("a", 2), eds("a", 2), cds("a", 2), servertest.Simple(resource.Secret, "a", 2))
	for _, want := range []string{"SDS a", "CDS a", "EDS a", "LDS a", "RDS a"} {
		c.wantAck(want)
	}
	w.Delete(key(resource.Secret, "a"), key(resource.Cluster, "a"), key(resource.Endpoints, "a"),
		key(resource.Listener, "a"), key(resource.Route, "a"))
	for _, want := range []string{"RDS  -a", "LDS  -a", "EDS  -a", "CDS  -a", "SDS  -a"} {
		c.wantAck(want)
	}
}

func TestNewBeforeOldGoes(t *testing.T) {
	w, c := subscribed(t)
	c.subscribe(resource.Endpoints, "b")
	c.wantAck("EDS  -b")
	w.Change(
		[]*resource.Resource{cds("b", 1), eds("b", 1), lds("b", 1), rds("a", 2)},
		[]resource.Key{key(resource.Cluster, "a"), key(resource.Endpoints, "a"), key(resource.Listener, "a")},
	)
	for _, want := range []string{"CDS b", "EDS b", "LDS b", "RDS a", "LDS  -a", "EDS  -a", "CDS  -a"} {
		c.wantAck(want)
	}
}

func TestRoutesWaitForClustersThatAreHeldBack(t *testing.T) {
	w, c := subscribed(t)
	w.Put(cds("a", 2))
	unanswered := c.want("CDS a")
	c.wantAck("EDS a") // again, after its cluster
	w.Put(cds("b", 1), rds("a", 2), eds("a", 2), eds("b", 1))
	c.wantAck("EDS a") // endpoints never wait for clusters
	c.ack(unanswered)
	c.wantAck("CDS b")
	// The route may name b: it waits until the client has b's endpoints.
	c.subscribe(resource.Endpoints, "b")
	c.wantAck("EDS b")
	c.wantAck("RDS a")
}

func TestRouteThatIsAskedForIsNotHeldBack(t *testing.T) {
	w, c := subscribed(t)
	w.Put(cds("a", 2), rds("b", 1))
	unanswered := c.want("CDS a")
	c.wantAck("EDS a")
	w.Put(cds("b", 1), eds("b", 1), rds("a", 2))
	c.subscribe(resource.Route, "b") // a listener warms up with it
	c.wantAck("RDS b")
	c.ack(unanswered)
	c.wantAck("CDS b")
	c.subscribe(resource.Endpoints, "b")
	c.wantAck("EDS b")
	c.wantAck("RDS a")
}

func TestRoutesDoNotWaitForeverForEndpointsNobodyAsksFor(t *testing.T) {
	w, c := subscribed(t)
	w.Put(cds("b", 1), eds("b", 1), rds("a", 2))
	c.wantAck("CDS b")
	c.wantAck("RDS a") // after warmTime
}

func TestEndpointsComeAgainAfterTheirCluster(t *testing.T) {
	for _, delta := range []bool{true, false} {
		w := servertest.NewWorld(cds("a", 1), cds("b", 1), eds("a", 1), eds("b", 1))
		w.Put(probes()...)
		conn := servertest.Connect(t, w, server.Config{Log: quietLog()})
		c := openSotW(t, conn)
		both, edsNames := "CDS a,b", []string{"a", "b"}
		if delta {
			c, both = openDelta(t, conn), "CDS a"
		}
		c.subscribe(resource.Cluster)
		c.wantAck("CDS a,b")
		c.subscribe(resource.Endpoints, edsNames...)
		c.wantAck("EDS a,b", edsNames...)
		w.Put(cds("a", 2))
		c.wantAck(both)
		c.wantAck("EDS a", edsNames...)
		c.quiet()
	}
}
