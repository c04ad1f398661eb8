package http1

import (
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/router"
)

// applyOps drops the fields that ops removes or replaces. It returns the host that
// ops sets, if any: Host is written by us.
func (h *head) applyOps(ops *router.HeaderOps) (host string) {
	if ops == nil || ops.Empty() {
		return ""
	}
	for _, name := range ops.Remove {
		h.dropNamed(name)
	}
	for i := range ops.Set {
		if name := ops.Set[i].Name; name == "host" || name == ":authority" {
			host = ops.Set[i].Value
		} else {
			h.dropNamed(name)
		}
	}
	return host
}

// dropNamed drops fields by lower-case name. Those that frame the message or
// address it are not a rule's to drop.
func (h *head) dropNamed(name string) {
	for i := range h.fields {
		f := &h.fields[i]
		if f.kind != fieldHost && f.kind != fieldContentLength && equalFold(f.name.of(h.buf), name) {
			f.drop = true
		}
	}
}

// appendFields appends the lines that are passed on, neighbours in one copy.
func (h *head) appendFields(dst []byte) []byte {
	var run span
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case f.drop:
		case f.line.off == run.end && run.end > 0:
			run.end = f.line.end
		default:
			dst = append(dst, run.of(h.buf)...)
			run = f.line
		}
	}
	return append(dst, run.of(h.buf)...)
}

func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

func appendOps(dst []byte, ops *router.HeaderOps) []byte {
	if ops == nil {
		return dst
	}
	for i := range ops.Set {
		if v := &ops.Set[i]; v.Name != "host" && v.Name != ":authority" {
			dst = appendField(dst, v.Name, v.Value)
		}
	}
	for i := range ops.Add {
		dst = appendField(dst, ops.Add[i].Name, ops.Add[i].Value)
	}
	return dst
}

// names reports whether ops decides about a field itself.
func names(ops *router.HeaderOps, name string) bool {
	if ops == nil {
		return false
	}
	if slices.Contains(ops.Remove, name) {
		return true
	}
	for i := range ops.Set {
		if ops.Set[i].Name == name {
			return true
		}
	}
	return false
}

// appendRequest appends the head as the upstream gets it.
func (k *call) appendRequest(dst []byte) []byte {
	r, step := &k.req, k.step
	dst = append(dst, r.Method()...)
	dst = append(dst, ' ')
	if step.Route != nil && step.Route.Rewrites() {
		dst = step.Route.RewritePath(dst, r.Path())
	} else {
		dst = append(dst, r.Path()...)
	}
	dst = append(dst, " HTTP/1.1\r\n"...)
	host := k.host
	if host == "" {
		host = step.HostRewrite
	}
	if host != "" || r.absolute || r.hosts == 0 {
		dst = append(dst, "host: "...)
		if host != "" {
			dst = append(dst, host...)
		} else {
			dst = append(dst, r.Authority()...)
		}
		dst = append(dst, "\r\n"...)
		for i := range r.fields {
			if r.fields[i].kind == fieldHost {
				r.fields[i].drop = true
			}
		}
	}
	dst = r.appendFields(dst)
	if k.reqBody.framing == chunkedBody {
		dst = append(dst, "transfer-encoding: chunked\r\n"...)
	}
	switch {
	case k.websocket:
		dst = append(dst, "connection: upgrade\r\nupgrade: "...)
		dst = append(dst, r.upgradeTo.of(r.buf)...)
		dst = append(dst, "\r\n"...)
	case r.teTrailers:
		dst = append(dst, "te: trailers\r\nconnection: te\r\n"...)
	}
	if !r.hasProto && !names(step.Request, "x-forwarded-proto") {
		dst = append(dst, "x-forwarded-proto: http\r\n"...)
	}
	if step.RequestID && !r.hasID && !names(step.Request, "x-request-id") {
		dst = append(dst, "x-request-id: "...)
		dst = append(dst, k.requestID[:]...)
		dst = append(dst, "\r\n"...)
	}
	dst = appendOps(dst, step.Request)
	return append(dst, "\r\n"...)
}

// newRequestID makes a random UUID, as Envoy does.
func (k *call) newRequestID() {
	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	id := k.requestID[:]
	hex.Encode(id[0:8], b[0:4])
	hex.Encode(id[9:13], b[4:6])
	hex.Encode(id[14:18], b[6:8])
	hex.Encode(id[19:23], b[8:10])
	hex.Encode(id[24:36], b[10:16])
	id[8], id[13], id[18], id[23] = '-', '-', '-', '-'
}

// appendResponse appends the head as the client gets it.
func (k *call) appendResponse(dst []byte) []byte {
	r := &k.resp
	dst = append(dst, "HTTP/1.1 "...)
	dst = append(dst, r.reason.of(r.buf)...)
	dst = append(dst, "\r\n"...)
	dst = r.appendFields(dst)
	switch {
	case r.status == 101:
		dst = append(dst, "connection: upgrade\r\nupgrade: "...)
		dst = append(dst, r.upgradeTo.of(r.buf)...)
		dst = append(dst, "\r\n"...)
	case k.chunkedOut:
		dst = append(dst, "transfer-encoding: chunked\r\n"...)
	}
	if r.status >= 200 {
		dst = k.appendConnection(dst)
		if !r.hasDate {
			dst = append(dst, k.d.codec.date(k.d.c)...)
		}
		dst = appendOps(dst, k.step.Response)
	}
	return append(dst, "\r\n"...)
}

func (k *call) appendConnection(dst []byte) []byte {
	switch {
	case !k.keep:
		return append(dst, "connection: close\r\n"...)
	case k.req.minor == 0:
		return append(dst, "connection: keep-alive\r\n"...)
	}
	return dst
}

// appendReply appends an answer of our own, head and body.
func (k *call) appendReply(dst []byte, r *codec.Reply) []byte {
	dst = appendStatus(dst, r.Status)
	if len(r.Location) > 0 {
		dst = append(dst, "location: "...)
		dst = append(dst, r.Location...)
		dst = append(dst, "\r\n"...)
	}
	if r.ContentType != "" && len(r.Body) > 0 && !names(r.Response, "content-type") {
		dst = appendField(dst, "content-type", r.ContentType)
	}
	if r.Status != 204 && r.Status != 304 {
		dst = append(dst, "content-length: "...)
		dst = strconv.AppendInt(dst, int64(len(r.Body)), 10)
		dst = append(dst, "\r\n"...)
	}
	dst = k.appendConnection(dst)
	dst = append(dst, k.d.codec.date(k.d.c)...)
	dst = appendOps(dst, r.Response)
	dst = append(dst, "\r\n"...)
	if !k.req.isHead && r.Status != 204 && r.Status != 304 {
		dst = append(dst, r.Body...)
	}
	return dst
}

func appendStatus(dst []byte, status int) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, statusText(status)...)
	return append(dst, "\r\n"...)
}
