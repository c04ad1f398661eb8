package server_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// answerTime bounds every wait for a response.
const answerTime = 10 * time.Second

// The services' methods for raw streams.
const (
	adsDelta = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	adsSotW  = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
)

var services = map[resource.Type][2]string{
	resource.Secret:    {"/envoy.service.secret.v3.SecretDiscoveryService/", "Secrets"},
	resource.Cluster:   {"/envoy.service.cluster.v3.ClusterDiscoveryService/", "Clusters"},
	resource.Endpoints: {"/envoy.service.endpoint.v3.EndpointDiscoveryService/", "Endpoints"},
	resource.Listener:  {"/envoy.service.listener.v3.ListenerDiscoveryService/", "Listeners"},
	resource.Route:     {"/envoy.service.route.v3.RouteDiscoveryService/", "Routes"},
}

// response is what both protocols answer.
type response struct {
	t       resource.Type
	version string
	nonce   string
	bodies  map[string]string // name -> version ("" for SotW)
	raw     map[string][]byte
	removed []string
}

func (r response) String() string {
	var names []string
	for n := range r.bodies {
		names = append(names, n)
	}
	slices.Sort(names)
	s := fmt.Sprintf("%v %s", r.t, strings.Join(names, ","))
	if len(r.removed) > 0 {
		s += " -" + strings.Join(r.removed, ",-")
	}
	return s
}

// rawClient is one stream of a client that does exactly what the test says.
type rawClient struct {
	t      *testing.T
	delta  bool
	stream grpc.ClientStream
	cancel context.CancelFunc
	recv   chan response
	err    chan error
	node   *corev3.Node // sent with the first request
	probes int
}

func openStream(t *testing.T, conn *grpc.ClientConn, delta bool, method string) *rawClient {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	c := &rawClient{
		t: t, delta: delta, stream: stream, cancel: cancel, recv: make(chan response, 100), err: make(chan error, 1),
		node: &corev3.Node{Id: "node-" + t.Name()},
	}
	go c.read()
	t.Cleanup(cancel)
	return c
}

func openDelta(t *testing.T, conn *grpc.ClientConn) *rawClient {
	t.Helper()
	return openStream(t, conn, true, adsDelta)
}

func openSotW(t *testing.T, conn *grpc.ClientConn) *rawClient {
	t.Helper()
	return openStream(t, conn, false, adsSotW)
}

func (c *rawClient) read() {
	for {
		r, err := c.readOne()
		if err != nil {
			c.err <- err
			close(c.recv)
			return
		}
		c.recv <- r
	}
}

func (c *rawClient) readOne() (response, error) {
	r := response{bodies: map[string]string{}, raw: map[string][]byte{}}
	if c.delta {
		var m discoveryv3.DeltaDiscoveryResponse
		if err := c.stream.RecvMsg(&m); err != nil {
			return r, err
		}
		r.t, _ = resource.ParseURL(m.GetTypeUrl())
		r.version, r.nonce, r.removed = m.GetSystemVersionInfo(), m.GetNonce(), m.GetRemovedResources()
		slices.Sort(r.removed)
		for _, res := range m.GetResources() {
			r.bodies[res.GetName()] = res.GetVersion()
			r.raw[res.GetName()] = res.GetResource().GetValue()
		}
		return r, nil
	}
	var m discoveryv3.DiscoveryResponse
	if err := c.stream.RecvMsg(&m); err != nil {
		return r, err
	}
	r.t, _ = resource.ParseURL(m.GetTypeUrl())
	r.version, r.nonce = m.GetVersionInfo(), m.GetNonce()
	for _, a := range m.GetResources() {
		msg, err := a.UnmarshalNew()
		if err != nil {
			return r, err
		}
		name := nameOf(msg)
		r.bodies[name] = ""
		r.raw[name] = a.GetValue()
	}
	return r, nil
}

// nameOf reads the name of any resource.
func nameOf(m proto.Message) string {
	fields := m.ProtoReflect().Descriptor().Fields()
	f := fields.ByName("name")
	if f == nil {
		f = fields.ByName("cluster_name")
	}
	return m.ProtoReflect().Get(f).String()
}

func (c *rawClient) send(m proto.Message) {
	c.t.Helper()
	if c.node != nil {
		switch m := m.(type) {
		case *discoveryv3.DeltaDiscoveryRequest:
			m.Node = c.node
		case *discoveryv3.DiscoveryRequest:
			m.Node = c.node
		}
		c.node = nil
	}
	if err := c.stream.SendMsg(m); err != nil {
		c.t.Fatalf("send: %v, stream ended: %v", err, c.ends())
	}
}

// subscribe names what the client wants: of delta more, of SotW all.
func (c *rawClient) subscribe(t resource.Type, names ...string) {
	c.t.Helper()
	if c.delta {
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesSubscribe: names})
	} else {
		c.send(&discoveryv3.DiscoveryRequest{TypeUrl: t.URL(), ResourceNames: names})
	}
}

func (c *rawClient) unsubscribe(t resource.Type, names ...string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesUnsubscribe: names})
}

// next returns the next response.
func (c *rawClient) next() response {
	c.t.Helper()
	select {
	case r, ok := <-c.recv:
		if !ok {
			c.t.Fatalf("stream ended: %v", <-c.err)
		}
		return r
	case <-time.After(answerTime):
		c.t.Fatal("no response")
		return response{}
	}
}

// ends returns the error with which the stream ends.
func (c *rawClient) ends() error {
	c.t.Helper()
	select {
	case err := <-c.err:
		return err
	case <-time.After(answerTime):
		c.t.Fatal("stream does not end")
		return nil
	}
}

// ack acknowledges r; SotW repeats names.
func (c *rawClient) ack(r response, names ...string) {
	c.t.Helper()
	c.answer(r, nil, names)
}

// nack refuses r with a text.
func (c *rawClient) nack(r response, text string, names ...string) {
	c.t.Helper()
	c.answer(r, &statusv3.Status{Code: 3, Message: text}, names)
}

func (c *rawClient) answer(r response, detail *statusv3.Status, names []string) {
	c.t.Helper()
	if c.delta {
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.t.URL(), ResponseNonce: r.nonce, ErrorDetail: detail})
		return
	}
	c.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: r.t.URL(), ResponseNonce: r.nonce, VersionInfo: r.version, ResourceNames: names, ErrorDetail: detail,
	})
}

// want checks the next response against its String and returns it.
func (c *rawClient) want(text string) response {
	c.t.Helper()
	r := c.next()
	if got := r.String(); got != text {
		c.t.Fatalf("got response %q, want %q", got, text)
	}
	return r
}

// wantAck is want and an acknowledgement.
func (c *rawClient) wantAck(text string, names ...string) response {
	c.t.Helper()
	r := c.want(text)
	c.ack(r, names...)
	return r
}

// probe names a route, the last type to be sent, to see that nothing else comes first.
// The world must hold probe-1, probe-2, ...; tests that use it name no other routes.
func (c *rawClient) quiet() {
	c.t.Helper()
	c.probes++
	name := fmt.Sprintf("probe-%d", c.probes)
	c.subscribe(resource.Route, name)
	c.wantAck("RDS "+name, name)
}

// probes are the routes that quiet asks for.
func probes() []*resource.Resource {
	var all []*resource.Resource
	for i := range 20 {
		all = append(all, servertest.Simple(resource.Route, fmt.Sprintf("probe-%d", i), 0))
	}
	return all
}

// eventually polls a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(answerTime)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never came true: %s", what)
		case <-tick.C:
		}
	}
}
