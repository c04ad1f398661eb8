// Package scope turns what an xDS client says of itself into a checked Node, and
// into the comparable keys by which resources are computed: once for all nodes of
// one key, not once a stream.
//
// Parse distrusts its input: every field is bounded and checked, and its error
// names all that is wrong. A Node never changes and may be shared.
//
// Which part of a node decides what: RATIONALE.md of xds/translate, "Three keys".
package scope

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Kind is the sort of client, as far as it changes what is served.
type Kind uint8

// Kinds of client. The zero value is Envoy: any client that is neither of the others.
const (
	Envoy   Kind = iota
	Sidecar      // node id "sidecar~...": asks for listeners by host and port, and binds them itself
	GRPC         // a gRPC library: wants API listeners
)

var kindNames = [...]string{"envoy", "sidecar", "grpc"}

// String is the lower-case name.
func (k Kind) String() string { return kindNames[k] }

// Inbound is a port for which the node wants an inbound listener.
type Inbound struct {
	App      netip.AddrPort // where the application listens
	Listen   netip.AddrPort // where the listener binds
	Protocol model.Protocol
}

// Egress is a service for which the node wants a bound listener.
type Egress struct {
	Host   model.Host
	Port   uint16         // the service port
	Listen netip.AddrPort // where the listener binds; its port is Port unless given
}

// Node is a checked xDS client.
type Node struct {
	ID        string
	Kind      Kind
	Namespace string // model's "default" when the client names none
	App       string
	Workload  string
	Cluster   string
	Labels    model.Labels
	Locality  model.Locality
	Inbound   []Inbound      // must not be modified
	Egress    []Egress       // must not be modified
	HTTPProxy netip.AddrPort // zero: none wanted
}

// Client is the part of a node that decides about outbound resources, which are
// the bulk. Comparable: nodes with equal Clients share them.
type Client struct {
	Namespace string
	// Labels are only those that some rule matches callers by, key and value.
	Labels model.Labels
	Kind   Kind
}

// Caller reduces n to what translators read, given the labels that any rule
// matches callers by: the values it names, by key. A label whose value no rule
// names changes nothing, so a thousand values of one key are no thousand Clients.
func (n *Node) Caller(matched map[string]map[string]struct{}) Client {
	kept := map[string]string{}
	for k, v := range n.Labels.All() {
		if _, ok := matched[k][v]; ok {
			kept[k] = v
		}
	}
	return Client{Namespace: n.Namespace, Kind: n.Kind, Labels: model.NewLabels(kept)}
}

// Unlabelled is c as rules see a caller of which they know the namespace alone.
func (c Client) Unlabelled() Client {
	c.Labels = model.Labels{}
	return c
}

// Key is everything of a node that can ever change what it is served, whatever
// the rules. Comparable: nodes with equal Keys share one feed.
type Key struct {
	Namespace string
	Labels    model.Labels
	Kind      Kind
	Listeners Listeners
}

// Key returns the key of n.
func (n *Node) Key() Key {
	return Key{Namespace: n.Namespace, Labels: n.Labels, Kind: n.Kind, Listeners: n.listeners()}
}

// Listeners is the part of a node that decides about its own listeners, in a
// comparable form; the zero value wants none.
type Listeners struct{ text string }

func (n *Node) listeners() Listeners {
	var b strings.Builder
	for _, in := range n.Inbound {
		fmt.Fprintf(&b, "in %v %v %v\n", in.App, in.Listen, in.Protocol)
	}
	for _, e := range n.Egress {
		fmt.Fprintf(&b, "out %v %d %v\n", e.Host, e.Port, e.Listen)
	}
	if n.HTTPProxy.IsValid() {
		fmt.Fprintf(&b, "proxy %v\n", n.HTTPProxy)
	}
	return Listeners{b.String()}
}

// Name describes the scope of n for logs and dumps: "default/cart", and the kind
// where it is gRPC.
func (n *Node) Name() string {
	name := n.Namespace + "/" + n.App
	if n.App == "" {
		name = n.Namespace + "/" + n.Kind.String()
	} else if n.Kind == GRPC {
		name += " (grpc)"
	}
	return name
}
