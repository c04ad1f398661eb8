package http1

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// bufferOf holds b as if it had been read.
func bufferOf(b []byte) (buf conn.Buffer) {
	for len(b) > 0 {
		room := buf.Room()
		n := copy(room, b)
		if n == 0 {
			break // larger than a buffer
		}
		buf.Filled(n)
		b = b[n:]
	}
	return buf
}

// readBody decodes the body in the buffer.
func readBody(t *testing.T, k *call) string {
	t.Helper()
	k.rewindBody(limit)
	var body []byte
	for at := k.req.size; ; {
		used, data, err := k.reqBody.next(k.in.Bytes()[at:])
		if err != nil {
			t.Fatal(err)
		}
		if used == 0 {
			return string(body)
		}
		at += used
		body = append(body, data...)
	}
}

// reencode is what the upstream would get.
func reencode(k *call) []byte {
	k.step = &codec.Step{}
	k.rewindBody(limit)
	out := k.appendRequest(nil)
	out, _ = k.appendBody(out)
	return out
}
