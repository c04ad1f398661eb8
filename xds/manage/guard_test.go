package manage_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/generate"
	"github.com/isthmus-mesh/isthmus/xds/manage"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// eventually polls until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// stall announces a request of 100 bytes and sends the first.
func stall(t *testing.T, m *mesh, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(m.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", path); err != nil {
		t.Fatal(err)
	}
	return c
}

// renewed grants every lease.
type renewed struct{ manage.Leases }

func (renewed) Register(context.Context, model.Workload, time.Duration) (string, error) {
	return "1", nil
}
func (renewed) Renew(context.Context, string) error { return nil }

const renewPath = "/isthmus.mesh.v1.WorkloadService/Renew"

func TestStallingCallersHoldNobodyUp(t *testing.T) {
	const callers = 150 // more than the calls that run at once
	m := start(t, func(c *manage.Config) { c.Leases = renewed{} })
	m.server.SetBodyTime(time.Minute)
	for range callers {
		stall(t, m, statusPath)
		stall(t, m, renewPath)
	}
	eventually(t, "all stall", func() bool { return m.server.ArrivingBodies() == 2*callers })
	if _, err := m.Workloads.Renew(t.Context(), &api.RenewRequest{LeaseId: "1"}); err != nil {
		t.Errorf("renew: %v", err)
	}
	if _, err := m.Status.Get(t.Context(), &api.GetStatusRequest{}); err != nil {
		t.Errorf("status: %v", err)
	}
}

func TestStallingCallersAreSentAway(t *testing.T) {
	m := start(t, nil)
	m.server.SetBodyTime(50 * time.Millisecond)
	c := stall(t, m, statusPath)
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusGatewayTimeout || !resp.Close {
		t.Errorf("HTTP/1: %v, close %v, want 504 and a closed connection", resp.Status, resp.Close)
	}

	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: p}
	defer transport.CloseIdleConnections()
	slow, first := io.Pipe() // a body of one byte that does not end
	defer slow.Close()
	go first.Write([]byte{0}) //nolint:errcheck // the server answers before the rest
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.url+statusPath, slow)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	answer, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	if got := answer.Header.Get("Grpc-Status") + answer.Trailer.Get("Grpc-Status"); got != "4" {
		t.Errorf("gRPC: status %q, want 4 (deadline exceeded)", got)
	}
	// The connection lives on, and so do calls that take longer than their body may.
	cc := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, m.url, connecthttp.WithGRPC()))
	if _, err := api.NewStatusServiceClient(cc).Get(t.Context(), &api.GetStatusRequest{}); err != nil {
		t.Errorf("the next call: %v", err)
	}
	eventually(t, "no body is waited for", func() bool { return m.server.ArrivingBodies() == 0 })
}

// heldPreview answers once it is released.
type heldPreview chan struct{}

func (p heldPreview) Preview(rules.Set) (generate.Diff, error) {
	<-p
	return generate.Diff{}, nil
}

func TestLeasesAreRenewedWhileAllOtherCallsAreTaken(t *testing.T) {
	const most = 128
	held := make(heldPreview)
	m := start(t, func(c *manage.Config) { c.Preview, c.Leases = held, renewed{} })
	m.server.SetBodyTime(2 * time.Second) // the calls below outlive it; their bodies come sooner on a busy machine too
	var calls sync.WaitGroup
	for range most {
		calls.Go(func() {
			if _, err := m.Rules.Apply(t.Context(), &api.ApplyRequest{Yaml: subsets("cart"), DryRun: true}); err != nil {
				t.Errorf("held call: %v", err)
			}
		})
	}
	eventually(t, "all calls are taken", func() bool { return m.server.RunningCalls() == most })
	_, err := m.Status.Get(t.Context(), &api.GetStatusRequest{})
	wantCode(t, err, connect.CodeResourceExhausted, "128 calls are running")
	if _, err := m.Workloads.Renew(t.Context(), &api.RenewRequest{LeaseId: "1"}); err != nil {
		t.Errorf("renew: %v", err)
	}
	_, err = m.Workloads.Register(t.Context(), &api.RegisterRequest{Workload: &api.Workload{Name: strings.Repeat("a", 300<<10)}})
	wantCode(t, err, connect.CodeResourceExhausted, "more than 262144 bytes")
	after := time.After(2100 * time.Millisecond)
	<-after
	close(held)
	calls.Wait()
}
