// Package bootstrap is the file a sidecar starts from: its schema, defaults,
// checks, and what of it the control plane is told.
//
// Parse is pure; cmd/sidecar reads the file. A Config is a plain value: whoever
// holds it may change it before it is handed to proxy.New, which copies it.
package bootstrap

import (
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Config is sidecar.yaml. Every key may be left out.
type Config struct {
	Workload   Workload         `yaml:"workload"`
	MeshServer []netip.AddrPort `yaml:"meshserver"` // xDS addresses, tried in order; default 127.0.0.1:15010
	// API is MeshServer's Mesh API, where the workload is registered when it has
	// inbound ports, "host:port"; default 127.0.0.1:15080. "off" registers nothing.
	API string `yaml:"api"`
	// Lease is how long the workload stays registered after its sidecar died
	// without a word; default 15 s.
	Lease time.Duration `yaml:"lease"`
	// Inbound are the application's ports that others reach through the sidecar.
	Inbound []Inbound `yaml:"inbound"`
	// Egress are services that the application reaches at a loopback address of
	// their own.
	Egress []Egress `yaml:"egress"`
	// HTTPProxy is the explicit outbound proxy; default 127.0.0.1:15002. The
	// word "off" (the zero value) switches it off.
	HTTPProxy Address `yaml:"httpProxy"`
	// Loopback is what addresses of egress services are taken from; default
	// 127.64.0.0/16. Sidecars that share a host need one each.
	Loopback netip.Prefix `yaml:"loopback"`

	Admin     Address   `yaml:"admin"`     // loopback only; default 127.0.0.1:15000
	Metrics   Address   `yaml:"metrics"`   // default 0.0.0.0:15020
	Readiness Address   `yaml:"readiness"` // default 0.0.0.0:15021
	AccessLog AccessLog `yaml:"accessLog"`
	DataDir   string    `yaml:"dataDir"` // default ./isthmus-data
	// DrainTime bounds how long connections may finish after the sidecar was
	// told to stop; default 30 s.
	DrainTime time.Duration `yaml:"drainTime"`
	Limits    Limits        `yaml:"limits"`
}

// Workload is the application instance that the sidecar stands beside.
type Workload struct {
	Name      string            `yaml:"name"`      // default "<app>-<address>-<first inbound port>"
	Namespace string            `yaml:"namespace"` // default "default"
	App       string            `yaml:"app"`       // default "app"
	Labels    map[string]string `yaml:"labels"`
	Address   netip.Addr        `yaml:"address"` // where others reach it; default 127.0.0.1
	Locality  Locality          `yaml:"locality"`
	Weight    uint32            `yaml:"weight"`  // 0 means model.DefaultWeight
	Cluster   string            `yaml:"cluster"` // CLUSTER_ID; may be empty
}

// Locality says where the workload runs; empty parts are unknown.
type Locality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	SubZone string `yaml:"subzone"`
}

// Inbound is one port of the application.
type Inbound struct {
	App      netip.AddrPort `yaml:"app"`    // where the application listens; required
	Listen   netip.AddrPort `yaml:"listen"` // where the sidecar does; required
	Protocol model.Protocol `yaml:"protocol"`
	// Service is the host that the built-in registry announces for the port;
	// empty when the application registers itself elsewhere.
	Service     string `yaml:"service"`
	ServicePort uint16 `yaml:"servicePort"` // default: the protocol's
}

// Egress is one service that the application calls by address.
type Egress struct {
	Host     string         `yaml:"host"`
	Port     uint16         `yaml:"port"`     // default: the protocol's
	Protocol model.Protocol `yaml:"protocol"` // used for the default port
	// Address overrides the address that the sidecar would allocate.
	Address netip.Addr `yaml:"address"`
}

// AccessLog says whether and how requests are logged.
type AccessLog struct {
	// Path is a file, or /dev/stdout; empty: no log, whatever the control plane
	// says.
	Path   string           `yaml:"path"`
	Format telemetry.Format `yaml:"format"` // text or json; default text
	// All logs every listener; otherwise those for which the control plane
	// asks. Default true.
	All bool `yaml:"all"`
	// BufferBytes bounds the lines that wait to be written; default 4 MiB.
	BufferBytes int `yaml:"bufferBytes"`
}

// Limits bound what callers can make the sidecar hold.
type Limits struct {
	// Connections of callers at once; further ones are closed. Default: four
	// fifths of the files that the process may open, as each may need an
	// upstream connection some time.
	Connections int `yaml:"connections"`
}

// Defaults is the configuration of a sidecar without a file.
func Defaults() Config {
	return Config{
		Workload:   Workload{Namespace: "default", App: "app", Address: netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		MeshServer: []netip.AddrPort{loopback(15010)},
		API:        "127.0.0.1:15080",
		Lease:      15 * time.Second,
		HTTPProxy:  Address{loopback(15002)},
		Loopback:   netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 64, 0, 0}), 16),
		Admin:      Address{loopback(15000)},
		Metrics:    Address{netip.AddrPortFrom(netip.IPv4Unspecified(), 15020)},
		Readiness:  Address{netip.AddrPortFrom(netip.IPv4Unspecified(), 15021)},
		AccessLog:  AccessLog{All: true},
		DataDir:    "isthmus-data",
		DrainTime:  30 * time.Second,
	}
}

func loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

// Address is an address to listen on, or none: "off". The zero value is off.
type Address struct{ netip.AddrPort }

// Off reports that nothing listens.
func (a Address) Off() bool { return !a.IsValid() }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Address) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*a = Address{}
		return nil
	}
	return a.AddrPort.UnmarshalText(text)
}

// MarshalText implements encoding.TextMarshaler.
func (a Address) MarshalText() ([]byte, error) {
	if a.Off() {
		return []byte("off"), nil
	}
	return a.AddrPort.MarshalText()
}
