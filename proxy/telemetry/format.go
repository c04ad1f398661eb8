package telemetry

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// clockCache keeps the text of the last second, which most lines share.
type clockCache struct {
	second int64
	text   [20]byte // "2006-01-02T15:04:05."
	valid  bool
}

// append appends t in UTC with milliseconds, as Envoy's START_TIME.
func (c *clockCache) append(dst []byte, t time.Time) []byte {
	if second := t.Unix(); !c.valid || second != c.second {
		var buf [32]byte
		copy(c.text[:], t.UTC().AppendFormat(buf[:0], "2006-01-02T15:04:05."))
		c.second, c.valid = second, true
	}
	ms := t.Nanosecond() / int(time.Millisecond)
	dst = append(dst, c.text[:]...)
	return append(dst, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// appendText appends e in Envoy's default format with the fields that Istio adds
// behind it.
func appendText(dst []byte, clock *clockCache, e *Entry) []byte {
	dst = clock.append(append(dst, '['), e.Start)
	dst = append(dst, `] "`...)
	dst = appendWord(dst, e.Method)
	dst = appendWord(append(dst, ' '), e.Path)
	dst = appendName(append(dst, ' '), e.DownstreamProtocol)
	dst = strconv.AppendInt(append(dst, `" `...), int64(e.Status), 10)
	dst = e.Flags.Append(append(dst, ' '))
	dst = strconv.AppendInt(append(dst, ' '), e.RequestBytes, 10)
	dst = strconv.AppendInt(append(dst, ' '), e.ResponseBytes, 10)
	dst = strconv.AppendInt(append(dst, ' '), e.Duration.Milliseconds(), 10)
	dst = append(dst, ' ')
	if e.Attempts > 0 && e.Status != 0 {
		dst = strconv.AppendInt(dst, e.Upstream.Milliseconds(), 10)
	} else {
		dst = append(dst, '-')
	}
	dst = appendWord(append(dst, ` "`...), e.ForwardedFor)
	dst = appendWord(append(dst, `" "`...), e.UserAgent)
	dst = appendWord(append(dst, `" "`...), e.RequestID)
	dst = appendWord(append(dst, `" "`...), e.Authority)
	dst = appendAddr(append(dst, `" "`...), e.UpstreamHost)
	dst = appendName(append(dst, `" `...), e.Cluster)
	dst = appendAddr(append(dst, ' '), e.UpstreamLocal)
	dst = appendAddr(append(dst, ' '), e.DownstreamLocal)
	dst = appendAddr(append(dst, ' '), e.DownstreamRemote)
	dst = appendName(append(dst, ' '), e.Route)
	return append(dst, '\n')
}

// appendWord appends what a caller sent. Quotes, backslashes and what does not
// print are escaped, so that no caller can forge a line or a field.
func appendWord(dst, b []byte) []byte {
	if len(b) == 0 {
		return append(dst, '-')
	}
	for len(b) > 0 {
		n := plain(b)
		if dst = append(dst, b[:n]...); n == len(b) {
			break
		}
		switch c := b[n]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= utf8.RuneSelf:
			dst = append(dst, c)
		default:
			dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
		b = b[n+1:]
	}
	return dst
}

// plain is how many bytes b starts with that no format escapes.
func plain[T string | []byte](b T) int {
	for i := 0; i < len(b); i++ {
		if c := b[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return i
		}
	}
	return len(b)
}

func appendName(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, '-')
	}
	return append(dst, s...)
}

func appendAddr(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(dst, '-')
	}
	return a.AppendTo(dst)
}

const hexDigits = "0123456789abcdef"

// jsonLine writes one object; fields without a value are left out.
type jsonLine struct{ dst []byte }

func (j *jsonLine) key(name string) {
	if j.dst[len(j.dst)-1] != '{' {
		j.dst = append(j.dst, ',')
	}
	j.dst = append(append(append(j.dst, '"'), name...), `":`...)
}

