package http1

// framing is how a body's end is known.
type framing uint8

const (
	noBody framing = iota
	lengthBody
	chunkedBody
	closeBody // ends with the connection
)

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
)

// maxExtension bounds the extensions of one chunk; nobody uses them.
const maxExtension = 1024

// body reads a body piece by piece. The zero body is empty and done.
type body struct {
	framing   framing
	state     chunkState
	digits    int8
	remaining int64 // of the body, or of the current chunk
	extension int
	done      bool
	trailer   head // fields after the last chunk; its buf is set while done
	maxBytes  int
}

func (b *body) begin(f framing, length int64, maxBytes int) {
	b.framing, b.remaining, b.maxBytes = f, length, maxBytes
	if f == chunkedBody {
		b.state, b.digits, b.extension = chunkSize, 0, 0
		b.trailer.reset()
	}
	b.done = f == noBody || (f == lengthBody && length == 0)
}

// next reads p: it returns how many bytes were used and which of these are data.
// With used == 0 it needs more bytes, or is done. A trailer is used whole.
func (b *body) next(p []byte) (used int, data []byte, err *malformed) {
	if b.done || len(p) == 0 {
		return 0, nil, nil
	}
	switch b.framing {
	case closeBody:
		return len(p), p, nil
	case lengthBody:
		n := len(p)
		if int64(n) >= b.remaining {
			n, b.done = int(b.remaining), true
		}
		b.remaining -= int64(n)
		return n, p[:n], nil
	}
	return b.nextChunked(p)
}

func (b *body) nextChunked(p []byte) (used int, data []byte, err *malformed) {
	for used < len(p) {
		if b.state == chunkTrailer {
			n, err := b.readTrailer(p[used:])
			return used + n, nil, err
		}
		if b.state == chunkData {
			n := min(int64(len(p)-used), b.remaining)
			b.remaining -= n
			if b.remaining == 0 {
				b.state = chunkDataCR
			}
			return used + int(n), p[used : used+int(n)], nil
		}
		if err := b.framingByte(p[used]); err != nil {
			return used, nil, err
		}
		used++
	}
	return used, nil, nil
}

// framingByte takes in one byte between two stretches of data.
func (b *body) framingByte(c byte) *malformed {
	switch b.state {
	case chunkSize:
		if d, ok := hexDigit(c); ok {
			// 15 digits fit an int64.
			if b.digits++; b.digits > 15 {
				return errChunk
			}
			b.remaining = b.remaining<<4 | int64(d)
			return nil
		}
		switch {
		case b.digits == 0:
			return errChunk
		case c == ';':
			b.state, b.extension = chunkExtension, 0
		case c == '\r':
			b.state = chunkSizeLF
		default:
			return errChunk
		}
	case chunkExtension:
		switch b.extension++; {
		case c == '\r':
			b.state = chunkSizeLF
		case classes[c]&isValue == 0 || b.extension > maxExtension:
			return errChunk
		}
	case chunkSizeLF:
		if c != '\n' {
			return errChunk
		}
		b.digits = 0
		b.state = chunkData
		if b.remaining == 0 {
			b.state = chunkTrailer
		}
	case chunkDataCR:
		if c != '\r' {
			return errChunk
		}
		b.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return errChunk
		}
		b.state = chunkSize
	}
	return nil
}

// readTrailer reads the trailer section once all of it is in p.
func (b *body) readTrailer(p []byte) (used int, err *malformed) {
	t := &b.trailer
	t.buf = p
	done, err := t.parseFields()
	switch {
	case err != nil:
		return 0, err
	case !done && len(p) >= b.maxBytes:
		return 0, errTooLarge
	case !done:
		return 0, nil
	}
	for i := range t.fields {
		switch t.fields[i].kind {
		case fieldContentLength, fieldTransferEncoding, fieldHost:
			return 0, errTrailer
		case fieldConnection, fieldTrailer, fieldTE, fieldUpgrade, fieldKeepAlive,
			fieldExpect, fieldProxyConnection, fieldProxyAuthorization:
			t.fields[i].drop = true
		}
	}
	b.done = true
	return t.size, nil
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// appendChunk appends data as one chunk.
func appendChunk(dst, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	dst = appendHex(dst, len(data))
	dst = append(dst, '\r', '\n')
	dst = append(dst, data...)
	return append(dst, '\r', '\n')
}

func appendHex(dst []byte, n int) []byte {
	const digits = "0123456789abcdef"
	shift := 0
	for n>>shift >= 16 {
		shift += 4
	}
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, digits[n>>shift&15])
	}
	return dst
}

// appendLastChunk appends the end of a chunked body with its trailer.
func (b *body) appendLastChunk(dst []byte) []byte {
	dst = append(dst, "0\r\n"...)
	for i := range b.trailer.fields {
		if f := &b.trailer.fields[i]; !f.drop {
			dst = append(dst, f.line.of(b.trailer.buf)...)
		}
	}
	return append(dst, '\r', '\n')
}
