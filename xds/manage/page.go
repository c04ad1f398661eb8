package manage

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// Sizes of a page.
const (
	defaultPage = 200
	maxPage     = 1000
)

// maxPageBytes bounds a page of rules, in bytes of their text: it is cut shorter
// when rules are large.
const maxPageBytes = 8 << 20

// fitting returns how many of the first items come to at most limit bytes; at
// least one, or a page would lead nowhere.
func fitting[T any](items []T, limit int, size func(T) int) int {
	total := 0
	for i, item := range items {
		if total += size(item); total > limit && i > 0 {
			return i
		}
	}
	return len(items)
}

// page cuts one page out of all, which ascend by key and have each key once: what
// comes after token.
func page[T any](all []T, key func(T) string, size uint32, token string) (items []T, next string, err error) {
	if size > maxPage {
		return nil, "", badRequest("page_size: %d, want at most %d", size, maxPage)
	}
	if size == 0 {
		size = defaultPage
	}
	from := 0
	if token != "" {
		i, found := slices.BinarySearchFunc(all, token, func(item T, token string) int { return cmp.Compare(key(item), token) })
		if found {
			i++
		}
		from = i // the item may be gone: go on with the one after it
	}
	rest := all[from:]
	if len(rest) <= int(size) {
		return rest, "", nil
	}
	return rest[:size], key(rest[size-1]), nil
}

// stamp is nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// splitKey returns kind, namespace and name of a key that rules made.
func splitKey(k rules.Key) [3]string {
	var parts [3]string
	copy(parts[:], strings.SplitN(string(k), "/", 3))
	return parts
}

func contains(text, part string) bool {
	return part == "" || strings.Contains(strings.ToLower(text), strings.ToLower(part))
}
