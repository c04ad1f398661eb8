package resource

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Names follow Istio's, so that dashboards and habits carry over.

// ClusterName is a parsed cluster name: "outbound|<port>|<subset>|<host>" or
// "inbound|<port>||".
type ClusterName struct {
	Inbound bool
	Port    uint16
	Subset  string
	Host    model.Host
}

// String renders the name.
func (n ClusterName) String() string {
	direction := "outbound"
	if n.Inbound {
		direction = "inbound"
	}
	return fmt.Sprintf("%s|%d|%s|%s", direction, n.Port, n.Subset, n.Host)
}

// ParseClusterName reads what String renders.
func ParseClusterName(s string) (ClusterName, error) {
	parts := strings.SplitN(s, "|", 4)
	if len(parts) != 4 || parts[0] != "inbound" && parts[0] != "outbound" {
		return ClusterName{}, fmt.Errorf("cluster name %q, want outbound|<port>|<subset>|<host> or inbound|<port>||", s)
	}
	port, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil {
		return ClusterName{}, fmt.Errorf("cluster name %q: port: %w", s, err)
	}
	return ClusterName{parts[0] == "inbound", uint16(port), parts[2], model.Host(parts[3])}, nil
}

// ListenerName is "<ip>_<port>".
func ListenerName(a netip.AddrPort) string { return fmt.Sprintf("%s_%d", a.Addr(), a.Port()) }

// HostPortName is "<host>:<port>": the listener that a gRPC client or a sidecar
// asks for by name, and the route configuration behind it.
func HostPortName(h model.Host, port uint16) string { return fmt.Sprintf("%s:%d", h, port) }

// ParseHostPort reads what HostPortName renders. Hosts may hold colons; the last
// one separates the port.
func ParseHostPort(s string) (model.Host, uint16, bool) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return "", 0, false
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return "", 0, false
	}
	return model.Host(strings.ToLower(s[:i])), uint16(port), true
}

// GRPCServerListenerPrefix starts the name of a gRPC server's listener; the
// listening address follows.
const GRPCServerListenerPrefix = "grpc/server?xds.resource.listening_address="
