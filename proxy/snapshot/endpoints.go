package snapshot

import (
	"math"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// maxPriority is the highest priority number; Envoy's bound.
const maxPriority = 128

// overprovisioning is Envoy's default factor in percent, the only one implemented.
const overprovisioning = 140

func decodeEndpoints(name string, body []byte) ([]upstream.Endpoint, error) {
	var m endpointv3.ClusterLoadAssignment
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	if err := endpointSet.Check(&m); err != nil {
		return nil, err
	}
	if m.GetClusterName() != name {
		return nil, fields.Errorf("cluster_name", "%q, but the resource is named %q", m.GetClusterName(), name)
	}
	return compileEndpoints(&m)
}

// compileEndpoints takes the endpoints of all localities.
func compileEndpoints(m *endpointv3.ClusterLoadAssignment) ([]upstream.Endpoint, error) {
	var c mistakes
	if f := m.GetPolicy().GetOverprovisioningFactor(); f != nil && f.GetValue() != overprovisioning {
		c.add("policy.overprovisioning_factor", "%d, want %d", f.GetValue(), overprovisioning)
	}
	var out []upstream.Endpoint
	var total uint64
	for i, locality := range m.GetEndpoints() {
		at := fields.Index("endpoints", i)
		if locality.GetPriority() > maxPriority {
			c.add(at+".priority", "%d, want at most %d", locality.GetPriority(), maxPriority)
		}
		where := locality.GetLocality()
		name := model.Locality{Region: where.GetRegion(), Zone: where.GetZone(), SubZone: where.GetSubZone()}.String()
		for j, e := range locality.GetLbEndpoints() {
			at := at + "." + fields.Index("lb_endpoints", j)
			host := upstream.Endpoint{
				Addr:     c.address(at+".endpoint.address", e.GetEndpoint().GetAddress()),
				Weight:   1,
				Health:   health(e.GetHealthStatus()),
				Priority: locality.GetPriority(),
				Workload: e.GetMetadata().GetFilterMetadata()["isthmus"].GetFields()["workload"].GetStringValue(),
				Locality: name,
			}
			if w := e.GetLoadBalancingWeight(); w != nil {
				if host.Weight = w.GetValue(); host.Weight == 0 {
					c.add(at+".load_balancing_weight", "0, want at least 1")
				}
			}
			total += uint64(host.Weight)
			out = append(out, host)
		}
	}
	if total > math.MaxUint32 {
		c.add("endpoints", "all weights together are %d, want at most %d", total, uint32(math.MaxUint32))
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	return out, nil
}

func health(s corev3.HealthStatus) upstream.Health {
	switch s {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
		return upstream.Healthy
	case corev3.HealthStatus_DEGRADED:
		return upstream.Degraded
	}
	return upstream.Unhealthy
}

func (m *mistakes) address(path string, a *corev3.Address) netip.AddrPort {
	s := a.GetSocketAddress()
	if s == nil {
		m.add(path, "no socket_address")
		return netip.AddrPort{}
	}
	if s.GetProtocol() != corev3.SocketAddress_TCP {
		m.add(path+".socket_address.protocol", "%v is not implemented", s.GetProtocol())
	}
	ip, err := netip.ParseAddr(s.GetAddress())
	if err != nil || ip.Zone() != "" {
		m.add(path+".socket_address.address", "%q, want an IP address", s.GetAddress())
	}
	if s.GetPortValue() > math.MaxUint16 {
		m.add(path+".socket_address.port_value", "%d, want at most %d", s.GetPortValue(), math.MaxUint16)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(s.GetPortValue()))
}
