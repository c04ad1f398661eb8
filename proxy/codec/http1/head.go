package http1

import (
	"bytes"
)

// maxFields bounds the fields of a head, as Envoy does.
const maxFields = 100

// span is a stretch of a head; offsets count from the head's first byte.
type span struct{ off, end int32 }

func (s span) of(buf []byte) []byte { return buf[s.off:s.end] }

// field is one field line. line covers it with its CRLF.
type field struct {
	name, value, line span
	kind              kind
	drop              bool // not passed on
}

// head is what requests and responses have in common: the index of a head that
// lies in a read buffer, and what its fields say about the message. It is parsed
// line by line as bytes come.
type head struct {
	buf    []byte // starts at the head's first byte; renewed whenever the buffer moves
	fields []field

	size    int // of the head, once it is complete
	next    int // start of the first line not parsed
	scanned int // no LF before here and after next

	length      int64 // Content-Length; -1: none
	minor       int   // HTTP/1.minor
	chunked     bool
	coding      bool // any Transfer-Encoding
	close       bool // Connection: close
	keepAlive   bool // Connection: keep-alive
	upgrade     bool // Connection: upgrade
	nominated   bool // Connection names fields
	teTrailers  bool
	hosts       int
	hasProto    bool // x-forwarded-proto
	hasID       bool // x-request-id
	hasDate     bool
	expect      bool // Expect: 100-continue
	upgradeTo   span
	host        span
	lastCoding  bool // chunked came last so far
	otherCoding bool
}

func (h *head) reset() {
	fields := h.fields[:0]
	*h = head{fields: fields, length: -1}
}

// line returns the next complete line without its CRLF; ok is false when it is
// not complete yet.
func (h *head) line() (l span, ok bool, err *malformed) {
	from := max(h.next, h.scanned)
	i := bytes.IndexByte(h.buf[from:], '\n')
	if i < 0 {
		h.scanned = len(h.buf)
		return span{}, false, nil
	}
	end := from + i
	if end == h.next || h.buf[end-1] != '\r' {
		return span{}, false, errLineEnd
	}
	l = span{int32(h.next), int32(end - 1)}
	h.next = end + 1
	return l, true, nil
}

// parseFields parses field lines up to the empty line; done says it was found.
func (h *head) parseFields() (done bool, err *malformed) {
	for {
		l, ok, err := h.line()
		if err != nil || !ok {
			return false, err
		}
		if l.off == l.end {
			h.size = h.next
			return true, nil
		}
		if len(h.fields) == maxFields {
			return false, errTooMany
		}
		if err := h.parseField(l); err != nil {
			return false, err
		}
	}
}

func (h *head) parseField(l span) *malformed {
	b := l.of(h.buf)
	if b[0] == ' ' || b[0] == '\t' {
		return errFold
	}
	i := 0
	for i < len(b) && classes[b[i]]&isToken != 0 {
		i++
	}
	if i == 0 || i == len(b) || b[i] != ':' {
		return errName
	}
	start, end := i+1, len(b)
	for start < end && (b[start] == ' ' || b[start] == '\t') {
		start++
	}
	for end > start && (b[end-1] == ' ' || b[end-1] == '\t') {
		end--
	}
	if !all(b[start:end], isValue) {
		return errValue
	}
	h.fields = append(h.fields, field{
		name:  span{l.off, l.off + int32(i)},
		value: span{l.off + int32(start), l.off + int32(end)},
		line:  span{l.off, l.end + 2},
	})
	f := &h.fields[len(h.fields)-1]
	f.kind = kindOf(b[:i])
	if f.kind == other {
		return nil
	}
	return h.note(f, b[start:end])
}

// note takes in a field that matters for the message itself.
func (h *head) note(f *field, value []byte) *malformed {
	switch f.kind {
	case fieldContentLength:
		if h.length >= 0 {
			return errManyLengths
		}
		return h.setLength(value)
	case fieldTransferEncoding:
		f.drop = true
		return h.addCodings(value)
	case fieldConnection:
		f.drop = true
		h.addConnection(value)
	case fieldHost:
		h.hosts++
		h.host = f.value
		if !all(value, isHost) {
			return errHost
		}
	case fieldExpect:
		if equalFold(value, "100-continue") {
			h.expect, f.drop = true, true
		}
	case fieldUpgrade:
		f.drop = true
		h.upgradeTo = f.value
	case fieldTE:
		f.drop = true
		h.teTrailers = h.teTrailers || equalFold(value, "trailers")
	case fieldKeepAlive, fieldProxyConnection, fieldProxyAuthorization, fieldSettings:
		f.drop = true
	case fieldRequestID:
		h.hasID = true
	case fieldForwardedProto:
		h.hasProto = true
	case fieldDate:
		h.hasDate = true
	}
	return nil
}

func (h *head) setLength(value []byte) *malformed {
	// 18 digits fit an int64.
	if len(value) == 0 || len(value) > 18 || !all(value, isDigit) {
		return errLength
	}
	h.length = 0
	for _, c := range value {
		h.length = h.length*10 + int64(c-'0')
	}
	return nil
}

func (h *head) addCodings(value []byte) *malformed {
	h.coding = true
	for value != nil {
		var item []byte
		item, value = nextListItem(value)
		switch {
		case equalFold(item, "chunked"):
			if h.lastCoding || h.chunked {
				return errCoding // applied twice
			}
			h.chunked, h.lastCoding = true, true
		default:
			h.lastCoding, h.otherCoding = false, true
		}
	}
	return nil
}

