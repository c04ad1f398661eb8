// Package resource is the vocabulary of xDS that control plane and sidecar
// share: type URLs, the names of resources, and a Resource that is encoded once
// and versioned by its content.
//
// A Snapshot is what one scope of nodes gets; a Feed publishes the snapshots of a
// scope to its streams. Resources, tables and snapshots never change once made.
package resource

import "fmt"

// Type is one of the xDS resource types that the mesh serves.
type Type uint8

// The types, in the order in which additions are sent (deletions go in reverse).
const (
	Secret Type = iota
	Cluster
	Endpoints
	Listener
	Route
	NumTypes = 5
)

const urlPrefix = "type.googleapis.com/"

var typeURLs = [NumTypes]string{
	Secret:    urlPrefix + "envoy.extensions.transport_sockets.tls.v3.Secret",
	Cluster:   urlPrefix + "envoy.config.cluster.v3.Cluster",
	Endpoints: urlPrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment",
	Listener:  urlPrefix + "envoy.config.listener.v3.Listener",
	Route:     urlPrefix + "envoy.config.route.v3.RouteConfiguration",
}

var typeNames = [NumTypes]string{"SDS", "CDS", "EDS", "LDS", "RDS"}

// URL is the type URL on the wire.
func (t Type) URL() string { return typeURLs[t] }

// String is the short name, "CDS".
func (t Type) String() string {
	if t < NumTypes {
		return typeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// ParseURL finds the type of a URL.
func ParseURL(url string) (Type, bool) {
	for i, u := range typeURLs {
		if u == url {
			return Type(i), true
		}
	}
	return 0, false
}
