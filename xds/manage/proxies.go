package manage

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/status"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

const (
	// maxConfig bounds the configuration in one answer, in bytes of JSON.
	maxConfig = 32 << 20
	// maxRefusals is how many refusals of a type are listed.
	maxRefusals = 20
)

type proxyService struct{ cfg Config }

func (s *proxyService) ListProxies(_ context.Context, req *api.ListProxiesRequest) (*api.ListProxiesResponse, error) {
	clients := s.cfg.Proxies.Clients(func(n *corev3.Node) bool { return contains(n.GetId(), req.Contains) }, false)
	if req.Unsynced {
		clients = slices.DeleteFunc(clients, synced)
	}
	slices.SortFunc(clients, func(a, b status.Client) int { return cmp.Compare(streamKey(a), streamKey(b)) })
	items, next, err := page(clients, streamKey, req.PageSize, req.PageToken)
	if err != nil {
		return nil, err
	}
	resp := &api.ListProxiesResponse{NextPageToken: next, Total: uint32(len(clients))}
	for _, c := range items {
		resp.Proxies = append(resp.Proxies, proxyOf(c))
	}
	return resp, nil
}

func (s *proxyService) GetProxy(_ context.Context, req *api.GetProxyRequest) (*api.Proxy, error) {
	c, err := s.find(req.Node, false)
	if err != nil {
		return nil, err
	}
	return proxyOf(c), nil
}

func (s *proxyService) ListRefusals(context.Context, *api.ListRefusalsRequest) (*api.ListRefusalsResponse, error) {
	resp := &api.ListRefusalsResponse{}
	for _, f := range s.cfg.Proxies.Refusals() {
		resp.Refusals = append(resp.Refusals, refusalOf(f))
	}
	return resp, nil
}

func (s *proxyService) GetConfig(_ context.Context, req *api.GetConfigRequest) (*api.GetConfigResponse, error) {
	if req.Type != "" && !slices.ContainsFunc(allTypes(), func(t resource.Type) bool { return strings.EqualFold(t.String(), req.Type) }) {
		return nil, badRequest("type: %q, want one of SDS, CDS, EDS, LDS, RDS", req.Type)
	}
	c, err := s.find(req.Node, true)
	if err != nil {
		return nil, err
	}
	resp := &api.GetConfigResponse{Node: c.Node.GetId()}
	size := 0
	for _, t := range c.Types {
		if req.Type != "" && !strings.EqualFold(t.Type.String(), req.Type) {
			continue
		}
		for _, item := range t.Items {
			if req.Name != "" && item.Name != req.Name {
				continue
			}
			out := configOf(t.Type, item)
			if size += proto.Size(out); size > maxConfig {
				return nil, overLimit("configuration of %s: over %d MiB: name a type or a resource", resp.Node, maxConfig>>20)
			}
			resp.Resources = append(resp.Resources, out)
		}
	}
	if req.Name != "" && len(resp.Resources) == 0 {
		return nil, fmt.Errorf("resource %s of %s: %w: it does not subscribe to it", req.Name, resp.Node, store.ErrNotFound)
	}
	return resp, nil
}

func allTypes() []resource.Type {
	all := make([]resource.Type, resource.NumTypes)
	for i := range all {
		all[i] = resource.Type(i)
	}
	return all
}

// find returns the newest stream of the node that is named, in full or by a part
// that only one node has.
func (s *proxyService) find(name string, detail bool) (status.Client, error) {
	if name == "" {
		return status.Client{}, badRequest("node: is empty")
	}
	var nodes []string
	for _, c := range s.cfg.Proxies.Clients(func(n *corev3.Node) bool { return contains(n.GetId(), name) }, false) {
		id := c.Node.GetId()
		if id == name {
			nodes = []string{id}
			break
		}
		if !slices.Contains(nodes, id) {
			nodes = append(nodes, id)
		}
	}
	switch {
	case len(nodes) == 0:
		return status.Client{}, fmt.Errorf("proxy %s: %w: no such node is connected", name, store.ErrNotFound)
	case len(nodes) > 1:
		return status.Client{}, badRequest("node: %q is part of %d node ids, such as %s and %s: write more of it", name, len(nodes), nodes[0], nodes[1])
	}
	streams := s.cfg.Proxies.Clients(func(n *corev3.Node) bool { return n.GetId() == nodes[0] }, detail)
	if len(streams) == 0 {
		return status.Client{}, fmt.Errorf("proxy %s: %w: it disconnected", nodes[0], store.ErrNotFound)
	}
	return slices.MaxFunc(streams, func(a, b status.Client) int { return a.Connected.Compare(b.Connected) }), nil
}

