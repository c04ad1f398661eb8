package snapshot

import (
	"errors"
	"strings"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// Resource is one resource as it came.
type Resource struct {
	Name    string
	Version string
	Body    []byte // the marshalled message; kept, must not be modified
}

// Change is what one response brings for a type. Removed names those that the
// control plane deleted, or says it does not have.
type Change struct {
	Type    resource.Type
	Updated []Resource
	Removed []string
}

// Rejection is a resource that was not accepted, and why: one reason a mistake.
type Rejection struct {
	Type    resource.Type
	Name    string
	Version string
	Reasons []fields.Error
}

// Error is a sentence with all reasons.
func (r *Rejection) Error() string {
	return r.Type.String() + " " + r.Name + ": " + r.text()
}

func (r *Rejection) text() string {
	parts := make([]string, len(r.Reasons))
	for i := range r.Reasons {
		parts[i] = r.Reasons[i].Error()
	}
	return strings.Join(parts, "; ")
}

func reject(t resource.Type, r Resource, err error) *Rejection {
	out := &Rejection{Type: t, Name: r.Name, Version: r.Version}
	for _, e := range flatten(err) {
		if at, ok := errors.AsType[*fields.Error](e); ok {
			out.Reasons = append(out.Reasons, *at)
		} else {
			out.Reasons = append(out.Reasons, fields.Error{Reason: e.Error()})
		}
	}
	return out
}

func flatten(err error) []error {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range all.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// mistakes collects errors of one resource.
type mistakes struct{ errs []error }

func (m *mistakes) add(path, format string, args ...any) {
	m.errs = append(m.errs, fields.Errorf(path, format, args...))
}

func (m *mistakes) err() error { return errors.Join(m.errs...) }
