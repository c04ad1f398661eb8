package servertest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/server"
)

// Subjects of the load.
const (
	Isthmus     = "isthmus"
	LinearCache = "linearcache" // go-control-plane's
)

// Shape is what the subject serves.
type Shape struct {
	Clusters  int `json:"clusters"`
	Endpoints int `json:"endpoints"` // of each cluster
}

// clusterName is the name of cluster i, and of its load assignment.
func clusterName(i int) string { return fmt.Sprintf("outbound|80||service-%d.default.mesh", i) }

// usage is what a subject says of itself.
type usage struct {
	Addr     string  `json:"addr,omitempty"`
	CPU      float64 `json:"cpu"`       // seconds since its start
	RSS      int64   `json:"rss_bytes"` // resident
	Changed  int64   `json:"changed"`   // when the last change began, Unix nanoseconds
	Failures string  `json:"failures,omitempty"`
}

// subject is one kind of server.
type subject struct {
	serve func(net.Listener) error
	put   func(*endpointv3.ClusterLoadAssignment) error
}

// ServeLoad runs one subject until in ends: the process under load. It prints its
// address and then, for each line of in, its usage: "usage", or "put N", which first
// changes an endpoint of cluster 0 to seed N.
func ServeLoad(ctx context.Context, name string, shape Shape, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sub, err := newSubject(ctx, name, shape)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- sub.serve(lis) }()
	enc := json.NewEncoder(out)
	if err := enc.Encode(usage{Addr: lis.Addr().String()}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		changed := time.Now()
		if verb == "put" {
			seed, err := strconv.Atoi(arg)
			if err != nil {
				return fmt.Errorf("put %q: %w", arg, err)
			}
			if err := sub.put(assignment(0, seed, shape)); err != nil {
				return err
			}
		}
		u, err := measure()
		if err != nil {
			return err
		}
		u.Changed = changed.UnixNano()
		if err := enc.Encode(u); err != nil {
			return err
		}
	}
	select {
	case err := <-served:
		return err
	default:
		return nil // the process ends now
	}
}

func measure() (usage, error) {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return usage{}, err
	}
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return usage{}, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return usage{}, fmt.Errorf("/proc/self/statm: %q", statm)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return usage{}, err
	}
	return usage{
		CPU: float64(ru.Utime.Nano()+ru.Stime.Nano()) / float64(time.Second),
		RSS: pages * int64(os.Getpagesize()),
	}, nil
}

func assignment(i, seed int, shape Shape) *endpointv3.ClusterLoadAssignment {
	var cla endpointv3.ClusterLoadAssignment
	r := Endpoints(clusterName(i), seed, shape.Endpoints)
	if err := proto.Unmarshal(r.Body, &cla); err != nil {
		panic(err) // it was just marshalled
	}
	return &cla
}

func newSubject(ctx context.Context, name string, shape Shape) (*subject, error) {
	switch name {
	case Isthmus:
		return newIsthmus(shape)
	case LinearCache:
		return newLinearCache(ctx, shape)
	}
	return nil, fmt.Errorf("subject %q, want %s or %s", name, Isthmus, LinearCache)
}

func newIsthmus(shape Shape) (*subject, error) {
	w := NewWorld()
	var all []*resource.Resource
	for i := range shape.Clusters {
		all = append(all, Simple(resource.Cluster, clusterName(i), 0), Endpoints(clusterName(i), 0, shape.Endpoints))
	}
	w.Put(all...)
	s, err := server.New(server.Config{World: w, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	g := grpc.NewServer(s.ServerOptions()...)
	s.Register(g)
	return &subject{
		serve: g.Serve,
		put: func(cla *endpointv3.ClusterLoadAssignment) error {
			r, err := resource.New(resource.Endpoints, cla.GetClusterName(), cla)
			if err == nil {
				w.Put(r)
			}
			return err
		},
	}, nil
}

func newLinearCache(ctx context.Context, shape Shape) (*subject, error) {
	clusters := cache.NewLinearCache(resource.Cluster.URL())
	endpoints := cache.NewLinearCache(resource.Endpoints.URL())
	cs, es := map[string]types.Resource{}, map[string]types.Resource{}
	for i := range shape.Clusters {
		m, err := decode(Simple(resource.Cluster, clusterName(i), 0))
		if err != nil {
			return nil, err
		}
		cs[clusterName(i)] = m
		es[clusterName(i)] = assignment(i, 0, shape)
	}
	if err := errors.Join(clusters.UpdateResources(cs, nil), endpoints.UpdateResources(es, nil)); err != nil {
		return nil, err
	}
	mux := &cache.MuxCache{
		Classify:      func(r *cache.Request) string { return r.GetTypeUrl() },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        map[string]cache.Cache{resource.Cluster.URL(): clusters, resource.Endpoints.URL(): endpoints},
	}
	// The transport is tuned as ours is: the engines are compared.
	g := grpc.NewServer(grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(8<<10),
		grpc.StaticStreamWindowSize(256<<10), grpc.StaticConnWindowSize(256<<10))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, gcpserver.NewServer(ctx, mux, nil))
	return &subject{
		serve: g.Serve,
		put: func(cla *endpointv3.ClusterLoadAssignment) error {
			return endpoints.UpdateResource(cla.GetClusterName(), cla)
		},
	}, nil
}

// decode is the message of a resource.
func decode(r *resource.Resource) (types.Resource, error) {
	m, err := newMessage(r.Type)
	if err == nil {
		err = proto.Unmarshal(r.Body, m)
	}
	return m, err
}
