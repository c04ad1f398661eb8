package upstream

import (
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

func TestRefusingHostRests(t *testing.T) {
	c := NewCluster("cart", &telemetry.Upstream{})
	c.Configure(Settings{ConnectTimeout: time.Second})
	c.SetEndpoints([]Endpoint{
		{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1}, {Addr: netip.MustParseAddrPort("10.0.0.2:80"), Weight: 1},
	})
	dead, alive := c.Hosts()[0], c.Hosts()[1]
	now := clock.Instant(time.Hour)
	picks := func(at clock.Instant, tried ...*Host) (ofDead int) {
		for i := range uint64(200) {
			if c.Pick(&Choice{Random: i * 0x9e3779b97f4a7c15, Now: at, Tried: tried}) == dead {
				ofDead++
			}
		}
		return ofDead
	}
	if n := picks(now); n == 0 || n == 200 {
		t.Fatalf("%d of 200 picks are the first host, want a mix", n)
	}
	if !dead.Refused(now) {
		t.Error("the first refusal did not eject the host")
	}
	if dead.Refused(now) {
		t.Error("a refusal while it rests ejected it again")
	}
	if n := picks(now.Add(minRest)); n != 0 {
		t.Errorf("%d picks of a resting host", n)
	}
	if n := picks(now.Add(minRest), alive); n != 200 {
		t.Errorf("%d of 200 picks are the resting host when the other was tried, want all", n)
	}
	if n := picks(now.Add(2*minRest + 1)); n == 0 {
		t.Error("no pick after its rest of two refusals")
	}
	for range 40 {
		dead.Refused(now)
	}
	if dead.Resting(now.Add(maxRest)) || !dead.Resting(now.Add(maxRest-1)) {
		t.Error("many refusals do not rest for exactly the longest time")
	}
	dead.Answered()
	if n := picks(now); n == 0 {
		t.Error("no pick of a host that answered again")
	}
}