func (j *jsonLine) text(name string, v []byte) {
	if len(v) > 0 {
		j.key(name)
		j.dst = append(appendJSON(append(j.dst, '"'), v), '"')
	}
}

func (j *jsonLine) name(name, v string) {
	if v != "" {
		j.key(name)
		j.dst = append(appendJSON(append(j.dst, '"'), v), '"')
	}
}

func (j *jsonLine) number(name string, v int64) {
	j.key(name)
	j.dst = strconv.AppendInt(j.dst, v, 10)
}

// millis writes milliseconds with up to three decimals.
func (j *jsonLine) millis(name string, d time.Duration) {
	j.key(name)
	us := max(0, d.Microseconds())
	j.dst = strconv.AppendInt(j.dst, us/1000, 10)
	if us %= 1000; us != 0 {
		j.dst = append(j.dst, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
	}
}

func (j *jsonLine) addr(name string, a netip.AddrPort) {
	if a.IsValid() {
		j.key(name)
		j.dst = append(a.AppendTo(append(j.dst, '"')), '"')
	}
}

func (j *jsonLine) boolean(name string, v bool) {
	j.key(name)
	j.dst = strconv.AppendBool(j.dst, v)
}

// appendJSON appends b as it stands in a JSON string; what is no UTF-8 becomes
// U+FFFD.
func appendJSON[T string | []byte](dst []byte, b T) []byte {
	for len(b) > 0 {
		n := plain(b)
		if dst = append(dst, b[:n]...); n == len(b) {
			break
		}
		b = b[n:]
		switch c := b[0]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			b = b[1:]
		case c < utf8.RuneSelf:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			b = b[1:]
		default:
			size := runeSize(b)
			if size == 1 {
				dst = append(dst, "\\ufffd"...)
			} else {
				dst = append(dst, b[:size]...)
			}
			b = b[size:]
		}
	}
	return dst
}

// runeSize is the length of the rune that b starts with; 1 for a byte of none.
func runeSize[T string | []byte](b T) int {
	var first [utf8.UTFMax]byte
	_, size := utf8.DecodeRune(first[:copy(first[:], b)])
	return size
}

// appendObject appends e as a JSON object.
func appendObject(dst []byte, clock *clockCache, hostName string, e *Entry) []byte {
	j := jsonLine{append(dst, '{')}
	j.key("start_time")
	j.dst = append(clock.append(append(j.dst, '"'), e.Start), '"')
	j.name("host.name", hostName)
	j.name("source.app", e.SourceApp)
	j.name("target.app", e.TargetApp)
	j.name("rpc.service", e.RPCService)
	j.name("rpc.method", e.RPCMethod)
	j.addr("downstream.address", e.DownstreamRemote)
	j.addr("downstream.local_address", e.DownstreamLocal)
	j.addr("upstream.address", e.UpstreamHost)
	j.addr("upstream.local_address", e.UpstreamLocal)
	j.name("downstream.protocol", e.DownstreamProtocol)
	j.name("upstream.protocol", e.UpstreamProtocol)
	j.text("http.method", e.Method)
	j.text("http.url", e.Path)
	j.text("http.host", e.Authority)
	j.text("user_agent", e.UserAgent)
	j.text("x_forwarded_for", e.ForwardedFor)
	j.text("request_id", e.RequestID)
	if e.Status != 0 {
		j.number("http.status", int64(e.Status))
	}
	j.key("response_flags")
	j.dst = append(e.Flags.Append(append(j.dst, '"')), '"')
	j.number("request.size", e.RequestBytes)
	j.number("response.size", e.ResponseBytes)
	j.millis("duration", e.Duration)
	j.millis("mosn.process.duration", e.Process)
	j.millis("mosn.process.request.duration", e.ProcessRequest)
	j.millis("mosn.process.response.duration", e.ProcessResponse)
	j.boolean("mosn.process.fail", e.Failed)
	j.number("attempts", int64(e.Attempts))
	j.name("route", e.Route)
	j.name("cluster", e.Cluster)
	return append(j.dst, '}', '\n')
}
