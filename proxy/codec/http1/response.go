package http1

// response is a parsed response head in the upstream's read buffer.
type response struct {
	head
	status  int
	reason  span // status code and reason phrase
	started bool
	scratch []byte
}

// Status returns the status code.
func (r *response) Status() int { return r.status }

// Header returns the value of a field; several are joined by commas.
func (r *response) Header(name string) ([]byte, bool) { return r.get(name, &r.scratch) }

func (r *response) reset() {
	h := r.head
	*r = response{scratch: r.scratch[:0]}
	h.reset()
	r.head = h
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
