// Package wire writes discovery responses out of resources that are already
// encoded, and is the gRPC codec that sends them.
//
// xds/server makes a Resource of each resource a scope serves and a Response of
// each answer. A response is a list of buffers: a few bytes of its own, and the
// body of every resource, which all streams share; protobuf fields concatenate, so
// nothing is encoded or copied twice. A Resource may be used from any goroutine, a
// Response by one.
package wire

import (
	"strconv"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Version is a version string folded to 64 bits: the form in which streams
// remember what their client holds. Content hashes fold without loss.
type Version uint64

// The two versions that are not a content's.
const (
	// None: the client is not known to hold anything.
	None Version = 0
	// Absent: the client was told that there is no such resource.
	Absent Version = 1
)

// Fold makes a Version of its string. It never returns None or Absent.
func Fold(version string) Version {
	if len(version) == 16 {
		if v, err := strconv.ParseUint(version, 16, 64); err == nil {
			return Version(max(v, 2))
		}
	}
	return Version(max(xxhash.Sum64String(version), 2))
}

// String is the content hash that was folded, or "" for None and Absent. A version
// that was no content hash is shown as the hash of its text.
func (v Version) String() string {
	if v <= Absent {
		return ""
	}
	s := strconv.FormatUint(uint64(v), 16)
	return "0000000000000000"[len(s):] + s
}

// Resource is one resource and its framing in the two protocols. Make one with
// NewResource.
type Resource struct {
	*resource.Resource
	// Folded is Fold of the resource's version.
	Folded Version

	body        mem.Buffer
	delta, sotw atomic.Pointer[mem.Buffer] // the bytes before body, made on first use
	endpoints   atomic.Pointer[string]     // EndpointsName, made on first use
}

// NewResource prepares r for sending; it encodes nothing yet.
func NewResource(r *resource.Resource) *Resource {
	return &Resource{Resource: r, Folded: Fold(r.Version), body: mem.SliceBuffer(r.Body)}
}

// Field numbers of the discovery messages (envoy/service/discovery/v3/discovery.proto)
// and of google.protobuf.Any.
const (
	responseVersion   = 1
	responseResources = 2
	responseTypeURL   = 4
	responseNonce     = 5
	responseRemoved   = 6 // delta only

	resourceVersion = 1
	resourceBody    = 2
	resourceName    = 3

	anyTypeURL = 1
	anyValue   = 2
)

// anyPrefix is an Any without the bytes of its value, and the size of the whole.
func (r *Resource) anyPrefix() ([]byte, int) {
	var b []byte
	b = protowire.AppendTag(b, anyTypeURL, protowire.BytesType)
	b = protowire.AppendString(b, r.Type.URL())
	b = protowire.AppendTag(b, anyValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(r.Body)))
	return b, len(b) + len(r.Body)
}

// deltaPrefix is the resources field of a DeltaDiscoveryResponse up to the body,
// which therefore comes last in it.
func (r *Resource) deltaPrefix() mem.Buffer {
	if p := r.delta.Load(); p != nil {
		return *p
	}
	anyHead, anySize := r.anyPrefix()
	var inner []byte
	inner = protowire.AppendTag(inner, resourceVersion, protowire.BytesType)
	inner = protowire.AppendString(inner, r.Version)
	inner = protowire.AppendTag(inner, resourceName, protowire.BytesType)
	inner = protowire.AppendString(inner, r.Name)
	inner = protowire.AppendTag(inner, resourceBody, protowire.BytesType)
	inner = protowire.AppendVarint(inner, uint64(anySize))
	inner = append(inner, anyHead...)
	return publish(&r.delta, inner, len(inner)+len(r.Body))
}

// sotwPrefix is the resources field of a DiscoveryResponse up to the body.
func (r *Resource) sotwPrefix() mem.Buffer {
	if p := r.sotw.Load(); p != nil {
		return *p
	}
	anyHead, anySize := r.anyPrefix()
	return publish(&r.sotw, anyHead, anySize)
}

// publish stores inner behind the tag and the size of a resources field. Two
// goroutines may do so at once: they store the same bytes.
func publish(to *atomic.Pointer[mem.Buffer], inner []byte, size int) mem.Buffer {
	b := make([]byte, 0, len(inner)+1+protowire.SizeVarint(uint64(size)))
	b = protowire.AppendTag(b, responseResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	var buf mem.Buffer = mem.SliceBuffer(append(b, inner...))
	to.Store(&buf)
	return buf
}

// EndpointsName is the name of the load assignment that a cluster of type EDS asks
// for, and "" for every other resource.
func (r *Resource) EndpointsName() string {
	if p := r.endpoints.Load(); p != nil {
		return *p
	}
	var name string
	var c clusterv3.Cluster
	if r.Type == resource.Cluster && proto.Unmarshal(r.Body, &c) == nil && c.GetType() == clusterv3.Cluster_EDS {
		name = r.Name
		if s := c.GetEdsClusterConfig().GetServiceName(); s != "" {
			name = s
		}
	}
	r.endpoints.Store(&name)
	return name
}
