package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/spf13/cobra"
	yamlv3 "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/proxy/bootstrap"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// bootstrapFlags describe a proxy on the command line.
type bootstrapFlags struct {
	workloadFlags
	kind, httpProxy, admin string
	xds, egress            []string
}

func (a *app) bootstrapCommand() *cobra.Command {
	var b bootstrapFlags
	cmd := &cobra.Command{
		Use:   "bootstrap --for sidecar|envoy|grpc",
		Short: "Write the file that a proxy starts from",
		Long: `Write the file that a sidecar, an Envoy or a gRPC client starts from, ready to be used.
It needs no server. Without -o the format is the proxy's own.`,
		Example: `  meshctl bootstrap --for sidecar --app cart --inbound app=127.0.0.1:8080,listen=0.0.0.0:20881,service=cart > sidecar.yaml
  meshctl bootstrap --for envoy --app web --egress host=cart,port=80 > envoy.yaml
  GRPC_XDS_BOOTSTRAP=<(meshctl bootstrap --for grpc --app web) ./client xds:///cart:50051`,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := b.config()
			if err != nil {
				return err
			}
			switch b.kind {
			case "sidecar":
				return a.sidecarFile(cfg)
			case "envoy":
				return a.envoyFile(cfg)
			case "grpc":
				return a.grpcFile(cfg)
			}
			return misuse("--for %q, want sidecar, envoy or grpc", b.kind)
		},
	}
	b.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&b.kind, "for", "", "what starts from it: sidecar, envoy or grpc")
	f.StringSliceVar(&b.xds, "xds", []string{"127.0.0.1:15010"}, "xDS `address` of a MeshServer; may be repeated")
	f.StringArrayVar(&b.egress, "egress", nil, "a `service` to be called at an address of its own: host=cart,port=80,protocol=http,address=127.64.0.5; may be repeated")
	f.StringVar(&b.httpProxy, "http-proxy", "127.0.0.1:15002", "where the application finds its HTTP proxy, or off")
	f.StringVar(&b.admin, "admin", "127.0.0.1:15000", "`address` of the admin port")
	return cmd
}

// config makes a checked configuration of the flags.
func (b *bootstrapFlags) config() (bootstrap.Config, error) {
	c := bootstrap.Defaults()
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	c.Workload.Name, c.Workload.Namespace, c.Workload.Labels, c.Workload.Weight = b.name, b.namespace, b.labels, b.weight
	if b.app == "" {
		bad("--app is missing: the application's name")
	}
	c.Workload.App = b.app
	var err error
	if c.Workload.Address, err = netip.ParseAddr(b.address); err != nil {
		bad("--address %q, want an IP address", b.address)
	}
	ports, err := b.ports()
	if err != nil {
		bad("%v", err)
	}
	for _, in := range ports {
		c.Inbound = append(c.Inbound, bootstrap.Inbound{App: in.App, Listen: in.Listen, Protocol: in.Protocol, Service: in.Service, ServicePort: in.ServicePort})
	}
	c.MeshServer = nil
	for _, x := range b.xds {
		addr, err := netip.ParseAddrPort(x)
		if err != nil {
			bad("--xds %q, want ip:port", x)
		}
		c.MeshServer = append(c.MeshServer, addr)
	}
	if err := c.HTTPProxy.UnmarshalText([]byte(b.httpProxy)); err != nil {
		bad("--http-proxy %q, want ip:port or off", b.httpProxy)
	}
	if err := c.Admin.UnmarshalText([]byte(b.admin)); err != nil {
		bad("--admin %q, want ip:port or off", b.admin)
	}
	for _, text := range b.egress {
		e, mistakes := egress(text)
		for _, m := range mistakes {
			bad("--egress %s: %s", text, m)
		}
		c.Egress = append(c.Egress, e)
	}
	if len(wrong) == 0 && b.kind != "grpc" { // a gRPC client has no listeners
		if err := c.Validate(); err != nil {
			bad("%v", err)
		}
	}
	if len(wrong) > 0 {
		return c, misuse("%s", strings.Join(wrong, "\n"))
	}
	return c, nil
}

