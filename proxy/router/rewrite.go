package router

import (
	"bytes"
	"regexp"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// rewrite changes the path of a request; the zero value leaves it.
type rewrite struct {
	prefix    string // replaces the matched part, if hasPrefix
	hasPrefix bool
	re        *regexp.Regexp // replaces its matches in the path, query left out
	template  []byte         // of re, in Go's syntax
}

// Rewrites reports whether RewritePath changes anything.
func (r *Route) Rewrites() bool { return r.rewrite.hasPrefix || r.rewrite.re != nil }

// RewritePath appends the path, query included, that the upstream sees. It
// allocates for regular expressions only.
func (r *Route) RewritePath(dst, path []byte) []byte {
	bare, _ := splitPath(path)
	rest := path[len(bare):]
	switch {
	case r.rewrite.hasPrefix:
		dst = append(dst, r.rewrite.prefix...)
		dst = append(dst, bare[r.matched(bare):]...)
	case r.rewrite.re != nil:
		dst = r.rewrite.replace(dst, bare)
	default:
		dst = append(dst, bare...)
	}
	return append(dst, rest...)
}

// matched is how many bytes of the path the route's condition named.
func (r *Route) matched(path []byte) int {
	switch r.match.kind {
	case prefixPath, separatedPath:
		return min(len(r.match.path), len(path))
	case anyPath:
		return 0
	}
	return len(path)
}

func (w *rewrite) replace(dst, path []byte) []byte {
	at := 0
	for _, m := range w.re.FindAllSubmatchIndex(path, -1) {
		dst = append(dst, path[at:m[0]]...)
		dst = w.re.Expand(dst, w.template, path, m)
		at = m[1]
	}
	return append(dst, path[at:]...)
}

// AppendLocation appends the Location of the redirect for a request that matched
// r. scheme is the request's, "http" or "https". r.Redirect must not be nil.
func (r *Route) AppendLocation(dst []byte, req Request, scheme string) []byte {
	d := r.Redirect
	host := req.Authority()
	final := scheme
	if d.Scheme != "" {
		final = d.Scheme
	}
	switch {
	case d.Host != "":
		host = nil
	case d.Port != 0:
		host = withoutPort(host)
	case final != scheme:
		host = withoutDefaultPort(host, scheme)
	}
	dst = append(dst, final...)
	dst = append(dst, "://"...)
	dst = append(dst, d.Host...)
	dst = append(dst, host...)
	if d.Port != 0 {
		dst = strconv.AppendUint(append(dst, ':'), uint64(d.Port), 10)
	}
	path := req.Path()
	if i := bytes.IndexByte(path, '#'); i >= 0 {
		path = path[:i]
	}
	bare, _ := splitPath(path)
	rest := path[len(bare):]
	if d.StripQuery {
		rest = nil
	}
	switch {
	case d.Path != "":
		dst = append(dst, d.Path...)
		if bytes.IndexByte([]byte(d.Path), '?') >= 0 {
			return dst // it brings a query of its own
		}
	case r.rewrite.hasPrefix:
		dst = append(dst, r.rewrite.prefix...)
		dst = append(dst, bare[r.matched(bare):]...)
	default:
		dst = append(dst, bare...)
	}
	return append(dst, rest...)
}

// withoutDefaultPort cuts off the port that a scheme implies: after the scheme
// changed it would name the wrong one.
func withoutDefaultPort(host []byte, scheme string) []byte {
	port := ":80"
	if scheme == "https" {
		port = ":443"
	}
	if bytes.HasSuffix(host, []byte(port)) {
		return withoutPort(host)
	}
	return host
}

// hashPolicy is one part of what a request is hashed by.
type hashPolicy struct {
	header   string // lower case; else
	query    string // a parameter's name
	terminal bool   // what follows counts only if this one yielded nothing
}

// Hash combines the route's hash policies over the request as Envoy does; false
// when none of them applied.
func (r *Route) Hash(req Request) (uint64, bool) {
	var sum uint64
	found := false
	for i := range r.hashes {
		p := &r.hashes[i]
		var value []byte
		var ok bool
		if p.header != "" {
			value, ok = header(&input{Request: req}, p.header)
		} else {
			_, query := splitPath(req.Path())
			value, ok = parameter(query, p.query)
		}
		if ok {
			h := xxhash.Sum64(value)
			if found {
				h ^= sum<<1 | sum>>63
			}
			sum, found = h, true
		}
		if found && p.terminal {
			break
		}
	}
	return sum, found
}
