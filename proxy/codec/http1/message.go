package http1

import (
	"bytes"
)

// request is a parsed request head. It implements router.Request; the memory is
// the read buffer's.
type request struct {
	head
	method    span
	target    span // path with query, or "*"
	authority span // of an absolute target, else Host's value
	absolute  bool
	started   bool // the request line is parsed
	isHead    bool
	joined    joins
}

func (r *request) reset() {
	r.head.reset()
	r.method, r.target, r.authority = span{}, span{}, span{}
	r.absolute, r.started, r.isHead = false, false, false
	r.joined.reset()
}

// Method returns the method.
func (r *request) Method() []byte { return r.method.of(r.buf) }

// Path returns path and query.
func (r *request) Path() []byte {
	if r.target.off == r.target.end {
		return rootPath
	}
	return r.target.of(r.buf)
}

// Authority returns the host the request is for.
func (r *request) Authority() []byte { return r.authority.of(r.buf) }

// Header returns the value of a field; several are joined by commas. It is valid
// until the request ends.
func (r *request) Header(name string) ([]byte, bool) { return r.get(name, &r.joined) }

var rootPath = []byte("/")

// parse goes on parsing b, which begins with the request and may have moved. done
// says that the head is complete: size bytes long.
func (r *request) parse(b []byte, maxBytes int) (done bool, err *malformed) {
	r.buf = b
	if !r.started {
		l, ok, err := r.line()
		if err == nil && ok && l.off == l.end && l.off == 0 {
			l, ok, err = r.line() // one empty line before a request is forgiven (RFC 9112, 2.2)
		}
		switch {
		case err != nil:
			return false, err
		case !ok && len(b) >= maxBytes, ok && r.next > maxBytes:
			return false, errTargetLong
		case !ok:
			return false, nil
		}
		if err := r.parseLine(l); err != nil {
			return false, err
		}
		r.started = true
	}
	done, err = r.parseFields()
	if err != nil {
		return false, err
	}
	if (done && r.size > maxBytes) || (!done && len(b) >= maxBytes) {
		return false, errTooLarge
	}
	if !done {
		return false, nil
	}
	return true, r.check()
}

func (r *request) parseLine(l span) *malformed {
	b := l.of(r.buf)
	first := bytes.IndexByte(b, ' ')
	last := bytes.LastIndexByte(b, ' ')
	if first < 0 {
		return errRequestLine
	}
	if first == 0 || !all(b[:first], isToken) {
		return errMethod
	}
	if first == last {
		return errRequestLine // HTTP/0.9, or no target
	}
	version := b[last+1:]
	if len(version) != 8 || string(version[:5]) != "HTTP/" || classes[version[5]]&isDigit == 0 ||
		version[6] != '.' || classes[version[7]]&isDigit == 0 {
		return errRequestLine
	}
	if version[5] != '1' || version[7] > '1' {
		return errVersion
	}
	r.minor = int(version[7] - '0')
	r.method = span{l.off, l.off + int32(first)}
	r.target = span{l.off + int32(first) + 1, l.off + int32(last)}
	r.isHead = string(b[:first]) == "HEAD"
	return r.parseTarget(b[:first], b[first+1:last])
}

// parseTarget accepts origin form, absolute form with http or https, and "*" for
// OPTIONS. CONNECT keeps its authority form; it is refused later.
func (r *request) parseTarget(method, target []byte) *malformed {
	if len(target) == 0 || !all(target, isTarget) {
		return errTarget
	}
	switch {
	case string(method) == "CONNECT":
		if !all(target, isHost) {
			return errTarget
		}
		r.authority, r.absolute = r.target, true
		return nil
	case target[0] == '/':
		return nil
	case len(target) == 1 && target[0] == '*':
		if string(method) != "OPTIONS" {
			return errTarget
		}
		return nil
	}
	scheme := 0
	switch {
	case len(target) > 7 && equalFold(target[:7], "http://"):
		scheme = 7
	case len(target) > 8 && equalFold(target[:8], "https://"):
		scheme = 8
	default:
		return errTarget
	}
	end := scheme
	for end < len(target) && target[end] != '/' && target[end] != '?' {
		end++
	}
	if end == scheme || !all(target[scheme:end], isHost) {
		return errTarget
	}
	if end < len(target) && target[end] == '?' {
		return errTarget // a path is wanted by those behind us
	}
	off := r.target.off
	r.authority, r.absolute = span{off + int32(scheme), off + int32(end)}, true
	r.target.off = off + int32(end)
	return nil
}

