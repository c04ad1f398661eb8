// Package server is the xDS stream engine: it serves the snapshots of resource.Feeds
// to Envoy, gRPC clients and sidecars, over the aggregated service and each type's own,
// state-of-the-world and incremental.
//
// The World says which Feed a node reads; streams of one Feed form a group, which
// translates names to ids and frames resources once for all of them. Each stream has
// at most one response of a type unacknowledged and meanwhile lets changes coalesce. xds/status
// asks the Server what streams hold. All methods may be called from any goroutine.
//
// Why not go-control-plane's caches, and all choices here: xds/RATIONALE.md, "The
// stream engine".
package server

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server/wire"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

// World maps nodes to what they get.
type World interface {
	// Join returns the feed of the node's scope; nodes of one scope share one. An
	// error ends the stream with its gRPC status, or InvalidArgument if it has none.
	Join(node *corev3.Node) (*resource.Feed, error)
	// Leave gives back what one Join returned.
	Leave(feed *resource.Feed)
}

// Config is what a Server needs.
type Config struct {
	World World // required
	// Status is told of refusals and may ask for the state of streams. Nil: nobody.
	Status     *status.Registry
	Log        *slog.Logger          // nil: slog.Default
	Registerer prometheus.Registerer // nil: no metrics

	// MaxConnectionAge is when clients are asked to connect anew, so that replicas
	// share them evenly; each connection's is up to 10 % more or less. Zero: 30 min.
	MaxConnectionAge time.Duration
	// MaxRequestBytes bounds one request. Zero: 16 MiB, the initial versions of
	// some 100,000 resources.
	MaxRequestBytes int
	// MaxResponseBytes is where a response is split, if the protocol allows: one
	// that carries the whole state is sent whole. Zero: 3 MiB; gRPC clients refuse
	// messages over 4 MiB.
	MaxResponseBytes int
	// MaxNames bounds the names that one stream may subscribe to. Zero: 100,000.
	MaxNames int
	// MaxBytesInFlight bounds the bytes of large responses (over 64 KiB) that were
	// sent and not yet acknowledged, over all streams. Further ones wait, so a
	// storm of reconnects costs time, not memory. Zero: 64 MiB.
	MaxBytesInFlight int64
	// SetVersion, if not nil, names the version of a whole state-of-the-world
	// response. For conformance suites that fix it; nil: a hash of the content.
	SetVersion func(resource.Type) string
}

func (c *Config) fill() error {
	c.Log = cmp.Or(c.Log, slog.Default())
	c.MaxConnectionAge = cmp.Or(c.MaxConnectionAge, 30*time.Minute)
	c.MaxRequestBytes = cmp.Or(c.MaxRequestBytes, 16<<20)
	c.MaxResponseBytes = cmp.Or(c.MaxResponseBytes, 3<<20)
	c.MaxNames = cmp.Or(c.MaxNames, 100_000)
	c.MaxBytesInFlight = cmp.Or(c.MaxBytesInFlight, 64<<20)
	if c.Status == nil {
		c.Status = status.NewRegistry()
	}
	var errs []error
	if c.World == nil {
		errs = append(errs, errors.New("World is required"))
	}
	if c.MaxConnectionAge < 0 {
		errs = append(errs, fmt.Errorf("MaxConnectionAge %v is negative", c.MaxConnectionAge))
	}
	for _, bound := range []struct {
		name  string
		value int64
	}{
		{"MaxRequestBytes", int64(c.MaxRequestBytes)}, {"MaxResponseBytes", int64(c.MaxResponseBytes)},
		{"MaxNames", int64(c.MaxNames)}, {"MaxBytesInFlight", c.MaxBytesInFlight},
	} {
		if bound.value < 0 {
			errs = append(errs, fmt.Errorf("%s %d is negative", bound.name, bound.value))
		}
	}
	return errors.Join(errs...)
}

// Server serves xDS. It has no goroutines of its own: they are those of its streams.
type Server struct {
	cfg     Config // immutable after New, as are the two below
	metrics *metrics
	flight  *semaphore.Weighted // bytes of large responses
	told    told

	mu     sync.Mutex
	groups map[*resource.Feed]*group
}

// New checks the configuration and attaches the server to its status registry.
func New(cfg Config) (*Server, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("xds server: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("xds server: metrics: %w", err)
	}
	s := &Server{
		cfg: cfg, metrics: m,
		flight: semaphore.NewWeighted(cfg.MaxBytesInFlight),
		groups: map[*resource.Feed]*group{},
	}
	cfg.Status.Attach(s)
	return s, nil
}

