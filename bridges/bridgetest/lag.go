package bridgetest

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Lag measures how long a change in a registry takes to reach the mesh: from the
// moment an application begins to register or deregister one instance to the
// Apply that shows it, n times, each after the one before, spread over services
// of which each has ten other instances. The figures are in the order of the
// changes.
func Lag(t testing.TB, r Registry, via string, services, n int) []time.Duration {
	t.Helper()
	all := estate(services, 10)
	r.PutAll(t, all)
	mesh := newRecorder(t)
	mesh.pin(all...)
	supervisor, err := bridges.New(bridges.Config{Source: r.Source(t, via), Sink: mesh})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- supervisor.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	mesh.awaitPhase(t, model.Live)
	mesh.awaitAll(t, all...)

	var lags []time.Duration
	for k := range n {
		i := Instance{
			Service: fmt.Sprintf("shop.service%d", k/2%services), Version: "lag",
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 200, byte(k / 2 / 250), byte(1 + k/2%250)}), 9000),
		}
		start := time.Now()
		if k%2 == 0 {
			r.Put(t, i)
			mesh.awaitAll(t, i)
		} else {
			r.Remove(t, i)
			mesh.awaitGone(t, i)
		}
		lags = append(lags, time.Since(start))
	}
	return lags
}
