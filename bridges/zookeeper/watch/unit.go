package watch

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"

	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// key names what is read in one piece: the list of services of a root (name ""),
// or one service in it.
type key struct {
	root int // index in Config.Roots
	name string
}

// unit is one service in one root, or a root's list of services.
type unit struct {
	key
	layout  Layout
	path    string // of the node of that name
	service string // name as its users write it; "" for a root
	host    model.Host

	// What the server promised to tell, and what it told since the last read.
	armed   bool // a watch stands on the list of children
	relist  bool // the list is to be read
	stale   map[string]bool
	touched bool // an event came while a read is under way
	busy    bool // a read is under way
	gone    bool // its root does not list it any more
	read    bool // read, or found unreadable, since the session began

	// cache is all that was read by name, shown what the mesh was told: they
	// differ while a read has failed half-way.
	cache, shown map[string]*node
	known        bool // shown is a complete read
	err          error
}

// newUnit makes the unit of a service from the name of its node. A name that
// cannot be a host is an error.
func newUnit(k key, root Root) (*unit, error) {
	u := &unit{key: k, layout: root.Layout, path: join(root.Path, k.name), service: k.name, relist: true}
	if root.Layout == Dubbo {
		// Dubbo escapes the interface's name: an inner class has %24.
		if plain, err := url.QueryUnescape(k.name); err == nil {
			u.service = plain
		}
	}
	host, err := model.ParseHost(u.service)
	if err != nil {
		return nil, fmt.Errorf("not a service: %w", err)
	}
	u.host = host
	return u, nil
}

func join(path, name string) string {
	if path == "/" {
		return path + name
	}
	return path + "/" + name
}

// reserved are nodes beside the services that are none.
func reserved(root Root, name string) bool {
	if root.Layout == Dubbo {
		return name == "config" || name == "mapping" || name == "metadata"
	}
	return root.Path == "/" && name == "zookeeper"
}

// order says what a reader shall do for a unit. Its maps are not modified while
// it runs.
type order struct {
	unit   *unit
	layout Layout
	root   bool // list the services of a root
	path   string
	watch  bool // no watch stands on the list yet
	relist bool
	cache  map[string]*node
	before map[string]*node // of an earlier session
	stale  map[string]bool
	// service and ports are for decoding.
	service string
	ports   map[string]uint16
}

// begin makes the order for the next read of u; before is what an earlier session
// made of it, if any.
func (u *unit) begin(before map[string]*node, ports map[string]uint16) order {
	o := order{
		unit: u, layout: u.layout, root: u.name == "", path: u.path, watch: !u.armed, relist: u.relist || u.cache == nil,
		cache: u.cache, before: before, stale: u.stale, service: u.service, ports: ports,
	}
	u.busy, u.touched, u.relist, u.stale = true, false, false, nil
	return o
}

// finish takes the watches and the cache of a reading over.
func (u *unit) finish(r reading) {
	u.busy = false
	if r.watched {
		u.armed = !u.touched
	}
	if r.nodes != nil {
		u.cache = r.nodes
	}
	u.err = r.err
	if r.err != nil {
		u.relist = true
		for name := range r.stale {
			u.markStale(name)
		}
	}
}

// childrenChanged notes that the watch on the list fired.
func (u *unit) childrenChanged() { u.armed, u.relist, u.touched = false, true, true }

func (u *unit) markStale(name string) {
	if u.stale == nil {
		u.stale = map[string]bool{}
	}
	u.stale[name] = true
}

// rejected lists what of u was left out, in the order of the names.
func (u *unit) rejected() []model.Rejected {
	var out []model.Rejected
	foreign := 0
	for name, n := range u.shown {
		if n.foreign {
			foreign++
		}
		if n.reject != "" {
			if u.layout == Dubbo {
				name = wire.Public(name) // whoever may look at the mesh sees this
			}
			out = append(out, model.Rejected{Where: where(join(u.path, name)), Reason: n.reject})
		}
	}
	slices.SortFunc(out, func(a, b model.Rejected) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.Reason, b.Reason))
	})
	if foreign > 0 {
		out = append(out, model.Rejected{
			Where: where(u.path), Reason: fmt.Sprintf("%d instances of Dubbo 3's application level: left alone, its interface level is read", foreign),
		})
	}
	if u.err != nil {
		out = append(out, model.Rejected{Where: where(u.path), Reason: "cannot be read, its last known state stays: " + oneLine(u.err)})
	}
	return out
}
