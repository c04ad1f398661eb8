package servertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// LoadConfig is one run of the load.
type LoadConfig struct {
	// Command starts a process that calls ServeLoad for this subject and shape with
	// its standard input and output. The server has its own process so that its CPU
	// can be told from the client's.
	Command *exec.Cmd
	Shape   Shape
	Streams int // delta streams, each on a connection of its own
	Updates int // one after the other, each when the one before is acknowledged by all
}

// LoadResult is what a run measured.
type LoadResult struct {
	Connect      time.Duration // until the last stream has acknowledged everything
	ConnectCPU   float64       // seconds
	LastAck      []time.Duration
	CPUPerUpdate float64 // seconds, of the server
	RSS          int64   // bytes, of the server, after the updates
}

// LastAckP returns the quantile p (0 to 1) of the time from a change to the last
// stream's acknowledgement.
func (r LoadResult) LastAckP(p float64) time.Duration {
	all := slices.Sorted(slices.Values(r.LastAck))
	return all[min(len(all)-1, int(p*float64(len(all))))]
}

// remote is the process under load.
type remote struct {
	in  io.WriteCloser
	out *json.Decoder
}

func (r *remote) ask(line string) (usage, error) {
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		return usage{}, err
	}
	var u usage
	err := r.out.Decode(&u)
	return u, err
}

// Load runs the load and ends the process.
func Load(ctx context.Context, cfg LoadConfig) (res LoadResult, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := cfg.Command.StdinPipe()
	if err != nil {
		return res, err
	}
	out, err := cfg.Command.StdoutPipe()
	if err != nil {
		return res, err
	}
	if err := cfg.Command.Start(); err != nil {
		return res, err
	}
	defer func() {
		err = errors.Join(err, in.Close(), cfg.Command.Wait())
	}()
	server := &remote{in: in, out: json.NewDecoder(bufio.NewReader(out))}
	var hello usage
	if err := server.out.Decode(&hello); err != nil {
		return res, fmt.Errorf("process under load: %w", err)
	}
	c := &crowd{cfg: cfg}
	defer c.close()
	begin := time.Now()
	if err := c.connect(ctx, hello.Addr); err != nil {
		return res, err
	}
	res.Connect = time.Since(begin)
	before, err := server.ask("usage")
	if err != nil {
		return res, err
	}
	res.ConnectCPU = before.CPU
	for seed := range cfg.Updates {
		done := c.expect(Endpoints(clusterName(0), seed+1, cfg.Shape.Endpoints).Body)
		u, err := server.ask("put " + strconv.Itoa(seed+1))
		if err != nil {
			return res, err
		}
		select {
		case <-done:
		case err := <-c.failed:
			return res, err
		case <-ctx.Done():
			return res, fmt.Errorf("update %d: %d of %d streams: %w", seed+1, c.acked.Load(), cfg.Streams, context.Cause(ctx))
		}
		res.LastAck = append(res.LastAck, time.Unix(0, c.lastAck.Load()).Sub(time.Unix(0, u.Changed)))
	}
	after, err := server.ask("usage")
	if err != nil {
		return res, err
	}
	res.CPUPerUpdate = (after.CPU - before.CPU) / float64(max(1, cfg.Updates))
	res.RSS = after.RSS
	return res, nil
}

// crowd is all the streams.
type crowd struct {
	cfg    LoadConfig
	failed chan error

	want    atomic.Pointer[[]byte] // the body of the update that is under way
	acked   atomic.Int64
	lastAck atomic.Int64 // Unix nanoseconds
	done    atomic.Pointer[chan struct{}]

	mu    sync.Mutex
	conns []*grpc.ClientConn
}

// expect sets what every stream must get next; the channel closes with the last
// acknowledgement.
func (c *crowd) expect(body []byte) <-chan struct{} {
	done := make(chan struct{})
	c.acked.Store(0)
	c.done.Store(&done)
	c.want.Store(&body)
	return done
}

func (c *crowd) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close() // the run is over
	}
}

// connecting bounds how many streams connect at once.
const connecting = 64

