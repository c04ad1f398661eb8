package server

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Of this package this file alone makes the codes with which streams end. A World
// may refuse a node with a code of its own, which errNode keeps.

// errNoNode: the first request of a stream must say who asks.
func errNoNode() error {
	return status.Error(codes.InvalidArgument, "first request carries no node")
}

// errNode: the world does not take this node. Its own gRPC status is kept.
func errNode(id string, err error) error {
	if s, ok := status.FromError(err); ok {
		return status.Errorf(s.Code(), "node %q: %s", id, s.Message())
	}
	return status.Errorf(codes.InvalidArgument, "node %q: %v", id, err)
}

// errNodeSize: a node is kept as long as its stream, and copied into every status.
func errNodeSize(sizeBytes int) error {
	return status.Errorf(codes.InvalidArgument, "node: %d bytes without extensions, want at most %d", sizeBytes, maxNodeBytes)
}

// errNameSize: a name is kept for every stream that asks for it.
func errNameSize(field string, sizeBytes int) error {
	return status.Errorf(codes.InvalidArgument, "%s: a name of %d bytes, want at most %d", field, sizeBytes, maxNameBytes)
}

// errNoType: on the aggregated service every request must name its type.
func errNoType() error {
	return status.Error(codes.InvalidArgument, "request names no type_url; the aggregated service serves several")
}

// errWrongType: a service of one type was asked for another.
func errWrongType(want, got string) error {
	return status.Errorf(codes.InvalidArgument, "type_url %q, this service serves %q alone", got, want)
}

// errTooMany: a client subscribes to more names than a stream may.
func errTooMany(limit int) error {
	return status.Error(codes.ResourceExhausted, fmt.Sprintf("more than %d names subscribed on one stream", limit))
}

// codeName labels the end of a stream in metrics.
func codeName(err error) string { return status.Code(err).String() }
