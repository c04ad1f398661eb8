package wire

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Response is a DiscoveryResponse or a DeltaDiscoveryResponse in the making.
type Response struct {
	delta bool
	bufs  mem.BufferSlice
	own   []byte // fields of this response alone; the last buffer
	size  int
}

// NewResponse starts a response of type t with room for n resources.
func NewResponse(t resource.Type, delta bool, n int) *Response {
	r := &Response{delta: delta, bufs: make(mem.BufferSlice, 0, 2*n+1)}
	r.own = protowire.AppendTag(r.own, responseTypeURL, protowire.BytesType)
	r.own = protowire.AppendString(r.own, t.URL())
	return r
}

// Add appends a resource.
func (r *Response) Add(res *Resource) {
	prefix := res.sotwPrefix
	if r.delta {
		prefix = res.deltaPrefix
	}
	p := prefix()
	r.bufs = append(r.bufs, p, res.body)
	r.size += p.Len() + len(res.Body)
}

// Remove says that the resource of that name does not exist (delta only).
func (r *Response) Remove(name string) {
	r.own = protowire.AppendTag(r.own, responseRemoved, protowire.BytesType)
	r.own = protowire.AppendString(r.own, name)
}

// Finish sets the version of the whole (SotW; delta's is for people) and the nonce.
func (r *Response) Finish(version, nonce string) {
	if version != "" {
		r.own = protowire.AppendTag(r.own, responseVersion, protowire.BytesType)
		r.own = protowire.AppendString(r.own, version)
	}
	r.own = protowire.AppendTag(r.own, responseNonce, protowire.BytesType)
	r.own = protowire.AppendString(r.own, nonce)
	r.bufs = append(r.bufs, mem.SliceBuffer(r.own))
	r.size += len(r.own)
}

// Size is the number of bytes so far; after Finish, those on the wire.
func (r *Response) Size() int { return r.size }

// Codec sends a *Response as its buffers and any other message by base.
type Codec struct{ base encoding.CodecV2 }

// NewCodec is gRPC's protobuf codec that also knows Response.
func NewCodec() Codec { return Codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2. The buffers of a Response are not counted:
// its Free and Ref do nothing, the garbage collector owns them.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*Response); ok {
		return r.bufs, nil
	}
	b, err := c.base.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("xds codec: %w", err)
	}
	return b, nil
}

// Unmarshal implements encoding.CodecV2.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error { return c.base.Unmarshal(data, v) }

// Name implements encoding.CodecV2.
func (c Codec) Name() string { return proto.Name }
