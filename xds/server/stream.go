package server

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

// stream is one xDS stream. Its handler reads requests; a second goroutine sends, and
// exists only while there is something to send.
type stream struct {
	srv       *Server
	grpc      grpc.ServerStream
	delta     bool
	only      *resource.Type // nil: the aggregated service
	address   string
	connected time.Time

	node  *corev3.Node // from the first request, immutable then, as is group
	group *group

	sender atomic.Int32 // idle, busy or again

	mu        sync.Mutex // taken before group.mu; guards all below
	subs      [resource.NumTypes]*subscription
	nonce     uint64
	expected  map[string]struct{} // clusters whose endpoints are awaited; see expect
	expectEnd time.Time
	dead      bool // ended; nothing is sent any more
}

// The states of the sending goroutine.
const (
	idle  = iota
	busy  // it runs
	again // it runs, and has to look once more
)

// kick makes sure that what changed before the call is looked at after it. It does
// not block and may be called with locks held.
func (st *stream) kick() {
	for {
		switch st.sender.Load() {
		case idle:
			if st.sender.CompareAndSwap(idle, busy) {
				go st.send()
				return
			}
		case busy:
			if st.sender.CompareAndSwap(busy, again) {
				return
			}
		case again:
			return
		}
	}
}

// send sends what is due until nothing is.
func (st *stream) send() {
	for {
		for st.sendNext() {
		}
		if st.sender.CompareAndSwap(busy, idle) {
			return
		}
		st.sender.Store(busy)
	}
}

// outgoing is a response that is ready.
type outgoing struct {
	t     resource.Type
	sub   *subscription
	resp  *wire.Response
	count int
}

func (st *stream) sendNext() bool {
	st.mu.Lock()
	out := st.next()
	st.mu.Unlock()
	if out == nil || !st.admit(out) {
		return false
	}
	if err := st.grpc.SendMsg(out.resp); err != nil {
		// The handler sees the end of the stream too, and tells.
		st.mu.Lock()
		st.dead = true
		st.mu.Unlock()
		return false
	}
	m, t := st.srv.metrics, out.t.String()
	m.responses.WithLabelValues(t, st.protocol()).Inc()
	m.bytes.WithLabelValues(t).Add(float64(out.resp.Size()))
	m.resources.WithLabelValues(t).Add(float64(out.count))
	return true
}

func (st *stream) protocol() string {
	if st.delta {
		return "delta"
	}
	return "sotw"
}

// Large responses need admission; a client that does not answer keeps it no longer
// than grantTime, so that slow ones never stop the others.
const (
	largeBytes = 64 << 10
	grantTime  = 2 * time.Second
)

// grant is the admission of one large response.
type grant struct {
	once  sync.Once
	timer *time.Timer
	free  func()
}

func (g *grant) release() {
	if g != nil {
		g.timer.Stop()
		g.once.Do(g.free)
	}
}

// admit waits until the response may be sent; false: the stream has ended.
func (st *stream) admit(out *outgoing) bool {
	if out.resp.Size() < largeBytes {
		return true
	}
	size := min(int64(out.resp.Size()), st.srv.cfg.MaxBytesInFlight)
	m := st.srv.metrics
	if !st.srv.flight.TryAcquire(size) {
		m.waiting.Inc()
		err := st.srv.flight.Acquire(st.grpc.Context(), size)
		m.waiting.Dec()
		if err != nil {
			return false
		}
	}
	m.admitted.Add(float64(size))
	g := &grant{free: func() {
		m.admitted.Sub(float64(size))
		st.srv.flight.Release(size)
	}}
	g.timer = time.AfterFunc(grantTime, func() { g.once.Do(g.free) })
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.dead {
		g.release()
		return false
	}
	out.sub.grant = g
	return true
}

// request is what SotW and delta requests have in common, and what each has alone.
type request struct {
	node    *corev3.Node
	typeURL string
	nonce   string
	nacked  bool
	detail  string // text of the refusal

	names   []string // SotW
	version string   // SotW

	subscribe, unsubscribe []string          // delta
	initial                map[string]string // delta
}

