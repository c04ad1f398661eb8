package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxDump is the largest answer in bytes: what gRPC clients accept by default (4 MiB)
// less room for framing.
const maxDump = 4<<20 - 64<<10

// CSDS is Envoy's client status discovery service over a Registry.
type CSDS struct {
	statusv3.UnimplementedClientStatusDiscoveryServiceServer
	reg *Registry
}

// NewCSDS returns the service; register it with Register.
func NewCSDS(reg *Registry) *CSDS { return &CSDS{reg: reg} }

// Register adds the service to a gRPC server.
func (c *CSDS) Register(s grpc.ServiceRegistrar) {
	statusv3.RegisterClientStatusDiscoveryServiceServer(s, c)
}

// FetchClientStatus answers in one message. If that would be larger than a client
// accepts, it fails and names the ways to ask for less.
func (c *CSDS) FetchClientStatus(_ context.Context, req *statusv3.ClientStatusRequest) (*statusv3.ClientStatusResponse, error) {
	var resp *statusv3.ClientStatusResponse
	err := c.answer(req, func(part *statusv3.ClientStatusResponse) error {
		if resp != nil {
			return grpcstatus.Errorf(codes.ResourceExhausted,
				"client status is larger than %d bytes: name fewer nodes by node_matchers, set exclude_resource_contents, or use StreamClientStatus",
				maxDump)
		}
		resp = part
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// StreamClientStatus answers each request, in several messages if one is too small.
func (c *CSDS) StreamClientStatus(s grpc.BidiStreamingServer[statusv3.ClientStatusRequest, statusv3.ClientStatusResponse]) error {
	for {
		req, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.answer(req, s.Send); err != nil {
			return err
		}
	}
}

// answer hands the matching clients to send, in at least one part of at most maxDump
// bytes; a single client's resources may be spread over several parts.
func (c *CSDS) answer(req *statusv3.ClientStatusRequest, send func(*statusv3.ClientStatusResponse) error) error {
	match, err := compileMatchers(req.GetNodeMatchers())
	if err != nil {
		return grpcstatus.Error(codes.InvalidArgument, err.Error())
	}
	part, size, parts := &statusv3.ClientStatusResponse{}, 0, 0
	flush := func() error {
		parts++
		err := send(part)
		part, size = &statusv3.ClientStatusResponse{}, 0
		return err
	}
	for client := range c.reg.stream(match) {
		cfg := newConfig(client)
		part.Config = append(part.Config, cfg)
		size += proto.Size(cfg)
		for t, item := range client.items() {
			g := genericConfig(t, item, !req.GetExcludeResourceContents())
			n := proto.Size(g) + 8
			if size+n > maxDump {
				if err := flush(); err != nil {
					return err
				}
				cfg = newConfig(client)
				part.Config = append(part.Config, cfg)
				size = proto.Size(cfg)
			}
			cfg.GenericXdsConfigs = append(cfg.GenericXdsConfigs, g)
			size += n
		}
	}
	if len(part.Config) > 0 || parts == 0 {
		return flush()
	}
	return nil
}

// stream yields every matching client with its items, one at a time: ten thousand of
// them together would be large.
func (r *Registry) stream(match nodeMatch) iter.Seq[Client] {
	return func(yield func(Client) bool) {
		for _, s := range r.attached() {
			for c := range s.Clients(match, true) {
				if !yield(c) {
					return
				}
			}
		}
	}
}

func (c Client) items() iter.Seq2[TypeState, Item] {
	return func(yield func(TypeState, Item) bool) {
		for _, t := range c.Types {
			for _, item := range t.Items {
				if !yield(t, item) {
					return
				}
			}
		}
	}
}

func newConfig(c Client) *statusv3.ClientConfig {
	return &statusv3.ClientConfig{Node: c.Node, ClientScope: fmt.Sprintf("%s from %s", c.Scope, c.Address)}
}

func genericConfig(t TypeState, item Item, contents bool) *statusv3.ClientConfig_GenericXdsConfig {
	g := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: t.Type.URL(), Name: item.Name, VersionInfo: item.Sent}
	g.ConfigStatus, g.ClientStatus = item.State.proto()
	if !t.LastAck.IsZero() && item.State == Acked {
		g.LastUpdated = timestamppb.New(t.LastAck)
	}
	if contents && item.Current != nil {
		g.XdsConfig = &anypb.Any{TypeUrl: t.Type.URL(), Value: item.Current.Body}
	}
	if f := item.Refusal; f != nil {
		g.ErrorState = &adminv3.UpdateFailureState{
			Details: f.Detail, VersionInfo: f.Version, LastUpdateAttempt: timestamppb.New(f.At),
		}
	}
	return g
}

func (s State) proto() (statusv3.ConfigStatus, adminv3.ClientResourceStatus) {
	switch s {
	case Requested:
		return statusv3.ConfigStatus_NOT_SENT, adminv3.ClientResourceStatus_REQUESTED
	case Sent:
		return statusv3.ConfigStatus_STALE, adminv3.ClientResourceStatus_REQUESTED
	case Acked:
		return statusv3.ConfigStatus_SYNCED, adminv3.ClientResourceStatus_ACKED
	case Stale:
		return statusv3.ConfigStatus_STALE, adminv3.ClientResourceStatus_ACKED
	case Nacked:
		return statusv3.ConfigStatus_ERROR, adminv3.ClientResourceStatus_NACKED
	case Missing:
		return statusv3.ConfigStatus_NOT_SENT, adminv3.ClientResourceStatus_DOES_NOT_EXIST
	}
	return statusv3.ConfigStatus_UNKNOWN, adminv3.ClientResourceStatus_UNKNOWN
}
