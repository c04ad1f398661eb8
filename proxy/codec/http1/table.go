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
	}
	if k == other || !equalFold(name, want) {
		return other
	}
	return k
}