func (c *crowd) connect(ctx context.Context, addr string) error {
	c.failed = make(chan error, c.cfg.Streams)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(connecting)
	for i := range c.cfg.Streams {
		g.Go(func() error {
			if gctx.Err() != nil {
				return nil
			}
			m, err := c.open(ctx, addr, i)
			if err != nil {
				return fmt.Errorf("stream %d: %w", i, err)
			}
			if err := m.sync(c.cfg.Shape.Clusters); err != nil {
				return fmt.Errorf("stream %d: %w", i, err)
			}
			go func() {
				if err := m.follow(); ctx.Err() == nil {
					c.failed <- fmt.Errorf("stream %d: %w", i, err)
				}
			}()
			return nil
		})
	}
	return g.Wait()
}

// member is one stream.
type member struct {
	crowd  *crowd
	node   *corev3.Node
	stream grpc.ClientStream
}

func (c *crowd) open(ctx context.Context, addr string, i int) (*member, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithReadBufferSize(4<<10), grpc.WithDisableServiceConfig(),
		grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(1<<20), // as xds/client
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	return &member{crowd: c, node: &corev3.Node{Id: "load-" + strconv.Itoa(i), Cluster: "load"}, stream: stream}, nil
}

func (m *member) send(r *discoveryv3.DeltaDiscoveryRequest) error {
	b, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return m.stream.SendMsg(&b)
}

// sync subscribes and acknowledges until everything has come once.
func (m *member) sync(clusters int) error {
	err := m.send(&discoveryv3.DeltaDiscoveryRequest{Node: m.node, TypeUrl: resource.Cluster.URL()})
	if err != nil {
		return err
	}
	if err := m.receive(clusters); err != nil {
		return err
	}
	names := make([]string, clusters)
	for i := range names {
		names[i] = clusterName(i)
	}
	err = m.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.Endpoints.URL(), ResourceNamesSubscribe: names})
	if err != nil {
		return err
	}
	return m.receive(clusters)
}

// receive acknowledges responses until so many resources came.
func (m *member) receive(resources int) error {
	for resources > 0 {
		_, h, err := m.next()
		if err != nil {
			return err
		}
		resources -= h.resources
		if err := m.ack(h); err != nil {
			return err
		}
	}
	return nil
}

// follow checks and acknowledges updates until the stream ends.
func (m *member) follow() error {
	c := m.crowd
	for {
		b, h, err := m.next()
		if err != nil {
			return err
		}
		if want := c.want.Load(); want == nil || h.resources != 1 || !bytes.Contains(b, *want) {
			return fmt.Errorf("a response of %d resources that is not the update", h.resources)
		}
		if err := m.ack(h); err != nil {
			return err
		}
		now := time.Now().UnixNano()
		for last := c.lastAck.Load(); last < now && !c.lastAck.CompareAndSwap(last, now); last = c.lastAck.Load() {
		}
		if c.acked.Add(1) == int64(c.cfg.Streams) {
			close(*c.done.Load())
		}
	}
}

func (m *member) ack(h head) error {
	return m.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: h.typeURL, ResponseNonce: h.nonce})
}

// head is what a client must know of a response to answer it.
type head struct {
	typeURL, nonce string
	resources      int
}

func (m *member) next() ([]byte, head, error) {
	var b []byte
	if err := m.stream.RecvMsg(&b); err != nil {
		return nil, head{}, err
	}
	h, err := readHead(b)
	return b, h, err
}

// readHead reads the fields of a DeltaDiscoveryResponse without its resources.
func readHead(b []byte) (h head, err error) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return h, protowire.ParseError(n)
		}
		b = b[n:]
		if kind != protowire.BytesType {
			return h, fmt.Errorf("field %d of wire type %d", field, kind)
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return h, protowire.ParseError(n)
		}
		b = b[n:]
		switch field {
		case 2:
			h.resources++
		case 4:
			h.typeURL = string(v)
		case 5:
			h.nonce = string(v)
		}
	}
	return h, nil
}

// rawCodec passes messages as bytes.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return "proto" }

// newMessage is an empty message of a type.
func newMessage(t resource.Type) (proto.Message, error) {
	switch t {
	case resource.Secret:
		return &tlsv3.Secret{}, nil
	case resource.Cluster:
		return &clusterv3.Cluster{}, nil
	case resource.Endpoints:
		return &endpointv3.ClusterLoadAssignment{}, nil
	case resource.Listener:
		return &listenerv3.Listener{}, nil
	case resource.Route:
		return &routev3.RouteConfiguration{}, nil
	}
	return nil, fmt.Errorf("no message for %v", t)
}
