package model

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Port is one port of a service: the number that callers use, which need not be
// the number an endpoint listens on.
type Port struct {
	Number   uint16
	Protocol Protocol
	Name     string // as the user or registry named it; may be empty
}

// Locality says where an endpoint runs. Empty fields are unknown.
type Locality struct{ Region, Zone, SubZone string }

// String renders "region/zone/subzone" without trailing empty parts.
func (l Locality) String() string {
	return strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.SubZone, "/")
}

// Health is what the owning registry says of an endpoint.
type Health uint8

// Health values, from best to worst. The zero value is Healthy: most registries
// list only what is up.
const (
	Healthy Health = iota
	Draining
	Unhealthy
)

var healthNames = [...]string{"healthy", "draining", "unhealthy"}

// String returns the lower-case name.
func (h Health) String() string { return healthNames[h] }

// MarshalText implements encoding.TextMarshaler.
func (h Health) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; an unknown name is Unhealthy
// and no error: a snapshot of a newer version must stay readable.
func (h *Health) UnmarshalText(text []byte) error {
	if i := slices.Index(healthNames[:], string(text)); i >= 0 {
		*h = Health(i)
	} else {
		*h = Unhealthy
	}
	return nil
}

// DefaultWeight is the weight of an endpoint whose registry states none, so that
// registries whose weights start at 100 (Dubbo) and at 1 (Consul) can be mixed.
const DefaultWeight = 100

// Endpoint is one address of a service. Its identity within a host is Address.
type Endpoint struct {
	// Address is where callers connect. After the catalog's join it is the
	// inbound listener of the workload's sidecar; what the registry said is
	// then in Registered.
	Address netip.AddrPort
	// Registered is the address in the registry when Address was rewritten by
	// the join; else the zero value.
	Registered netip.AddrPort
	// Port is the service port it serves (Port.Number).
	Port uint16
	// Weight is relative to the other endpoints of the host; 0 means
	// DefaultWeight when a source reports it, and takes no traffic is said
	// by Health.
	Weight   uint32
	Health   Health
	Labels   Labels
	Locality Locality
	// Workload names the workload whose sidecar serves the endpoint; empty
	// when it has none. Set by the catalog only.
	Workload string
	// MeshTLS says that the workload's sidecar accepts mutual TLS. Set by the
	// catalog only.
	MeshTLS bool
	// Registries are the sources that report the endpoint, ascending. Set by
	// the catalog only.
	Registries []string
	// Changed is when its source last saw it change; the newest wins among
	// sources of equal priority. Zero is oldest.
	Changed time.Time
}

// Service is a host with its ports and endpoints: of one source when inside a
// Fragment, merged over all sources when inside a catalog view.
type Service struct {
	Host      Host
	Name      string // as its registry writes it, case kept
	Namespace string // "default" when the registry has none
	Ports     []Port // ascending by number
	// Addresses are virtual IPs by which captured callers know the service.
	Addresses []netip.Prefix
	// Endpoints ascend by address, each address once a port.
	Endpoints []Endpoint
	// Registries are the sources that hold the host, ascending. Set by the
	// catalog only.
	Registries []string
}

// Port returns the port with that number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}