func egress(text string) (e bootstrap.Egress, mistakes []string) {
	e.Protocol = model.HTTP
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(part, "=")
		var err error
		switch {
		case !ok:
			err = fmt.Errorf("want key=value")
		case key == "host":
			e.Host = value
		case key == "port":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			e.Port = uint16(n)
		case key == "protocol":
			e.Protocol, err = model.ParseProtocol(value)
		case key == "address":
			e.Address, err = netip.ParseAddr(value)
		default:
			err = fmt.Errorf("no such key, want host, port, protocol or address")
		}
		if err != nil {
			mistakes = append(mistakes, fmt.Sprintf("%s: %v", part, err))
		}
	}
	return e, mistakes
}

// The parts of sidecar.yaml that differ from its defaults, in the order in which
// people read them.
type (
	sidecarYAML struct {
		Workload   workloadYAML  `yaml:"workload" json:"workload"`
		MeshServer []string      `yaml:"meshserver" json:"meshserver"`
		API        string        `yaml:"api" json:"api"`
		Inbound    []inboundYAML `yaml:"inbound,omitempty" json:"inbound,omitempty"`
		Egress     []egressYAML  `yaml:"egress,omitempty" json:"egress,omitempty"`
		HTTPProxy  string        `yaml:"httpProxy" json:"httpProxy"`
		Admin      string        `yaml:"admin" json:"admin"`
	}
	workloadYAML struct {
		Name      string            `yaml:"name" json:"name"`
		Namespace string            `yaml:"namespace" json:"namespace"`
		App       string            `yaml:"app" json:"app"`
		Address   string            `yaml:"address" json:"address"`
		Labels    map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`
		Weight    uint32            `yaml:"weight,omitempty" json:"weight,omitempty"`
	}
	inboundYAML struct {
		App         string `yaml:"app" json:"app"`
		Listen      string `yaml:"listen" json:"listen"`
		Protocol    string `yaml:"protocol" json:"protocol"`
		Service     string `yaml:"service,omitempty" json:"service,omitempty"`
		ServicePort uint16 `yaml:"servicePort,omitempty" json:"servicePort,omitempty"`
	}
	egressYAML struct {
		Host     string `yaml:"host" json:"host"`
		Port     uint16 `yaml:"port,omitempty" json:"port,omitempty"`
		Protocol string `yaml:"protocol" json:"protocol"`
		Address  string `yaml:"address,omitempty" json:"address,omitempty"`
	}
)

func (a *app) sidecarFile(c bootstrap.Config) error {
	out := sidecarYAML{
		Workload: workloadYAML{
			Name: c.Name(), Namespace: c.Workload.Namespace, App: c.Workload.App, Address: c.Workload.Address.String(),
			Labels: c.Workload.Labels, Weight: c.Workload.Weight,
		},
		API: a.server, HTTPProxy: addressText(c.HTTPProxy), Admin: addressText(c.Admin),
	}
	for _, m := range c.MeshServer {
		out.MeshServer = append(out.MeshServer, m.String())
	}
	for _, in := range c.Inbound {
		out.Inbound = append(out.Inbound, inboundYAML{in.App.String(), in.Listen.String(), in.Protocol.String(), in.Service, in.ServicePort})
	}
	for _, e := range c.Egress {
		item := egressYAML{Host: e.Host, Port: e.Port, Protocol: e.Protocol.String()}
		if e.Address.IsValid() {
			item.Address = e.Address.String()
		}
		out.Egress = append(out.Egress, item)
	}
	if a.format == "json" {
		return a.writeJSON(out)
	}
	text, err := yamlv3.Marshal(out)
	if err != nil {
		return fmt.Errorf("write sidecar.yaml: %w", err)
	}
	_, err = a.Out.Write(text)
	return err
}

func addressText(a bootstrap.Address) string {
	if a.Off() {
		return "off"
	}
	return a.String()
}

func (a *app) writeJSON(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	return a.write(text)
}

// node is how an Envoy or a gRPC client introduces itself.
func node(kind string, c bootstrap.Config) *corev3.Node {
	n := c.Node("")
	n.Id = strings.Replace(c.NodeID(), "sidecar~", kind+"~", 1)
	n.UserAgentName, n.UserAgentVersionType = "", nil // the client says what it is
	if n.Locality.Region == "" && n.Locality.Zone == "" && n.Locality.SubZone == "" {
		n.Locality = nil
	}
	return n
}

// xdsCluster is the name under which an Envoy knows the MeshServers.
const xdsCluster = "xds-grpc"

// maxRegexProgram is what rules may cost an Envoy to match, in RE2 instructions;
// Istio's value.
const maxRegexProgram = 32768

func (a *app) envoyFile(c bootstrap.Config) error {
	n := node("envoy", c)
	if len(c.Egress) > 0 {
		n.Metadata.Fields["EGRESS"] = structpb.NewListValue(egressOf(c))
	}
	http2, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
				// A MeshServer that vanished without closing is noticed and left.
				ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(5 * time.Second)},
			}},
		}},
	})
	if err != nil {
		return fmt.Errorf("write Envoy bootstrap: %w", err)
	}
	servers := &endpointv3.LocalityLbEndpoints{}
	for _, m := range c.MeshServer {
		servers.LbEndpoints = append(servers.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: socket(m)},
		}})
	}
	ads := &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
	out := &bootstrapv3.Bootstrap{
		Node: n,
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: &corev3.ApiConfigSource{
				ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: xdsCluster}}}},
			},
			CdsConfig: ads, LdsConfig: ads,
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{{
			Name: xdsCluster, ConnectTimeout: durationpb.New(2 * time.Second),
			ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			LoadAssignment:                &endpointv3.ClusterLoadAssignment{ClusterName: xdsCluster, Endpoints: []*endpointv3.LocalityLbEndpoints{servers}},
			TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
		}}},
	}
	// Envoy refuses regular expressions of more than 100 instructions unless told
	// otherwise, and with them the whole route configuration.
	re2, err := structpb.NewStruct(map[string]any{"re2.max_program_size.error_level": maxRegexProgram})
	if err != nil {
		return fmt.Errorf("write Envoy bootstrap: %w", err)
	}
	out.LayeredRuntime = &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "mesh", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: re2},
	}}}
	if !c.Admin.Off() {
		out.Admin = &bootstrapv3.Admin{Address: socket(c.Admin.AddrPort)}
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(out)
	if err != nil {
		return fmt.Errorf("write Envoy bootstrap: %w", err)
	}
	if a.format == "json" {
		return a.write(text)
	}
	if text, err = yaml.JSONToYAML(text); err != nil {
		return fmt.Errorf("write Envoy bootstrap: %w", err)
	}
	_, err = a.Out.Write(text)
	return err
}

func socket(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

// egressOf lists the services for which an Envoy listens. An Envoy cannot choose
// addresses, so those that are not given are counted up from the prefix's second.
func egressOf(c bootstrap.Config) *structpb.ListValue {
	taken := map[netip.Addr]bool{}
	for _, e := range c.Egress {
		taken[e.Address] = true
	}
	next := c.Loopback.Addr().Next()
	list := &structpb.ListValue{}
	for i, w := range c.Wanted() {
		address := w.Address
		for !address.IsValid() {
			if next = next.Next(); !taken[next] {
				address, taken[next] = next, true
			}
		}
		list.Values = append(list.Values, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"host":    structpb.NewStringValue(c.Egress[i].Host),
			"port":    structpb.NewNumberValue(float64(w.Port)),
			"address": structpb.NewStringValue(address.String()),
		}}))
	}
	return list
}

func (a *app) grpcFile(c bootstrap.Config) error {
	n := node("grpc", c)
	for _, key := range []string{"HTTP_PROXY", "INBOUND", "INTERCEPTION_MODE"} {
		delete(n.Metadata.Fields, key) // they ask for listeners, which a gRPC client has none of
	}
	identity, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(n)
	if err != nil {
		return fmt.Errorf("write gRPC bootstrap: %w", err)
	}
	type server struct {
		URI      string              `json:"server_uri"`
		Creds    []map[string]string `json:"channel_creds"`
		Features []string            `json:"server_features"`
	}
	out := struct {
		Servers  []server        `json:"xds_servers"`
		Node     json.RawMessage `json:"node"`
		Template string          `json:"server_listener_resource_name_template"`
	}{Node: identity, Template: resource.GRPCServerListenerPrefix + "%s"}
	for _, m := range c.MeshServer {
		out.Servers = append(out.Servers, server{m.String(), []map[string]string{{"type": "insecure"}}, []string{"xds_v3"}})
	}
	if a.format == "table" {
		a.format = "json"
	}
	return a.writeJSON(out)
}
