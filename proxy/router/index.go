package router

// indexFrom is the number of routes from which an index pays.
const indexFrom = 8

// maxLengths bounds how many lengths of prefixes an index tells apart; routes
// with further ones are always looked at.
const maxLengths = 12

// index narrows the routes of a virtual host to those whose path may match. It
// is a filter only: candidates come in their order, and each is matched in full,
// so that the first match stays the first.
type index struct {
	exact    map[string][]int32
	prefixes []prefixes // shortest first
	always   []int32
}

type prefixes struct {
	length int
	routes map[string][]int32
}

func newIndex(routes []*Route) *index {
	x := &index{exact: map[string][]int32{}}
	for i, route := range routes {
		m := &route.match
		switch {
		case m.fold:
			x.always = append(x.always, int32(i))
		case m.kind == exactPath:
			x.exact[m.path] = append(x.exact[m.path], int32(i))
		case m.kind == prefixPath && m.path != "/" && x.addPrefix(m.path, int32(i)):
		case m.kind == separatedPath && x.addPrefix(m.path, int32(i)):
		default:
			x.always = append(x.always, int32(i))
		}
	}
	return x
}

func (x *index) addPrefix(path string, i int32) bool {
	for _, p := range x.prefixes {
		if p.length == len(path) {
			p.routes[path] = append(p.routes[path], i)
			return true
		}
	}
	if len(x.prefixes) == maxLengths || path == "" {
		return false
	}
	x.prefixes = append(x.prefixes, prefixes{len(path), map[string][]int32{path: {i}}})
	return true
}

// first is the first of routes that matches.
func (x *index) first(routes []*Route, in *input) *Route {
	var lists [maxLengths + 2][]int32
	n := 0
	if l := x.exact[string(in.path)]; len(l) > 0 {
		lists[n] = l
		n++
	}
	for i := range x.prefixes {
		if p := &x.prefixes[i]; len(in.path) >= p.length {
			if l := p.routes[string(in.path[:p.length])]; len(l) > 0 {
				lists[n] = l
				n++
			}
		}
	}
	if len(x.always) > 0 {
		lists[n] = x.always
		n++
	}
	for n > 0 {
		least := 0
		for i := 1; i < n; i++ {
			if lists[i][0] < lists[least][0] {
				least = i
			}
		}
		route := routes[lists[least][0]]
		if route.match.matches(in) {
			return route
		}
		if lists[least] = lists[least][1:]; len(lists[least]) == 0 {
			n--
			lists[least] = lists[n]
		}
	}
	return nil
}
