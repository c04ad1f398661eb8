package model

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"unique"
)

// Labels is an immutable, interned set of key=value pairs. Two Labels are equal
// (==) exactly when they hold the same pairs, and equal sets share their memory:
// 100,000 endpoints usually have a few hundred sets. The zero value is empty.
type Labels struct {
	// encoded is "key\x00value\x00" for each pair, keys ascending.
	encoded unique.Handle[string]
}

// NewLabels interns m. NUL bytes in keys and values are dropped: they separate
// the encoded pairs, and no registry may carry them.
func NewLabels(m map[string]string) Labels {
	if len(m) == 0 {
		return Labels{}
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(strings.ReplaceAll(k, "\x00", ""))
		b.WriteByte(0)
		b.WriteString(strings.ReplaceAll(m[k], "\x00", ""))
		b.WriteByte(0)
	}
	return Labels{unique.Make(b.String())}
}

func (l Labels) text() string {
	if l == (Labels{}) {
		return ""
	}
	return l.encoded.Value()
}

// All yields the pairs with keys ascending.
func (l Labels) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for rest := l.text(); rest != ""; {
			k, after, _ := strings.Cut(rest, "\x00")
			v, next, _ := strings.Cut(after, "\x00")
			if !yield(k, v) {
				return
			}
			rest = next
		}
	}
}

// Get returns the value of key and whether it is there.
func (l Labels) Get(key string) (string, bool) {
	for k, v := range l.All() {
		if k == key {
			return v, true
		}
	}
	return "", false
}

// Contains reports whether l holds every pair of want.
func (l Labels) Contains(want Labels) bool {
	for k, v := range want.All() {
		if got, ok := l.Get(k); !ok || got != v {
			return false
		}
	}
	return true
}

// Map returns a copy as a map; never nil.
func (l Labels) Map() map[string]string { return maps.Collect(l.All()) }

// With returns l with the pairs of over added or replaced.
func (l Labels) With(over Labels) Labels {
	if over == (Labels{}) {
		return l
	}
	m := l.Map()
	maps.Insert(m, over.All())
	return NewLabels(m)
}

// Len is the number of pairs.
func (l Labels) Len() int { return strings.Count(l.text(), "\x00") / 2 }

// Bytes is the size of the keys and values together.
func (l Labels) Bytes() int { return len(l.text()) }

// String renders "a=1,b=2".
func (l Labels) String() string {
	var b strings.Builder
	for k, v := range l.All() {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + v)
	}
	return b.String()
}
