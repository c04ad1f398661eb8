package server_test

import (
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// FuzzRequests lets a client do anything in any order. Whatever it did, a stream
// that is still open afterwards answers a new subscription, and one that leaves
// leaves nothing behind.
//
// Each byte of the script is one step: 3 bits what, 2 bits which name, 3 bits type.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		"", "\x00\x01\x02\x03", "\x21\x41\x61\x81\xa1\xc1\xe1", "\x01\x21\x41\x09\x29\x49\x81\xa1",
		"\xe1\xe1\x01\x41\xe1\x61\x41\xc9\xa9", "\x22\x42\x62\x82\xa2\xc2\xe2\x02\x0a\x12\x1a",
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, script []byte, delta bool) {
		if len(script) > 200 {
			return
		}
		w := servertest.NewWorld(probes()...)
		for k := range resource.Type(resource.NumTypes) {
			w.Put(servertest.Simple(k, "a", 0), servertest.Simple(k, "b", 0))
		}
		conn := servertest.Connect(t, w, server.Config{Log: quietLog()})
		c := openSotW(t, conn)
		if delta {
			c = openDelta(t, conn)
		}
		names := []string{"a", "b", "*", "missing"}
		last := map[resource.Type]response{}
		for i, b := range script {
			k, name := resource.Type(b&7)%resource.NumTypes, names[b>>3&3]
			select {
			case r := <-c.recv:
				last[r.t] = r
			default:
			}
			r := last[k]
			r.t = k
			switch b >> 5 {
			case 0:
				c.subscribe(k, name)
			case 1:
				c.subscribe(k)
			case 2:
				c.ack(r, name)
			case 3:
				c.nack(r, name+" is bad", name)
			case 4:
				if delta {
					c.unsubscribe(k, name)
				} else {
					c.send(&discoveryv3.DiscoveryRequest{TypeUrl: k.URL(), ResponseNonce: r.nonce, VersionInfo: r.version})
				}
			case 5:
				w.Put(servertest.Simple(k, "a", i+1))
			case 6:
				w.Delete(key(k, "b"))
			default:
				if delta {
					c.send(&discoveryv3.DeltaDiscoveryRequest{
						TypeUrl: k.URL(), ResponseNonce: "9", ErrorDetail: &statusv3.Status{},
						InitialResourceVersions: map[string]string{name: "0", "gone": "0000000000000001"},
					})
				} else {
					c.send(&discoveryv3.DiscoveryRequest{TypeUrl: k.URL(), VersionInfo: "0", ResourceNames: []string{name, name}})
				}
			}
		}
		w.Put(rds("fresh", 1)) // nobody can hold it yet
		settle(c, last)
		c.cancel()
		eventually(t, "the stream leaves", func() bool { return w.Joined() == 0 })
	})
}

// settle acknowledges what comes until the fresh route is there.
func settle(c *rawClient, last map[resource.Type]response) {
	c.t.Helper()
	const name = "fresh"
	ask := func() {
		if c.delta {
			c.subscribe(resource.Route, name)
		} else {
			r := last[resource.Route]
			c.send(&discoveryv3.DiscoveryRequest{
				TypeUrl: resource.Route.URL(), ResponseNonce: r.nonce, VersionInfo: r.version, ResourceNames: []string{name},
			})
		}
	}
	for _, r := range last {
		c.ack(r, name)
	}
	ask()
	for {
		r := c.next()
		last[r.t] = r
		c.ack(r, name)
		if _, ok := r.bodies[name]; ok && r.t == resource.Route {
			return
		}
		if r.t == resource.Route {
			ask()
		}
	}
}
