package server

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file alone makes the codes with which streams end.

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
