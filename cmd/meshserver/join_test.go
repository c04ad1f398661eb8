package main_test

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/builtin"
	"github.com/isthmus-mesh/isthmus/xds/catalog"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// A workload that comes back under another name, before the lease of its
// predecessor ended, is served by its own sidecar, whichever name sorts first.
func TestTheLaterOfTwoAtOnePlaceIsJoined(t *testing.T) {
	for _, names := range [][2]string{{"a-old", "z-new"}, {"z-old", "a-new"}} {
		synctest.Test(t, func(t *testing.T) {
			r, err := builtin.New(builtin.Config{})
			if err != nil {
				t.Fatal(err)
			}
			c := catalog.New(catalog.Config{Log: slog.New(slog.DiscardHandler)})
			supervisor, err := bridges.New(bridges.Config{Source: r, Sink: c.Source(r.Name())})
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
			put := func(name, listen string) string {
				id, err := r.Register(t.Context(), model.Workload{
					Name: name, Address: netip.MustParseAddr("10.0.0.7"), Labels: model.NewLabels(map[string]string{"name": name}),
					Inbound: []model.Inbound{
						{App: netip.MustParseAddrPort("127.0.0.1:8080"), Listen: netip.MustParseAddrPort(listen), Protocol: model.HTTP, Service: "echo"},
					},
				}, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				return id
			}
			served := func(workload, at string) {
				t.Helper()
				s := c.View().Service("echo")
				if s == nil || len(s.Endpoints) != 1 || s.Endpoints[0].Workload != workload || s.Endpoints[0].Address.String() != at {
					t.Errorf("service %+v, want %s at %s alone", s, workload, at)
				}
			}
			put(names[0], "0.0.0.0:20881")
			served(names[0], "10.0.0.7:20881")
			id := put(names[1], "0.0.0.0:20882")
			served(names[1], "10.0.0.7:20882")
			if err := r.Leave(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			served(names[0], "10.0.0.7:20881") // it lives after all
			put(names[1], "0.0.0.0:20882")
			time.Sleep(30 * time.Second)
			put(names[0], "0.0.0.0:20881") // the same again changes nothing
			served(names[1], "10.0.0.7:20882")
		})
	}
}
