package server_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

func TestEachTypeHasItsOwnService(t *testing.T) {
	for kind, method := range services {
		for _, delta := range []bool{true, false} {
			w := servertest.NewWorld(servertest.Simple(kind, "a", 1), servertest.Simple(kind, "b", 1))
			conn := servertest.Connect(t, w, server.Config{Log: quietLog()})
			verb := "Stream"
			if delta {
				verb = "Delta"
			}
			c := openStream(t, conn, delta, method[0]+verb+method[1])
			if delta { // the type goes without saying
				c.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"a"}})
			} else {
				c.send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a"}})
			}
			c.wantAck(kind.String()+" a", "a")
			w.Put(servertest.Simple(kind, "a", 2))
			c.wantAck(kind.String()+" a", "a")
			c.subscribe((kind+1)%resource.NumTypes, "a")
			if err := c.ends(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v: asked for another type: %v", kind, err)
			}
			eventually(t, "the stream leaves", func() bool { return w.Joined() == 0 })
		}
	}
}

func TestStreamsEndWithAReason(t *testing.T) {
	full := servertest.NewWorld(cds("a", 1))
	for _, tt := range []struct {
		name  string
		world *servertest.World
		send  func(*rawClient)
		code  codes.Code
		text  string
	}{
		{
			name: "a first request without a node", world: full, code: codes.InvalidArgument, text: "no node",
			send: func(c *rawClient) { c.node = nil; c.subscribe(resource.Cluster) },
		},
		{
			name: "a request without a type", world: full, code: codes.InvalidArgument, text: "type_url",
			send: func(c *rawClient) { c.send(&discoveryv3.DeltaDiscoveryRequest{}) },
		},
		{
			name: "too many names", world: full, code: codes.ResourceExhausted, text: "more than 3 names",
			send: func(c *rawClient) { c.subscribe(resource.Endpoints, "a", "b", "c", "d") },
		},
		{
			name: "a node that is not taken", code: codes.InvalidArgument, text: `node "n": no such tenant`,
			world: &servertest.World{Refuse: errors.New("no such tenant")},
			send:  func(c *rawClient) { c.node = &corev3.Node{Id: "n"}; c.subscribe(resource.Cluster) },
		},
		{
			name: "a node that is not allowed", code: codes.PermissionDenied, text: `node "n": not yours`,
			world: &servertest.World{Refuse: status.Error(codes.PermissionDenied, "not yours")},
			send:  func(c *rawClient) { c.node = &corev3.Node{Id: "n"}; c.subscribe(resource.Cluster) },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := servertest.Connect(t, tt.world, server.Config{Log: quietLog(), MaxNames: 3})
			c := openDelta(t, conn)
			tt.send(c)
			err := c.ends()
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("stream ended with %v, want %v and %q", err, tt.code, tt.text)
			}
		})
	}
}

func TestTypesThatAreNotServedAreIgnored(t *testing.T) {
	_, conn := start(t)
	c := openDelta(t, conn)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.service.runtime.v3.Runtime"})
	c.quiet()
}

func TestFetchIsUnimplemented(t *testing.T) {
	_, conn := start(t)
	var m discoveryv3.DiscoveryResponse
	err := conn.Invoke(context.WithoutCancel(t.Context()), "/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters", &discoveryv3.DiscoveryRequest{}, &m)
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want Unimplemented", err)
	}
}

func TestConfigMistakesAreReportedTogether(t *testing.T) {
	_, err := server.New(server.Config{MaxConnectionAge: -1, MaxNames: -1})
	for _, want := range []string{"World is required", "MaxConnectionAge -1ns is negative", "MaxNames -1 is negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to contain %q", err, want)
		}
	}
}

func TestSlowClientDoesNotStopOthers(t *testing.T) {
	w := servertest.NewWorld(probes()...)
	for i := range 4 {
		w.Put(big(string(rune('a'+i)), 500_000))
	}
	w.Put(servertest.Endpoints("aa", 1, 2))
	conn := servertest.Connect(t, w, server.Config{Log: quietLog(), MaxBytesInFlight: 1})
	// The slow one neither reads nor answers.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = slow.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "slow"}, TypeUrl: resource.Cluster.URL(),
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slow one is in", func() bool { return w.Joined() == 1 })
	fast := openDelta(t, conn)
	fast.subscribe(resource.Endpoints, "aa")
	fast.wantAck("EDS aa")
	for seed := range 50 {
		w.Put(servertest.Endpoints("aa", seed+2, 2))
		r := fast.wantAck("EDS aa")
		if got, want := string(r.raw["aa"]), string(servertest.Endpoints("aa", seed+2, 2).Body); got != want && seed == 49 {
			t.Error("the newest endpoints did not arrive")
		}
	}
}
