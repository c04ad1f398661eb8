package router

import (
	"bytes"
	"regexp"
	"strconv"
)

// input is a request under way through the routes of its virtual host.
type input struct {
	Request
	path, query []byte // of Request.Path
	random      uint64
}

type pathKind uint8

const (
	anyPath       pathKind = iota
	prefixPath             // path starts with it
	exactPath              // path is it
	separatedPath          // path is it, or continues with a slash
	regexPath              // the whole path matches
)

// matcher is the conditions of a route; all must hold. Paths are compared
// without query and fragment.
type matcher struct {
	kind    pathKind
	path    string // lower case if fold
	fold    bool
	re      *regexp.Regexp // anchored at both ends
	headers []headerMatch
	query   []queryMatch
}

func (m *matcher) matches(in *input) bool {
	if !m.matchesPath(in.path) {
		return false
	}
	for i := range m.headers {
		if !m.headers[i].matches(in) {
			return false
		}
	}
	for i := range m.query {
		if !m.query[i].matches(in.query) {
			return false
		}
	}
	return true
}

func (m *matcher) matchesPath(path []byte) bool {
	switch m.kind {
	case prefixPath:
		return hasPrefix(path, m.path, m.fold)
	case exactPath:
		return len(path) == len(m.path) && hasPrefix(path, m.path, m.fold)
	case separatedPath:
		return hasPrefix(path, m.path, m.fold) && (len(path) == len(m.path) || path[len(m.path)] == '/')
	case regexPath:
		return m.re.Match(path)
	}
	return true
}

func hasPrefix(b []byte, prefix string, fold bool) bool {
	return len(b) >= len(prefix) && equal(b[:len(prefix)], prefix, fold)
}

// equal compares as ASCII; want is lower case if fold.
func equal(b []byte, want string, fold bool) bool {
	if !fold {
		return string(b) == want
	}
	if len(b) != len(want) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

type textKind uint8

const (
	exactText textKind = iota
	prefixText
	suffixText
	containsText
	regexText
	wordsText   // one of several
	presentText // there at all
	rangeText   // an integer, from <= n < to
)

// text is a condition on a value.
type text struct {
	kind     textKind
	want     string // lower case if fold
	fold     bool
	re       *regexp.Regexp
	words    []string
	from, to int64
}

func (t *text) matches(b []byte) bool {
	switch t.kind {
	case exactText:
		return equal(b, t.want, t.fold)
	case prefixText:
		return hasPrefix(b, t.want, t.fold)
	case suffixText:
		return len(b) >= len(t.want) && equal(b[len(b)-len(t.want):], t.want, t.fold)
	case containsText:
		return contains(b, t.want, t.fold)
	case regexText:
		return t.re.Match(b)
	case wordsText:
		for _, w := range t.words { //nolint:modernize // slices.Contains would copy b
			if string(b) == w {
				return true
			}
		}
		return false
	case rangeText:
		// The string is not kept: ParseInt allocates in errors only.
		n, err := strconv.ParseInt(string(b), 10, 64)
		return err == nil && t.from <= n && n < t.to
	}
	return true
}

func contains(b []byte, want string, fold bool) bool {
	for i := 0; i+len(want) <= len(b); i++ {
		if equal(b[i:i+len(want)], want, fold) {
			return true
		}
	}
	return false
}

// headerMatch is a condition on a header, as Envoy's HeaderMatcher.
type headerMatch struct {
	name   string // lower case, or ":method", ":path", ":authority"
	value  text
	invert bool
	// emptyIfMissing takes a missing header for an empty one; otherwise it
	// matches nothing, invert or not, but the absence that a present match asks for.
	emptyIfMissing bool
}

func (h *headerMatch) matches(in *input) bool {
	value, ok := header(in, h.name)
	if h.value.kind == presentText {
		return (ok || h.emptyIfMissing) != h.invert
	}
	if !ok && !h.emptyIfMissing {
		return false
	}
	return h.value.matches(value) != h.invert
}

func header(in *input, name string) ([]byte, bool) {
	switch name {
	case ":method":
		return in.Method(), true
	case ":path":
		return in.Path(), true
	case ":authority", "host":
		return in.Authority(), true
	}
	return in.Header(name)
}

// queryMatch is a condition on a parameter of the query, which is compared as it
// was sent, without decoding.
type queryMatch struct {
	name  string
	value text
}

func (q *queryMatch) matches(query []byte) bool {
	value, ok := parameter(query, q.name)
	return ok && q.value.matches(value)
}

// parameter finds the first value of a parameter.
func parameter(query []byte, name string) ([]byte, bool) {
	for len(query) > 0 {
		pair := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		key, value, _ := bytes.Cut(pair, []byte{'='})
		if len(pair) > 0 && string(key) == name {
			return value, true
		}
	}
	return nil, false
}
