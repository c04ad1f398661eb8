package http1

// Classes of bytes, as RFC 9110 and 9112 define them.
const (
	isToken  = 1 << iota // of methods and field names
	isValue              // of field values: HTAB, SP, VCHAR, obs-text
	isTarget             // of request targets: VCHAR but for '#'
	isHost               // of Host: reg-name, IP literal, port
	isDigit
)

var classes = makeClasses()

func makeClasses() (t [256]uint8) {
	for c := range t {
		switch {
		case c >= '0' && c <= '9':
			t[c] |= isDigit | isToken | isHost
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			t[c] |= isToken | isHost
		}
		if c == '\t' || (c >= ' ' && c != 0x7f) {
			t[c] |= isValue
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= isTarget
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] |= isToken
	}
	for _, c := range "-._~!$&'()*+,;=%:[]" {
		t[c] |= isHost
	}
	return t
}

// all reports whether every byte of b is of the class.
func all(b []byte, class uint8) bool {
	for _, c := range b {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}

// lower is the lower case of an ASCII letter; other bytes stay.
func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// equalFold compares b with a lower-case ASCII string, without case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c != s[i] && lower(c) != s[i] {
			return false
		}
	}
	return true
}

// trimSpace cuts spaces and tabs off both ends.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// nextListItem cuts the first item off a comma-separated list; items may be empty.
func nextListItem(b []byte) (item, rest []byte) {
	for i, c := range b {
		if c == ',' {
			return trimSpace(b[:i]), b[i+1:]
		}
	}
	return trimSpace(b), nil
}

// malformed is why a message is refused. Values are package constants in effect:
// refusing must not cost more than accepting.
type malformed struct {
	status int // what a client is told
	reason string
}

func (m *malformed) Error() string { return m.reason }

func bad(reason string) *malformed { return &malformed{status: 400, reason: reason} }

var (
	errLineEnd       = bad("line does not end with CRLF")
	errFold          = bad("folded field line")
	errName          = bad("field name is not a token")
	errValue         = bad("control character in a field value")
	errRequestLine   = bad("malformed request line")
	errMethod        = bad("method is not a token")
	errTarget        = bad("malformed request target")
	errHost          = bad("malformed Host")
	errNoHost        = bad("missing Host")
	errManyHosts     = bad("more than one Host")
	errLength        = bad("malformed Content-Length")
	errManyLengths   = bad("more than one Content-Length")
	errLengthCoding  = bad("Content-Length and Transfer-Encoding")
	errCoding        = bad("the final transfer coding is not chunked")
	errCodingVersion = bad("Transfer-Encoding in HTTP/1.0")
	errStatusLine    = bad("malformed status line")
	errChunk         = bad("malformed chunk")
	errTrailer       = bad("field not allowed in a trailer")
	errVersion       = &malformed{505, "HTTP version not supported"}
	errUnknownCoding = &malformed{501, "unknown transfer coding"}
	errTooMany       = &malformed{431, "too many fields"}
	errTooLarge      = &malformed{431, "head is too large"}
	errTargetLong    = &malformed{414, "request target is too long"}
	errHeadTimeout   = &malformed{408, "head did not arrive in time"}
)
