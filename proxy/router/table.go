package router

import (
	"bytes"
	"strings"
)

// Table is the virtual hosts and routes of one RouteConfiguration. Compile makes
// one; the zero Table matches nothing.
type Table struct {
	Name string

	exact      map[string]*virtualHost
	suffixes   []domains // "*.example.com", longest first
	prefixes   []domains // "example.*", longest first
	any        *virtualHost
	ignorePort bool
}

// domains are wildcard domains whose fixed part has one length.
type domains struct {
	length int
	hosts  map[string]*virtualHost
}

type virtualHost struct {
	name   string
	routes []*Route
	index  *index // nil: too few routes to be worth it
}

// maxFolded is how long an authority may be to be lowered without allocating:
// twice what DNS allows, for hosts named after Java interfaces.
const maxFolded = 512

// Match finds the first route of the request's virtual host that matches; nil
// when there is none. random is uniform. It takes no lock and does not allocate
// for authorities up to 512 bytes.
func (t *Table) Match(r Request, random uint64) *Route {
	host := r.Authority()
	if t.ignorePort {
		host = withoutPort(host)
	}
	var buf [maxFolded]byte
	v := t.virtualHost(lower(buf[:0], host))
	if v == nil {
		return nil
	}
	path, query := splitPath(r.Path())
	in := input{Request: r, path: path, query: query, random: random}
	if v.index != nil {
		return v.index.first(v.routes, &in)
	}
	for _, route := range v.routes {
		if route.match.matches(&in) {
			return route
		}
	}
	return nil
}

func (t *Table) virtualHost(host []byte) *virtualHost {
	if v, ok := t.exact[string(host)]; ok {
		return v
	}
	for i := range t.suffixes {
		// A wildcard stands for at least one byte.
		if d := &t.suffixes[i]; len(host) > d.length {
			if v, ok := d.hosts[string(host[len(host)-d.length:])]; ok {
				return v
			}
		}
	}
	for i := range t.prefixes {
		if d := &t.prefixes[i]; len(host) > d.length {
			if v, ok := d.hosts[string(host[:d.length])]; ok {
				return v
			}
		}
	}
	return t.any
}

// lower returns b in lower case: b itself where it is that already, else a copy
// in dst.
func lower(dst, b []byte) []byte {
	for i, c := range b {
		if c < 'A' || c > 'Z' {
			continue
		}
		if len(b) > maxFolded {
			return bytes.ToLower(b)
		}
		dst = append(dst, b...)
		for j := i; j < len(dst); j++ {
			if c := dst[j]; c >= 'A' && c <= 'Z' {
				dst[j] = c + 'a' - 'A'
			}
		}
		return dst
	}
	return b
}

// withoutPort cuts ":<digits>" off, but not the last group of an IPv6 address.
func withoutPort(host []byte) []byte {
	i := bytes.LastIndexByte(host, ':')
	if i < 0 || i == len(host)-1 {
		return host
	}
	for _, c := range host[i+1:] {
		if c < '0' || c > '9' {
			return host
		}
	}
	if bytes.IndexByte(host[:i], ':') >= 0 && host[i-1] != ']' {
		return host // an address without brackets has no port
	}
	return host[:i]
}

// splitPath parts path and query; a fragment belongs to neither.
func splitPath(p []byte) (path, query []byte) {
	if i := bytes.IndexByte(p, '#'); i >= 0 {
		p = p[:i]
	}
	if i := bytes.IndexByte(p, '?'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return p, nil
}

// addDomain reports false when the domain has a virtual host already.
func (t *Table) addDomain(domain string, v *virtualHost) bool {
	domain = strings.ToLower(domain)
	switch {
	case domain == "*":
		if t.any != nil {
			return false
		}
		t.any = v
		return true
	case strings.HasPrefix(domain, "*"):
		return addWildcard(&t.suffixes, domain[1:], v)
	case strings.HasSuffix(domain, "*"):
		return addWildcard(&t.prefixes, domain[:len(domain)-1], v)
	}
	if t.exact[domain] != nil {
		return false
	}
	t.exact[domain] = v
	return true
}

// addWildcard keeps list sorted by length, longest first.
func addWildcard(list *[]domains, fixed string, v *virtualHost) bool {
	i := 0
	for i < len(*list) && (*list)[i].length > len(fixed) {
		i++
	}
	if i == len(*list) || (*list)[i].length != len(fixed) {
		*list = append(*list, domains{})
		copy((*list)[i+1:], (*list)[i:])
		(*list)[i] = domains{len(fixed), map[string]*virtualHost{}}
	}
	if (*list)[i].hosts[fixed] != nil {
		return false
	}
	(*list)[i].hosts[fixed] = v
	return true
}
