package bootstrap

import (
	"fmt"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Name is the workload's name, made from the application's where none is given.
func (c *Config) Name() string {
	if c.Workload.Name != "" {
		return c.Workload.Name
	}
	if len(c.Inbound) == 0 {
		return fmt.Sprintf("%s-%v", c.Workload.App, c.Workload.Address)
	}
	return fmt.Sprintf("%s-%v-%d", c.Workload.App, c.Workload.Address, c.Inbound[0].App.Port())
}

// NodeID is the sidecar's id at the control plane.
func (c *Config) NodeID() string {
	w := &c.Workload
	return fmt.Sprintf("sidecar~%v~%s.%s~%s.mesh", w.Address, c.Name(), w.Namespace, w.Namespace)
}

// Node is how the sidecar introduces itself. Listeners of egress services are
// asked for by name, so they are not part of it.
func (c *Config) Node(version string) *corev3.Node {
	w := &c.Workload
	labels := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range w.Labels {
		labels.Fields[k] = structpb.NewStringValue(v)
	}
	meta := &structpb.Struct{Fields: map[string]*structpb.Value{
		"NAMESPACE":         structpb.NewStringValue(w.Namespace),
		"LABELS":            structpb.NewStructValue(labels),
		"APP_NAME":          structpb.NewStringValue(w.App),
		"WORKLOAD_NAME":     structpb.NewStringValue(c.Name()),
		"INTERCEPTION_MODE": structpb.NewStringValue("NONE"),
	}}
	if w.Cluster != "" {
		meta.Fields["CLUSTER_ID"] = structpb.NewStringValue(w.Cluster)
	}
	if !c.HTTPProxy.Off() {
		meta.Fields["HTTP_PROXY"] = structpb.NewStringValue(c.HTTPProxy.String())
	}
	if len(c.Inbound) > 0 {
		list := &structpb.ListValue{}
		for _, in := range c.Inbound {
			list.Values = append(list.Values, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				"app":      structpb.NewStringValue(in.App.String()),
				"listen":   structpb.NewStringValue(in.Listen.String()),
				"protocol": structpb.NewStringValue(in.Protocol.String()),
			}}))
		}
		meta.Fields["INBOUND"] = structpb.NewListValue(list)
	}
	return &corev3.Node{
		Id:                   c.NodeID(),
		Cluster:              w.App,
		Metadata:             meta,
		Locality:             &corev3.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, SubZone: w.Locality.SubZone},
		UserAgentName:        "isthmus-sidecar",
		UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: version},
	}
}

// Model is the workload as registries announce it.
func (c *Config) Model() *model.Workload {
	w := &c.Workload
	out := &model.Workload{
		Name:      c.Name(),
		Namespace: w.Namespace,
		App:       w.App,
		Address:   w.Address,
		Labels:    model.NewLabels(w.Labels),
		Locality:  model.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, SubZone: w.Locality.SubZone},
		Weight:    w.Weight,
	}
	for _, in := range c.Inbound {
		out.Inbound = append(out.Inbound, model.Inbound{
			App: in.App, Listen: in.Listen, Protocol: in.Protocol, Service: in.Service, ServicePort: in.ServicePort,
		})
	}
	return out
}

// Wanted is a service for which the sidecar listens at an address of its own.
type Wanted struct {
	Listener string     // its name at the control plane, "<host>:<port>"
	Port     uint16     // to listen on
	Address  netip.Addr // to listen at; the zero value: one is allocated
}

// Wanted returns the services of egress.
func (c *Config) Wanted() []Wanted {
	out := make([]Wanted, 0, len(c.Egress))
	for i := range c.Egress {
		e := &c.Egress[i]
		host, err := model.ParseHost(e.Host)
		if err != nil {
			continue // Validate reports it
		}
		out = append(out, Wanted{Listener: resource.HostPortName(host, e.port()), Port: e.port(), Address: e.Address})
	}
	return out
}
