package resource

import (
	"encoding/hex"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
)

// Resource is one named resource, marshalled once when made and shared by every
// scope, stream and response that carries it.
type Resource struct {
	Type Type
	Name string
	// Version is the hash of Body in hex: equal on every replica, and it
	// changes exactly when the content does.
	Version string
	// Body is the deterministically marshalled message, without any wrapper.
	// It must not be modified.
	Body []byte
	// Origins are the rules that shaped the resource ("virtualservice/default/cart"),
	// for reports of what was refused and where a rule is in force. May be empty.
	Origins []string
}

// New marshals m deterministically.
func New(t Type, name string, m proto.Message, origins ...string) (*Resource, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%v %s: %w", t, name, err)
	}
	return &Resource{Type: t, Name: name, Version: Hash(body), Body: body, Origins: origins}, nil
}

// Hash is the version of a body.
func Hash(body []byte) string {
	var sum [8]byte
	h := xxhash.Sum64(body)
	for i := range sum {
		sum[i] = byte(h >> (56 - 8*i))
	}
	return hex.EncodeToString(sum[:])
}