func (st *stream) recv() (*request, error) {
	if st.delta {
		var m discoveryv3.DeltaDiscoveryRequest
		if err := st.grpc.RecvMsg(&m); err != nil {
			return nil, err
		}
		return &request{
			node: m.GetNode(), typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(),
			nacked: m.GetErrorDetail() != nil, detail: m.GetErrorDetail().GetMessage(),
			subscribe: m.GetResourceNamesSubscribe(), unsubscribe: m.GetResourceNamesUnsubscribe(),
			initial: m.GetInitialResourceVersions(),
		}, nil
	}
	var m discoveryv3.DiscoveryRequest
	if err := st.grpc.RecvMsg(&m); err != nil {
		return nil, err
	}
	return &request{
		node: m.GetNode(), typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(),
		nacked: m.GetErrorDetail() != nil, detail: m.GetErrorDetail().GetMessage(),
		names: m.GetResourceNames(), version: m.GetVersionInfo(),
	}, nil
}

// maxNodeBytes bounds a node without its extensions: Envoys of Istio send some 4 KiB.
const maxNodeBytes = 64 << 10

// serve runs one stream until its client or an error ends it.
func (s *Server) serve(gs grpc.ServerStream, delta bool, only *resource.Type) (err error) {
	st := &stream{srv: s, grpc: gs, delta: delta, only: only, connected: time.Now()}
	if p, ok := peer.FromContext(gs.Context()); ok {
		st.address = p.Addr.String()
	}
	open := s.metrics.streams.WithLabelValues(st.protocol())
	open.Inc()
	defer func() {
		open.Dec()
		s.leave(st)
		s.metrics.closed.WithLabelValues(codeName(err)).Inc()
		s.cfg.Log.Debug("xds stream ended", "node", st.node.GetId(), "addr", st.address, "error", err)
	}()
	for {
		req, err := st.recv()
		if errors.Is(err, io.EOF) || errors.Is(gs.Context().Err(), context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.node == nil {
			if req.node == nil {
				return errNoNode()
			}
			req.node.Extensions = nil // Envoy's are 60 KB, and nobody asks for them
			if n := proto.Size(req.node); n > maxNodeBytes {
				return errNodeSize(n)
			}
			st.node = req.node
			if err := s.join(st); err != nil {
				return err
			}
			s.cfg.Log.Debug("xds stream opened", "node", st.node.GetId(), "addr", st.address,
				"scope", st.group.feed.Scope, "protocol", st.protocol())
		}
		refusals, err := st.handle(req)
		for _, f := range refusals {
			s.report(f)
		}
		if err != nil {
			return err
		}
		st.kick()
	}
}

// report makes a refusal known; a client that repeats one, on this stream or
// another, is only counted.
func (s *Server) report(f status.Refusal) {
	s.metrics.refusals.WithLabelValues(f.Type.String()).Inc()
	if !s.told.first(f.NodeID, f.Type.String(), f.Name, f.Version) {
		return
	}
	s.cfg.Log.Warn("resource refused", "node", f.NodeID, "scope", f.Scope, "type", f.Type.String(), "name", f.Name,
		"version", f.Version, "origins", f.Origins, "quarantined", f.Quarantined, "detail", f.Detail)
	s.cfg.Status.Record(f)
}

// drop forgets everything at the end of a stream.
func (st *stream) drop() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.dead = true
	st.group.mu.Lock()
	defer st.group.mu.Unlock()
	for t, sub := range st.subs {
		if sub == nil {
			continue
		}
		sub.grant.release()
		sub.deleteFunc(&st.group.tables[t], func(*entry) bool { return true })
	}
	st.subs = [resource.NumTypes]*subscription{}
}

func (st *stream) nextNonce() string {
	st.nonce++
	return strconv.FormatUint(st.nonce, 10)
}

// told remembers which refusals were logged. It forgets the older half when it is
// full; a refusal that is repeated after that is logged again.
type told struct {
	mu         sync.Mutex
	fresh, old map[uint64]struct{} // by hash
}

// maxTold bounds each of the two halves: a mesh of ten thousand, all of which refuse
// one resource, is logged once.
const maxTold = 1 << 14

// first reports whether this is the first time that it is asked about parts.
func (t *told) first(parts ...string) bool {
	hash := xxhash.Sum64String(strings.Join(parts, "\x00"))
	t.mu.Lock()
	defer t.mu.Unlock()
	_, was := t.fresh[hash]
	if _, before := t.old[hash]; was || before {
		return false
	}
	if t.fresh == nil || len(t.fresh) >= maxTold {
		t.fresh, t.old = map[uint64]struct{}{}, t.fresh
	}
	t.fresh[hash] = struct{}{}
	return true
}
