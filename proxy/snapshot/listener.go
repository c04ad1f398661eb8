package snapshot

import (
	"net/netip"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
	"github.com/isthmus-mesh/isthmus/proxy/stream"
)

// Listener is a compiled listener. It never changes, but for the route table
// behind HTTP.Routes, which is one pointer for as long as the name is served.
type Listener struct {
	Name    string
	Version string
	// Addr is where to bind. For OnDemand listeners only its port counts: who
	// asked for the name decides on the address.
	Addr     netip.AddrPort
	OnDemand bool
	Inbound  bool
	HTTP     *stream.HTTP // exactly one of HTTP and TCP is set
	TCP      *stream.TCP
}

// listenerSpec is a compiled Listener message before it is joined with routes or
// clusters.
type listenerSpec struct {
	listener Listener      // HTTP and TCP are made later, of what follows
	http     *httpSpec     // nil: TCP
	idle     time.Duration // of TCP
	// rds names the route configuration; empty: it is in inline.
	rds     string
	inline  *routev3.RouteConfiguration
	inlined *compiledRoutes // of inline
	// clusters are those of a TCP listener.
	clusters []weightedName
	// connectAttempts is how many hosts a TCP connection tries.
	connectAttempts int
	logs            bool // the listener asks for an access log
}

// httpSpec is what an HTTP listener says beside its routes, as in stream.HTTP.
type httpSpec struct {
	requestID                       bool
	maxHeaderBytes                  int
	headerTimeout, idle, streamIdle time.Duration
}

type weightedName struct {
	name   string
	weight uint32
}

// direction is the label of the listener's counters.
func (l *Listener) direction() string {
	if l.Inbound {
		return "inbound"
	}
	return "outbound"
}

const (
	hcmFilter    = "envoy.filters.network.http_connection_manager"
	routerFilter = "envoy.filters.http.router"
	stdout       = "/dev/stdout"
)

func decodeListener(name string, body []byte) (*listenerSpec, error) {
	var m listenerv3.Listener
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	if err := listenerSet.Check(&m); err != nil {
		return nil, err
	}
	c := listenerCompiler{spec: &listenerSpec{}}
	l := &c.spec.listener
	l.Name = name
	l.Inbound = m.GetTrafficDirection() == corev3.TrafficDirection_INBOUND
	if m.GetName() != name {
		c.add("name", "%q, but the resource is named %q", m.GetName(), name)
	}
	if m.GetApiListener() != nil {
		c.api(&m)
	} else {
		c.socket(&m)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	return c.spec, nil
}

// maxHeaderKB is Envoy's default for a head, and the most that a connection's
// buffer (64 KiB) holds with room for what comes along.
const maxHeaderKB = 60

type listenerCompiler struct {
	mistakes
	spec *listenerSpec
}

// api compiles a listener without a socket, as gRPC clients get it.
func (c *listenerCompiler) api(m *listenerv3.Listener) {
	c.spec.listener.OnDemand = true
	if len(m.GetFilterChains()) > 0 {
		c.add("filter_chains", "beside api_listener")
	}
	var hcm hcmv3.HttpConnectionManager
	if err := m.GetApiListener().GetApiListener().UnmarshalTo(&hcm); err != nil {
		c.add("api_listener.api_listener", "%v", err)
		return
	}
	c.http("api_listener.api_listener", &hcm)
}

func (c *listenerCompiler) socket(m *listenerv3.Listener) {
	l := &c.spec.listener
	l.Addr = c.address("address", m.GetAddress())
	l.OnDemand = m.GetBindToPort() != nil && !m.GetBindToPort().GetValue()
	if !l.OnDemand && l.Addr.Port() == 0 {
		c.add("address.socket_address.port_value", "0, want a port")
	}
	if m.GetEnableReusePort().GetValue() {
		c.add("enable_reuse_port", "not implemented")
	}
	if len(m.GetFilterChains()) != 1 {
		c.add("filter_chains", "%d of them, want one", len(m.GetFilterChains()))
		return
	}
	filters := m.GetFilterChains()[0].GetFilters()
	if len(filters) != 1 {
		c.add("filter_chains[0].filters", "%d of them, want one", len(filters))
		return
	}
	at := "filter_chains[0].filters[0].typed_config"
	var hcm hcmv3.HttpConnectionManager
	var tcp tcpv3.TcpProxy
	packed := filters[0].GetTypedConfig()
	switch {
	case packed.MessageIs(&hcm):
		if err := packed.UnmarshalTo(&hcm); err != nil {
			c.add(at, "%v", err)
			return
		}
		c.http(at, &hcm)
	case packed.MessageIs(&tcp):
		if err := packed.UnmarshalTo(&tcp); err != nil {
			c.add(at, "%v", err)
			return
		}
		c.tcp(at, &tcp)
	default:
		c.add(at, "want %s or tcp_proxy", hcmFilter)
	}
}

func (c *listenerCompiler) http(path string, m *hcmv3.HttpConnectionManager) {
	h := &httpSpec{requestID: m.GetGenerateRequestId() == nil || m.GetGenerateRequestId().GetValue()}
	c.spec.http = h
	switch s := m.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		if s.Rds.GetConfigSource() != nil && s.Rds.GetConfigSource().GetAds() == nil {
			c.add(path+".rds.config_source", "only ads is implemented")
		}
		if c.spec.rds = s.Rds.GetRouteConfigName(); c.spec.rds == "" {
			c.add(path+".rds.route_config_name", "is empty")
		}
	case *hcmv3.HttpConnectionManager_RouteConfig:
		c.spec.inline = s.RouteConfig
	default:
		c.add(path, "neither rds nor route_config")
	}
	if t := m.GetCodecType(); t != hcmv3.HttpConnectionManager_AUTO && t != hcmv3.HttpConnectionManager_HTTP1 {
		c.add(path+".codec_type", "%v is not implemented", t)
	}
	if t := m.GetServerHeaderTransformation(); t == hcmv3.HttpConnectionManager_APPEND_IF_ABSENT {
		c.add(path+".server_header_transformation", "%v is not implemented", t)
	}
	if n := len(m.GetHttpFilters()); n != 1 {
		c.add(path+".http_filters", "%d of them, want %s alone", n, routerFilter)
	} else if packed := m.GetHttpFilters()[0].GetTypedConfig(); packed != nil && !packed.MessageIs(&routerv3.Router{}) {
		c.add(path+".http_filters[0]", "want %s", routerFilter)
	}
	for i, u := range m.GetUpgradeConfigs() {
		if !strings.EqualFold(u.GetUpgradeType(), "websocket") {
			c.add(path+"."+fields.Index("upgrade_configs", i)+".upgrade_type", "%q is not implemented", u.GetUpgradeType())
		}
	}
	if kb := m.GetMaxRequestHeadersKb(); kb != nil {
		if kb.GetValue() == 0 || kb.GetValue() > maxHeaderKB {
			c.add(path+".max_request_headers_kb", "%d, want 1 to %d", kb.GetValue(), maxHeaderKB)
		}
		h.maxHeaderBytes = int(kb.GetValue()) << 10
	}
	if d := m.GetStreamIdleTimeout(); d != nil {
		if h.streamIdle = c.duration(path+".stream_idle_timeout", d); h.streamIdle == 0 {
			h.streamIdle = never
		}
	}
	if d := m.GetCommonHttpProtocolOptions().GetIdleTimeout(); d != nil {
		if h.idle = c.duration(path+".common_http_protocol_options.idle_timeout", d); h.idle == 0 {
			h.idle = never
		}
	}
	if d := m.GetRequestHeadersTimeout(); d != nil {
		if h.headerTimeout = c.duration(path+".request_headers_timeout", d); h.headerTimeout == 0 {
			h.headerTimeout = never
		}
	}
	c.accessLog(path, m.GetAccessLog())
}

