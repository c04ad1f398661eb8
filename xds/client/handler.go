package client

import (
	"fmt"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Named is one resource as received.
type Named struct {
	Name    string
	Version string // the server's; compare for equality only
	Body    []byte // the marshalled message; must not be modified
}

// Change is one response, in the server's order.
type Change struct {
	Type    resource.Type
	Updated []Named // new or changed; the same version may come again
	// Removed names resources that were held and do not exist any more, or that
	// nothing refers to any more.
	Removed []string
	// Missing names resources that were asked for by name, are not held and do not
	// exist. They come as Updated once they do.
	Missing []string
}

// Rejection says why a handler does not take one resource of a Change.
type Rejection struct {
	Name   string // of one of Change.Updated
	Field  string // path within the resource, "filter_chains[0].filters[1]"; may be empty
	Reason string
}

// String is the text that the server gets to see.
func (r Rejection) String() string {
	if r.Field == "" {
		return fmt.Sprintf("%s: %s", r.Name, r.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", r.Name, r.Field, r.Reason)
}

// Handler takes in what the server sends.
type Handler interface {
	// Apply takes in one change and returns what it does not take. Of a resource that
	// it rejects it keeps the version before; everything else of the change is in
	// force when it returns. Apply is called from one goroutine at a time, and the
	// server is not answered before it returns.
	Apply(Change) []Rejection
}

// refusalText is the error_detail of a response some of whose resources were rejected.
func refusalText(rs []Rejection) string {
	lines := make([]string, len(rs))
	for i, r := range rs {
		lines[i] = r.String()
	}
	return strings.Join(lines, "\n")
}