// streamKey orders streams by node, then by age; it is unique.
func streamKey(c status.Client) string {
	return fmt.Sprintf("%s\x00%020d\x00%s", c.Node.GetId(), c.Connected.UnixNano(), c.Address)
}

func synced(c status.Client) bool {
	return !slices.ContainsFunc(c.Types, func(t status.TypeState) bool { return t.Waiting > 0 || len(t.Refusals) > 0 })
}

func proxyOf(c status.Client) *api.Proxy {
	out := &api.Proxy{
		Node: c.Node.GetId(), Cluster: c.Node.GetCluster(), UserAgent: userAgent(c.Node),
		Address: c.Address, Scope: c.Scope, Delta: c.Delta, Connected: stamp(c.Connected), Synced: synced(c),
	}
	for _, t := range c.Types {
		pt := &api.ProxyType{
			Type: t.Type.String(), Wildcard: t.Wildcard, Held: uint32(t.Held), Waiting: uint32(t.Waiting),
			Version: t.Version, AckedVersion: t.Acked, Acked: stamp(t.LastAck), Refused: uint32(len(t.Refusals)),
		}
		for _, f := range t.Refusals[:min(len(t.Refusals), maxRefusals)] {
			pt.Refusals = append(pt.Refusals, refusalOf(f))
		}
		out.Types = append(out.Types, pt)
	}
	return out
}

func userAgent(n *corev3.Node) string {
	version := n.GetUserAgentVersion()
	if b := n.GetUserAgentBuildVersion().GetVersion(); b != nil {
		version = fmt.Sprintf("%d.%d.%d", b.MajorNumber, b.MinorNumber, b.Patch)
	}
	return strings.TrimSpace(n.GetUserAgentName() + " " + version)
}

func refusalOf(f status.Refusal) *api.Refusal {
	return &api.Refusal{
		Time: stamp(f.At), Type: f.Type.String(), Name: f.Name, Version: f.Version,
		Error: f.Detail, Rules: f.Origins, Quarantined: f.Quarantined, Node: f.NodeID,
	}
}

// states are the API's words for the states of a resource.
var states = [...]api.ConfigResource_State{
	status.Requested: api.ConfigResource_REQUESTED,
	status.Sent:      api.ConfigResource_SENT,
	status.Acked:     api.ConfigResource_ACKED,
	status.Stale:     api.ConfigResource_STALE,
	status.Nacked:    api.ConfigResource_REFUSED,
	status.Missing:   api.ConfigResource_MISSING,
}

func configOf(t resource.Type, item status.Item) *api.ConfigResource {
	out := &api.ConfigResource{Type: t.String(), Name: item.Name, Version: item.Sent}
	if int(item.State) < len(states) {
		out.State = states[item.State]
	}
	if item.Current != nil {
		out.Newest, out.Rules, out.Body = item.Current.Version, item.Current.Origins, bodyOf(item.Current)
	}
	if item.Refusal != nil {
		out.Refusal = refusalOf(*item.Refusal)
	}
	return out
}

// bodyOf renders a resource in Envoy's JSON form. A message that this binary does
// not know is shown as bytes.
func bodyOf(r *resource.Resource) *structpb.Struct {
	body, err := render(r)
	if err == nil {
		return body
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"@type":  structpb.NewStringValue(r.Type.URL()),
		"error":  structpb.NewStringValue(err.Error()),
		"base64": structpb.NewStringValue(base64.StdEncoding.EncodeToString(r.Body)),
	}}
}

func render(r *resource.Resource) (*structpb.Struct, error) {
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(r.Type.URL())
	if err != nil {
		return nil, err
	}
	m := mt.New().Interface()
	if err := proto.Unmarshal(r.Body, m); err != nil {
		return nil, err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	body := &structpb.Struct{}
	return body, protojson.Unmarshal(text, body)
}