func (c *listenerCompiler) tcp(path string, m *tcpv3.TcpProxy) {
	switch s := m.GetClusterSpecifier().(type) {
	case *tcpv3.TcpProxy_Cluster:
		if s.Cluster == "" {
			c.add(path+".cluster", "is empty")
		}
		c.spec.clusters = []weightedName{{s.Cluster, 1}}
	case *tcpv3.TcpProxy_WeightedClusters:
		for i, w := range s.WeightedClusters.GetClusters() {
			at := path + ".weighted_clusters." + fields.Index("clusters", i)
			if w.GetName() == "" {
				c.add(at+".name", "is empty")
			}
			if w.GetWeight() > 0 {
				c.spec.clusters = append(c.spec.clusters, weightedName{w.GetName(), w.GetWeight()})
			}
		}
	}
	if len(c.spec.clusters) == 0 {
		c.add(path, "names no cluster")
	}
	if d := m.GetIdleTimeout(); d != nil {
		if c.spec.idle = c.duration(path+".idle_timeout", d); c.spec.idle == 0 {
			c.spec.idle = never
		}
	}
	c.spec.connectAttempts = 1
	if n := m.GetMaxConnectAttempts(); n != nil {
		if c.spec.connectAttempts = int(n.GetValue()); n.GetValue() < 1 || n.GetValue() > stream.MaxConnectAttempts {
			c.add(path+".max_connect_attempts", "%d, want 1 to %d", n.GetValue(), stream.MaxConnectAttempts)
		}
	}
	c.accessLog(path, m.GetAccessLog())
}

// accessLog takes logs to standard output for the sidecar's own access log, whose
// place and format its bootstrap says.
func (c *listenerCompiler) accessLog(path string, logs []*accesslogv3.AccessLog) {
	for i, l := range logs {
		at := path + "." + fields.Index("access_log", i) + ".typed_config"
		if err := stdoutLog(l.GetTypedConfig()); err != "" {
			c.add(at, "%s", err)
		}
		c.spec.logs = true
	}
}

func stdoutLog(packed *anypb.Any) (problem string) {
	if packed.MessageIs(&streamlogv3.StdoutAccessLog{}) {
		return ""
	}
	var file filelogv3.FileAccessLog
	if err := packed.UnmarshalTo(&file); err != nil {
		return err.Error()
	}
	if file.GetPath() != stdout {
		return "path " + file.GetPath() + ", want " + stdout
	}
	return ""
}
