package main

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// A dead port takes out its own service and no other.
func TestOnlyPortsThatAnswerAreAnnounced(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	web, rpc := listen(), listen()
	at := func(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
	r := &registrar{workload: &model.Workload{Name: "w", Address: netip.MustParseAddr("127.0.0.1"), Inbound: []model.Inbound{
		{App: at(web), Service: "web"},
		{App: netip.AddrPortFrom(netip.IPv4Unspecified(), at(rpc).Port()), Service: "rpc"},
	}}}
	check := func(health string, services ...string) {
		t.Helper()
		w := announced(r.workload, r.probe(t.Context()))
		var got []string
		for _, in := range w.Inbound {
			got = append(got, in.Service)
		}
		if d := cmp.Diff(services, got); d != "" || w.Health != health {
			t.Errorf("health %q, want %q; services (-want +got):\n%s", w.Health, health, d)
		}
	}
	check("", "web", "rpc")
	_ = web.Close()
	check("", "rpc")
	_ = rpc.Close()
	check(model.Unhealthy.String(), "web", "rpc")

	// A sidecar that stops learns nothing of its application.
	r.alive = []bool{true, true}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d := cmp.Diff([]bool{true, true}, r.probe(ctx)); d != "" {
		t.Errorf("while it stops (-want +got):\n%s", d)
	}
}
