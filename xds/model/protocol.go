package model

import (
	"fmt"
	"strings"
)

// Protocol is what travels over a port. The zero value is TCP: bytes of which
// nothing is known.
type Protocol uint8

// The protocols of the mesh, in the order of their names in protocolNames.
const (
	TCP Protocol = iota
	HTTP
	HTTP2
	GRPC
	TLS
	Dubbo
	Triple
	Bolt
)

var protocolNames = [...]string{"tcp", "http", "http2", "grpc", "tls", "dubbo", "tri", "bolt"}

// defaultPorts gives a host's service port by protocol, where the registry
// names none. TCP has no default.
var defaultPorts = [...]uint16{HTTP: 80, HTTP2: 80, GRPC: 50051, TLS: 443, Dubbo: 20880, Triple: 50051, Bolt: 12200}

// String returns the lower-case name, as ParseProtocol reads it.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// ParseProtocol reads a name without case. As in Istio, "https" is TLS,
// "http/1.1" is HTTP and an empty name is TCP.
func ParseProtocol(s string) (Protocol, error) {
	switch s = strings.ToLower(s); s {
	case "":
		return TCP, nil
	case "https":
		return TLS, nil
	case "http/1.1", "http1":
		return HTTP, nil
	case "triple":
		return Triple, nil
	}
	for i, name := range protocolNames {
		if name == s {
			return Protocol(i), nil
		}
	}
	return TCP, fmt.Errorf("protocol %q, want one of %s", s, strings.Join(protocolNames[:], ", "))
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Protocol) UnmarshalText(text []byte) error {
	got, err := ParseProtocol(string(text))
	*p = got
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// DefaultPort is the service port of a host whose registry names none; 0 for TCP.
func (p Protocol) DefaultPort() uint16 {
	if int(p) < len(defaultPorts) {
		return defaultPorts[p]
	}
	return 0
}

// HTTPLike reports whether requests of the protocol are routed by HTTP rules
// today. Dubbo, Triple over dubbo2 and Bolt are carried as TCP until their codecs exist.
func (p Protocol) HTTPLike() bool { return p == HTTP || p == HTTP2 || p == GRPC }
