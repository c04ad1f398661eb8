package model

import "net/netip"

// Inbound is one port that a sidecar serves for its application without capture:
// others dial Listen, the sidecar dials App.
type Inbound struct {
	App      netip.AddrPort // where the application listens, as its registry knows it or on loopback
	Listen   netip.AddrPort // where the sidecar listens; an unspecified IP means Workload.Address
	Protocol Protocol
	// Service is the host that the built-in registry announces for the port;
	// empty when the application registers itself elsewhere.
	Service     string
	ServicePort uint16 // 0 means Protocol.DefaultPort()
}

// Workload is one running instance of an application, with or without a sidecar.
type Workload struct {
	// Name is unique in its source: "<app>-<ip>-<port>" or a pod's name.
	Name      string
	Namespace string
	App       string
	Address   netip.Addr
	Labels    Labels
	Locality  Locality
	Weight    uint32    // 0 means DefaultWeight
	Inbound   []Inbound // empty: no sidecar, or a captured one
	Health    Health
	// MeshTLS says that the sidecar accepts mutual TLS.
	MeshTLS bool
}