// Sizes that keep ten thousand connections small: requests are short and rare. gRPC
// shares write buffers between connections that are idle, but a wave takes one for
// each stream at once.
const (
	readBuffer  = 4 << 10
	writeBuffer = 8 << 10
	// recvWindow is fixed: gRPC would measure the bandwidth with a ping for nearly
	// every acknowledgement, which costs as much as the acknowledgement.
	recvWindow = 256 << 10
	// maxStreams on one connection: a node needs one, or one a type.
	maxStreams = 128
	// connectionGrace is how long a stream may go on after its connection's age.
	connectionGrace = 10 * time.Second
	pingAfter       = 30 * time.Second
	pingTimeout     = 20 * time.Second
	minClientPing   = 10 * time.Second
)

// ServerOptions are what grpc.NewServer needs for this service: the codec, which
// handles every other message as usual, message bounds, connection age.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(wire.NewCodec()),
		grpc.MaxRecvMsgSize(s.cfg.MaxRequestBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(readBuffer),
		grpc.WriteBufferSize(writeBuffer),
		grpc.StaticStreamWindowSize(recvWindow),
		grpc.StaticConnWindowSize(recvWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      s.cfg.MaxConnectionAge, // gRPC adds the jitter of 10 %
			MaxConnectionAgeGrace: connectionGrace,
			Time:                  pingAfter,
			Timeout:               pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: minClientPing, PermitWithoutStream: true,
		}),
	}
}

// join puts a stream into the group of its node's feed.
func (s *Server) join(st *stream) error {
	feed, err := s.cfg.World.Join(st.node)
	if err != nil {
		return errNode(st.node.GetId(), err)
	}
	s.mu.Lock()
	g := s.groups[feed]
	fresh := g == nil
	if fresh {
		g = newGroup(feed, s.metrics)
		s.groups[feed] = g
		// Others who join now must not see the group before it is filled.
		g.ready = make(chan struct{})
	}
	g.members++
	s.mu.Unlock()
	if fresh {
		g.open()
		close(g.ready)
	} else {
		<-g.ready
	}
	st.group = g
	g.add(st)
	return nil
}

// leave undoes join.
func (s *Server) leave(st *stream) {
	g := st.group
	if g == nil {
		return
	}
	st.drop()
	g.remove(st)
	s.mu.Lock()
	g.members--
	last := g.members == 0
	if last {
		delete(s.groups, g.feed)
	}
	s.mu.Unlock()
	if last {
		g.close()
	}
	s.cfg.World.Leave(g.feed)
}

// Register adds the discovery services: the aggregated one and each type's own, with
// both protocols. Fetch stays unimplemented.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, ads{srv: s})
	secretv3.RegisterSecretDiscoveryServiceServer(r, sds{srv: s})
	clusterv3.RegisterClusterDiscoveryServiceServer(r, cds{srv: s})
	endpointv3.RegisterEndpointDiscoveryServiceServer(r, eds{srv: s})
	listenerv3.RegisterListenerDiscoveryServiceServer(r, lds{srv: s})
	routev3.RegisterRouteDiscoveryServiceServer(r, rds{srv: s})
}

// The two kinds of stream, which every service has.
type (
	sotwStream  = grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	deltaStream = grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
)

type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	srv *Server
}

func (s ads) StreamAggregatedResources(g sotwStream) error { return s.srv.serve(g, false, nil) }
func (s ads) DeltaAggregatedResources(g deltaStream) error { return s.srv.serve(g, true, nil) }

type sds struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	srv *Server
}

func (s sds) StreamSecrets(g sotwStream) error { return s.srv.serve(g, false, new(resource.Secret)) }
func (s sds) DeltaSecrets(g deltaStream) error { return s.srv.serve(g, true, new(resource.Secret)) }

type cds struct {
	clusterv3.UnimplementedClusterDiscoveryServiceServer
	srv *Server
}

func (s cds) StreamClusters(g sotwStream) error { return s.srv.serve(g, false, new(resource.Cluster)) }
func (s cds) DeltaClusters(g deltaStream) error { return s.srv.serve(g, true, new(resource.Cluster)) }

type eds struct {
	endpointv3.UnimplementedEndpointDiscoveryServiceServer
	srv *Server
}

func (s eds) StreamEndpoints(g sotwStream) error {
	return s.srv.serve(g, false, new(resource.Endpoints))
}

func (s eds) DeltaEndpoints(g deltaStream) error {
	return s.srv.serve(g, true, new(resource.Endpoints))
}

type lds struct {
	listenerv3.UnimplementedListenerDiscoveryServiceServer
	srv *Server
}

func (s lds) StreamListeners(g sotwStream) error {
	return s.srv.serve(g, false, new(resource.Listener))
}

func (s lds) DeltaListeners(g deltaStream) error {
	return s.srv.serve(g, true, new(resource.Listener))
}

type rds struct {
	routev3.UnimplementedRouteDiscoveryServiceServer
	srv *Server
}

func (s rds) StreamRoutes(g sotwStream) error { return s.srv.serve(g, false, new(resource.Route)) }
func (s rds) DeltaRoutes(g deltaStream) error { return s.srv.serve(g, true, new(resource.Route)) }