func (h *head) addConnection(value []byte) {
	for value != nil {
		var item []byte
		item, value = nextListItem(value)
		switch {
		case len(item) == 0:
		case equalFold(item, "close"):
			h.close = true
		case equalFold(item, "keep-alive"):
			h.keepAlive = true
		case equalFold(item, "upgrade"):
			h.upgrade = true
		case equalFold(item, "te"):
		default:
			h.nominated = true
		}
	}
}

// settle checks what only the whole head shows, and drops fields that Connection
// names. Fields that frame or address the message cannot be dropped that way.
func (h *head) settle() *malformed {
	if h.coding {
		switch {
		case h.length >= 0:
			return errLengthCoding
		case h.minor == 0:
			return errCodingVersion
		case !h.lastCoding:
			return errCoding
		case h.otherCoding:
			return errUnknownCoding
		}
	}
	if !h.nominated {
		return nil
	}
	for i := range h.fields {
		if h.fields[i].kind != fieldConnection {
			continue
		}
		for list := h.fields[i].value.of(h.buf); list != nil; {
			var name []byte
			name, list = nextListItem(list)
			h.dropNominated(name)
		}
	}
	return nil
}

func (h *head) dropNominated(name []byte) {
	for i := range h.fields {
		f := &h.fields[i]
		if f.kind != fieldHost && f.kind != fieldContentLength && bytes.EqualFold(f.name.of(h.buf), name) {
			f.drop = true
			// What is not passed on is made anew.
			switch f.kind {
			case fieldRequestID:
				h.hasID = false
			case fieldForwardedProto:
				h.hasProto = false
			case fieldDate:
				h.hasDate = false
			}
		}
	}
}

// joins are the values that get had to join: one for every field that was asked
// for and is there more than once, so that no more than a head is ever copied and
// what get returned stays until the reset.
type joins struct {
	buf []byte
	at  []join
}

type join struct {
	first int // index of the first of the fields
	value span
}

func (j *joins) reset() { j.buf, j.at = j.buf[:0], j.at[:0] }

// find returns the value whose first field is at an index.
func (j *joins) find(first int) ([]byte, bool) {
	for i := range j.at {
		if j.at[i].first == first {
			return j.at[i].value.of(j.buf), true
		}
	}
	return nil, false
}

// get returns the value of a field; several are joined.
func (h *head) get(name string, j *joins) (value []byte, ok bool) {
	first, start := 0, -1 // start: of the value in j.buf, once there is a second one
	for i := range h.fields {
		f := &h.fields[i]
		if !equalFold(f.name.of(h.buf), name) {
			continue
		}
		v := f.value.of(h.buf)
		if !ok {
			value, ok, first = v, true, i
			continue
		}
		if start < 0 {
			if known, found := j.find(first); found {
				return known, true
			}
			start = len(j.buf)
			j.buf = append(j.buf, value...)
		}
		j.buf = append(append(j.buf, ','), v...)
	}
	if start >= 0 {
		l := span{int32(start), int32(len(j.buf))}
		j.at = append(j.at, join{first, l})
		value = l.of(j.buf)
	}
	return value, ok
}

// kind is a field that the codec itself cares about.
type kind uint8

const (
	other kind = iota
	fieldConnection
	fieldContentLength
	fieldTransferEncoding
	fieldHost
	fieldExpect
	fieldUpgrade
	fieldKeepAlive
	fieldProxyConnection
	fieldProxyAuthorization
	fieldTE
	fieldTrailer
	fieldRequestID
	fieldForwardedProto
	fieldSettings // http2-settings
	fieldDate
	fieldUserAgent
	fieldForwardedFor
)

// kindOf classifies a field name.
func kindOf(name []byte) kind {
	want, k := "", other
	switch len(name) {
	case 2:
		want, k = "te", fieldTE
	case 4:
		want, k = "host", fieldHost
		if lower(name[0]) == 'd' {
			want, k = "date", fieldDate
		}
	case 6:
		want, k = "expect", fieldExpect
	case 7:
		want, k = "upgrade", fieldUpgrade
		if lower(name[0]) == 't' {
			want, k = "trailer", fieldTrailer
		}
	case 10:
		switch lower(name[0]) {
		case 'c':
			want, k = "connection", fieldConnection
		case 'k':
			want, k = "keep-alive", fieldKeepAlive
		case 'u':
			want, k = "user-agent", fieldUserAgent
		}
	case 12:
		want, k = "x-request-id", fieldRequestID
	case 14:
		want, k = "content-length", fieldContentLength
		if lower(name[0]) == 'h' {
			want, k = "http2-settings", fieldSettings
		}
	case 15:
		want, k = "x-forwarded-for", fieldForwardedFor
	case 16:
		want, k = "proxy-connection", fieldProxyConnection
	case 17:
		want, k = "transfer-encoding", fieldTransferEncoding
		if lower(name[0]) == 'x' {
			want, k = "x-forwarded-proto", fieldForwardedProto
		}
	case 19:
		want, k = "proxy-authorization", fieldProxyAuthorization
	}
	if k == other || !equalFold(name, want) {
		return other
	}
	return k
}
