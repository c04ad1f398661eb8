package client

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// wildcardName subscribes to everything that is not on demand.
const wildcardName = "*"

// requestOrder is the order in which types are asked for.
var requestOrder = [...]resource.Type{
	resource.Cluster, resource.Endpoints, resource.Listener, resource.Route, resource.Secret,
}

func wildcard(t resource.Type) bool { return t == resource.Cluster || t == resource.Listener }

// session is one stream. One goroutine runs it.
type session struct {
	client   *Client
	target   string
	answered bool // something was received
	stream   grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	nodeSent bool
	types    [resource.NumTypes]asked
	cold     bool // nothing was held at the start: listeners wait for clusters to be warm
}

// asked is what a session asked of one type and heard.
type asked struct {
	open       bool                // the first request was sent
	heard      bool                // a response came
	names      map[string]struct{} // subscribed by name
	unanswered map[string]struct{} // of those, not answered yet
}

func newSession(c *Client, target string) *session {
	s := &session{client: c, target: target, cold: len(c.hold.versions(resource.Cluster)) == 0}
	for t := range s.types {
		s.types[t].names = map[string]struct{}{}
		s.types[t].unanswered = map[string]struct{}{}
	}
	return s
}

// errSilent: the server accepted the stream and said nothing.
var errSilent = errors.New("no response within the connect timeout")

// run opens the stream and works until it ends.
func (s *session) run(ctx context.Context, conn grpc.ClientConnInterface) error {
	cfg := &s.client.cfg
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(cfg.ConnectTimeout, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	s.stream = stream
	responses := make(chan *discoveryv3.DeltaDiscoveryResponse)
	ended := make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case responses <- m:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	defer func() {
		cancel(nil)
		<-gone
	}()
	warm := time.NewTimer(cfg.WarmTimeout)
	defer warm.Stop()
	for {
		if s.subscribe() != nil {
			return s.end(ctx, responses, ended)
		}
		s.noteSynced()
		select {
		case m := <-responses:
			if !s.answered {
				s.answered = true
				silence.Stop()
				s.client.setConnected(s.target)
				cfg.Log.Info("control plane connected", "target", s.target)
			}
			if s.respond(m) != nil {
				return s.end(ctx, responses, ended)
			}
		case <-s.client.wake:
		case <-warm.C:
			s.cold = false
		case err := <-ended:
			return cause(ctx, err)
		}
	}
}

// end returns why a send failed: the stream is over, and Recv knows why.
func (s *session) end(ctx context.Context, responses chan *discoveryv3.DeltaDiscoveryResponse, ended chan error) error {
	for {
		select {
		case <-responses: // received before the end; no answer can reach the server
		case err := <-ended:
			return cause(ctx, err)
		}
	}
}

func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); errors.Is(c, errSilent) {
		return c
	}
	return err
}

func (s *session) send(r *discoveryv3.DeltaDiscoveryRequest) error {
	if !s.nodeSent {
		r.Node, s.nodeSent = s.client.cfg.Node, true
	}
	return s.stream.Send(r)
}

// subscribe tells the server of every name that is wanted now and was not before, or
// the other way round.
func (s *session) subscribe() error {
	for _, t := range requestOrder {
		if t == resource.Listener && s.cold && !s.types[t].open {
			if !s.settled(resource.Cluster) || !s.settled(resource.Endpoints) {
				continue
			}
		}
		if err := s.subscribeType(t); err != nil {
			return err
		}
	}
	return nil
}

// settled says that the server has answered all that was asked of a type.
func (s *session) settled(t resource.Type) bool {
	a := &s.types[t]
	if wildcard(t) && !a.heard {
		return false
	}
	return len(a.unanswered) == 0
}

func (s *session) subscribeType(t resource.Type) error {
	a := &s.types[t]
	want := s.client.hold.names(t)
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.URL()}
	for n := range want {
		if _, ok := a.names[n]; !ok {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
		}
	}
	for n := range a.names {
		if _, ok := want[n]; !ok {
			r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, n)
			delete(a.unanswered, n)
		}
	}
	first := !a.open
	if first && wildcard(t) {
		r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, wildcardName)
	}
	if len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) == 0 {
		return nil
	}
	held := s.client.hold.versions(t)
	for _, n := range r.GetResourceNamesSubscribe() {
		if _, known := held[n]; n != wildcardName && !(first && known) {
			a.unanswered[n] = struct{}{}
		}
	}
	if first {
		r.InitialResourceVersions = held
	}
	slices.Sort(r.ResourceNamesSubscribe)
	slices.Sort(r.ResourceNamesUnsubscribe)
	a.open, a.names = true, want
	if err := s.send(r); err != nil {
		return err
	}
	if wildcard(t) {
		return nil // the server says what of those names is gone for this client
	}
	s.drop(t)
	return nil
}