func (r *request) check() *malformed {
	switch {
	case r.hosts > 1:
		return errManyHosts
	case r.hosts == 0 && r.minor == 1:
		return errNoHost
	}
	if !r.absolute {
		r.authority = r.host
	}
	return r.settle()
}

// persistent reports whether the client wants to keep the connection.
func (r *request) persistent() bool {
	if r.minor == 0 {
		return r.keepAlive && !r.close
	}
	return !r.close
}

// upgradeWanted reports whether the request asks for an upgrade that is carried,
// websocket, or for one that is not, unknown.
func (r *request) upgradeWanted() (websocket, unknown bool) {
	if !r.upgrade || r.upgradeTo.off == r.upgradeTo.end || r.minor == 0 {
		return false, false
	}
	to := r.upgradeTo.of(r.buf)
	switch {
	case equalFold(to, "websocket"):
		return true, false
	case equalFold(to, "h2c"): // ignored, as any server may
		return false, false
	}
	return false, true
}

// repeatable reports whether RFC 9110 allows to send the request again without
// knowing whether the first one was carried out.
func (r *request) repeatable() bool {
	switch string(r.Method()) {
	case "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// response is a parsed response head in the upstream's read buffer.
type response struct {
	head
	status  int
	reason  span // status code and reason phrase
	started bool
	joined  joins
}

// Status returns the status code.
func (r *response) Status() int { return r.status }

// Header returns the value of a field; several are joined by commas.
func (r *response) Header(name string) ([]byte, bool) { return r.get(name, &r.joined) }

func (r *response) reset() {
	r.head.reset()
	r.status, r.reason, r.started = 0, span{}, false
	r.joined.reset()
}

// parse goes on parsing b, which begins with the response and may have moved.
func (r *response) parse(b []byte, maxBytes int) (done bool, err *malformed) {
	r.buf = b
	if !r.started {
		l, ok, err := r.line()
		if err != nil {
			return false, err
		}
		if !ok {
			if len(b) >= maxBytes {
				return false, errTooLarge
			}
			return false, nil
		}
		if err := r.parseLine(l); err != nil {
			return false, err
		}
		r.started = true
	}
	done, err = r.parseFields()
	if err != nil {
		return false, err
	}
	if (done && r.size > maxBytes) || (!done && len(b) >= maxBytes) {
		return false, errTooLarge
	}
	if !done {
		return false, nil
	}
	return true, r.settle()
}

func (r *response) parseLine(l span) *malformed {
	b := l.of(r.buf)
	// "HTTP/1.x NNN[ reason]"
	if len(b) < 12 || string(b[:7]) != "HTTP/1." || b[7] < '0' || b[7] > '1' || b[8] != ' ' ||
		!all(b[9:12], isDigit) || (len(b) > 12 && b[12] != ' ') || !all(b[12:], isValue) {
		return errStatusLine
	}
	r.minor = int(b[7] - '0')
	r.status = int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
	if r.status < 100 || r.status > 599 {
		return errStatusLine
	}
	r.reason = span{l.off + 9, l.end}
	return nil
}

// persistent reports whether the connection can be used again.
func (r *response) persistent() bool {
	if r.minor == 0 {
		return r.keepAlive && !r.close
	}
	return !r.close
}

// bodyless reports whether a response has no body whatever its fields say.
func (r *response) bodyless(toHead bool) bool {
	return toHead || r.status == 204 || r.status == 304 || r.status < 200
}

// dropLength keeps Content-Length from being passed on.
func (r *response) dropLength() {
	for i := range r.fields {
		if r.fields[i].kind == fieldContentLength {
			r.fields[i].drop = true
		}
	}
}
