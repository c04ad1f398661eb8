// Package persistent holds an immutable map: Set and Delete return a new map
// that shares all but a path of nodes with the old one, so that a view of
// 100,000 endpoints changes in O(log n) and the views before it stay as they were.
//
// A Map is a value and may be read from any goroutine. Keys are strings (host
// and resource names); iteration order is by hash, so callers that need an
// order sort.
package persistent

import (
	"iter"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Map is a persistent hash trie. The zero value is empty.
type Map[V any] struct {
	root *node[V]
	n    int
}

// fanBits is the number of hash bits a level consumes: 16 children keep the
// copied path short (7 levels for 100 million keys) and each copy small.
const fanBits = 4

// node is a branch (bitmap over children) or, when the hash is used up or it
// holds one key, a leaf (entries).
type node[V any] struct {
	bitmap   uint16
	children []*node[V]
	entries  []entry[V]
}

type entry[V any] struct {
	key   string
	hash  uint64
	value V
}

// Len is the number of keys.
func (m Map[V]) Len() int { return m.n }

// Get returns the value of key.
func (m Map[V]) Get(key string) (value V, ok bool) {
	h := xxhash.Sum64String(key)
	n := m.root
	for rest := h; n != nil; rest >>= fanBits {
		if n.entries != nil {
			for i := range n.entries {
				if n.entries[i].key == key {
					return n.entries[i].value, true
				}
			}
			return value, false
		}
		n = n.child(rest)
	}
	return value, false
}

func (n *node[V]) slot(hash uint64) (bit uint16, index int) {
	bit = 1 << (hash & (1<<fanBits - 1))
	return bit, bits.OnesCount16(n.bitmap & (bit - 1))
}

func (n *node[V]) child(hash uint64) *node[V] {
	bit, i := n.slot(hash)
	if n.bitmap&bit == 0 {
		return nil
	}
	return n.children[i]
}

// Set returns m with key set to value.
func (m Map[V]) Set(key string, value V) Map[V] {
	root, added := m.root.set(entry[V]{key, xxhash.Sum64String(key), value}, 0)
	if added {
		m.n++
	}
	m.root = root
	return m
}

func (n *node[V]) set(e entry[V], depth int) (next *node[V], added bool) {
	switch {
	case n == nil:
		return &node[V]{entries: []entry[V]{e}}, true
	case n.entries != nil:
		for i := range n.entries {
			if n.entries[i].key == e.key {
				next = &node[V]{entries: slices.Clone(n.entries)}
				next.entries[i] = e
				return next, false
			}
		}
		if depth*fanBits >= 64 {
			return &node[V]{entries: append(slices.Clip(n.entries), e)}, true
		}
		// A leaf above the last level holds one entry: push it down, then add.
		old := n.entries[0]
		branch := &node[V]{}
		branch = branch.with(old.hash>>(depth*fanBits), &node[V]{entries: []entry[V]{old}})
		return branch.set(e, depth)
	default:
		rest := e.hash >> (depth * fanBits)
		sub, added := n.child(rest).set(e, depth+1)
		return n.with(rest, sub), added
	}
}

// with returns a copy of the branch whose child for hash is sub.
func (n *node[V]) with(hash uint64, sub *node[V]) *node[V] {
	bit, i := n.slot(hash)
	next := &node[V]{bitmap: n.bitmap | bit}
	if n.bitmap&bit != 0 {
		next.children = slices.Clone(n.children)
		next.children[i] = sub
		return next
	}
	next.children = make([]*node[V], len(n.children)+1)
	copy(next.children, n.children[:i])
	next.children[i] = sub
	copy(next.children[i+1:], n.children[i:])
	return next
}

// Delete returns m without key.
func (m Map[V]) Delete(key string) Map[V] {
	root, removed := m.root.remove(key, xxhash.Sum64String(key), 0)
	if removed {
		m.n--
		m.root = root
	}
	return m
}

func (n *node[V]) remove(key string, hash uint64, depth int) (next *node[V], removed bool) {
	if n == nil {
		return nil, false
	}
	if n.entries != nil {
		i := slices.IndexFunc(n.entries, func(e entry[V]) bool { return e.key == key })
		if i < 0 {
			return n, false
		}
		if len(n.entries) == 1 {
			return nil, true
		}
		return &node[V]{entries: slices.Delete(slices.Clone(n.entries), i, i+1)}, true
	}
	rest := hash >> (depth * fanBits)
	sub, removed := n.child(rest).remove(key, hash, depth+1)
	if !removed {
		return n, false
	}
	if sub != nil {
		// A branch over a single leaf is that leaf.
		if len(n.children) == 1 && len(sub.entries) == 1 {
			return sub, true
		}
		return n.with(rest, sub), true
	}
	bit, i := n.slot(rest)
	if len(n.children) == 1 {
		return nil, true
	}
	if len(n.children) == 2 {
		if other := n.children[1-i]; len(other.entries) == 1 {
			return other, true
		}
	}
	next = &node[V]{bitmap: n.bitmap &^ bit, children: slices.Delete(slices.Clone(n.children), i, i+1)}
	return next, true
}

// All yields every key and value, in the order of their hashes.
func (m Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) { m.root.walk(yield) }
}

func (n *node[V]) walk(yield func(string, V) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.entries {
		if !yield(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	for _, c := range n.children {
		if !c.walk(yield) {
			return false
		}
	}
	return true
}