// drop takes from the handler what nothing needs any more.
func (s *session) drop(t resource.Type) {
	if gone := s.client.hold.unneeded(t); len(gone) > 0 {
		s.client.cfg.Handler.Apply(Change{Type: t, Removed: gone})
	}
}

// respond applies a response and acknowledges or refuses it.
func (s *session) respond(m *discoveryv3.DeltaDiscoveryResponse) error {
	reply := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce()}
	t, known := resource.ParseURL(m.GetTypeUrl())
	if !known {
		reply.ErrorDetail = &statusv3.Status{Code: int32(codes.InvalidArgument), Message: "type " + m.GetTypeUrl() + " was not asked for"}
		return s.send(reply)
	}
	s.client.metrics.responses.WithLabelValues(t.String()).Inc()
	s.client.metrics.updates.WithLabelValues(t.String()).Add(float64(len(m.GetResources())))
	rejected := s.apply(t, m)
	if len(rejected) > 0 {
		s.client.metrics.rejected.WithLabelValues(t.String()).Add(float64(len(rejected)))
		reply.ErrorDetail = &statusv3.Status{Code: int32(codes.InvalidArgument), Message: refusalText(rejected)}
		for _, r := range rejected {
			s.client.cfg.Log.Warn("resource rejected", "type", t.String(), "name", r.Name, "field", r.Field, "reason", r.Reason)
		}
	}
	return s.send(reply)
}

// apply hands a response to the handler and notes what it holds afterwards.
func (s *session) apply(t resource.Type, m *discoveryv3.DeltaDiscoveryResponse) []Rejection {
	a, hold := &s.types[t], s.client.hold
	a.heard = true
	change := Change{Type: t}
	var rejected []Rejection
	needs := map[string][]string{}
	var of resource.Type
	for _, r := range m.GetResources() {
		delete(a.unanswered, r.GetName())
		n := Named{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource().GetValue()}
		if got := r.GetResource().GetTypeUrl(); got != t.URL() {
			rejected = append(rejected, Rejection{Name: n.Name, Field: "resource.type_url", Reason: "is " + got})
			continue
		}
		other, names, err := references(t, n.Body)
		if err != nil {
			rejected = append(rejected, Rejection{Name: n.Name, Reason: err.Error()})
			continue
		}
		if !wildcard(t) {
			if _, asked := a.names[n.Name]; !asked {
				continue // unsubscribed while the response was under way
			}
		}
		of, needs[n.Name] = other, names
		change.Updated = append(change.Updated, n)
	}
	for _, name := range m.GetRemovedResources() {
		delete(a.unanswered, name)
		if hold.forget(t, name) {
			change.Removed = append(change.Removed, name)
		} else if _, asked := a.names[name]; asked {
			change.Missing = append(change.Missing, name)
		}
	}
	if len(change.Updated)+len(change.Removed)+len(change.Missing) == 0 {
		return rejected
	}
	refused := map[string]bool{}
	for _, r := range s.client.cfg.Handler.Apply(change) {
		refused[r.Name] = true
		rejected = append(rejected, r)
	}
	for _, n := range change.Updated {
		if !refused[n.Name] {
			hold.store(t, n, of, needs[n.Name])
		}
	}
	return rejected
}

// noteSynced closes Client.Synced once everything asked for is answered.
func (s *session) noteSynced() {
	for t := range resource.Type(resource.NumTypes) {
		if !s.settled(t) {
			return
		}
	}
	s.client.syncedOnce.Do(func() { close(s.client.synced) })
}

// Held returns the names of what is held of a type, sorted.
func (c *Client) Held(t resource.Type) []string {
	return slices.Sorted(maps.Keys(c.hold.versions(t)))
}
