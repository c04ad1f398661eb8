// Package fields refuses what the sidecar does not implement: it walks a message
// and reports every field that is set and not listed, with its path.
//
// A Set is read only and may be used by any goroutine. Fields that are set to
// their default are not set in proto3 and pass.
package fields

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Error is one mistake at a field.
type Error struct {
	Path   string // "virtual_hosts[2].routes[0].match.grpc"; empty for the message itself
	Reason string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return e.Path + ": " + e.Reason
}

// Errorf makes an Error.
func Errorf(path, format string, args ...any) error {
	return &Error{path, fmt.Sprintf(format, args...)}
}

// At puts prefix before the paths of err, which may be a join.
func At(prefix string, err error) error {
	if err == nil {
		return nil
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range all.Unwrap() {
			out = append(out, At(prefix, e))
		}
		return errors.Join(out...)
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Join(prefix, e.Path), e.Reason}
	}
	return &Error{prefix, err.Error()}
}

// Join makes a path of two.
func Join(prefix, path string) string {
	switch {
	case prefix == "":
		return path
	case path == "", strings.HasPrefix(path, "["):
		return prefix + path
	}
	return prefix + "." + path
}

// Index makes "name[i]".
func Index(name string, i int) string { return name + "[" + strconv.Itoa(i) + "]" }

// Set lists the fields that are implemented, by message.
type Set struct {
	messages map[protoreflect.FullName]map[protoreflect.Name]bool
}

// Parse reads a table: one message a line, "full.Name: field field ...". A "*"
// allows all fields of the message and of what is below it. Lines may be empty.
// A malformed table is a mistake in the program and panics.
func Parse(table string) Set {
	s := Set{map[protoreflect.FullName]map[protoreflect.Name]bool{}}
	for line := range strings.Lines(table) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		message, list, ok := strings.Cut(line, ":")
		if !ok {
			panic("fields: no colon in " + line)
		}
		name := protoreflect.FullName(strings.TrimSpace(message))
		if s.messages[name] == nil {
			s.messages[name] = map[protoreflect.Name]bool{}
		}
		for field := range strings.FieldsSeq(list) {
			s.messages[name][protoreflect.Name(field)] = true
		}
	}
	return s
}

// maxErrors bounds a report: a resource of a thousand routes with the same
// unknown field says enough with some of them.
const maxErrors = 20

// maxDepth bounds nested Any messages; recursion elsewhere is bounded by protobuf.
const maxDepth = 64

// Check returns an error that joins one *Error per field which is set in m and
// not in s.
func (s Set) Check(m proto.Message) error {
	// Almost always all is well, which is seen faster without paths and order.
	quick := walker{set: s, quick: true}
	quick.message("", m.ProtoReflect(), 0)
	if !quick.failed {
		return nil
	}
	w := walker{set: s}
	w.message("", m.ProtoReflect(), 0)
	return errors.Join(w.errs...)
}

type walker struct {
	set    Set
	quick  bool // only failed is wanted
	failed bool
	errs   []error
}

func (w *walker) refuse(path, reason string) {
	w.failed = true
	switch {
	case w.quick:
	case len(w.errs) < maxErrors:
		w.errs = append(w.errs, &Error{path, reason})
	case len(w.errs) == maxErrors:
		w.errs = append(w.errs, &Error{path, reason + "; more was not looked at"})
	}
}

func (w *walker) message(path string, m protoreflect.Message, depth int) {
	if len(w.errs) > maxErrors || w.quick && w.failed {
		return
	}
	if depth > maxDepth {
		w.refuse(path, "nested too deep")
		return
	}
	desc := m.Descriptor()
	if len(m.GetUnknown()) > 0 {
		w.refuse(path, "has fields that this version does not know")
	}
	if desc.FullName() == "google.protobuf.Any" {
		w.any(path, m, depth)
		return
	}
	if desc.FullName().Parent() == "google.protobuf" {
		return
	}
	known, listed := w.set.messages[desc.FullName()]
	if !listed {
		w.refuse(path, string(desc.FullName())+" is not implemented")
		return
	}
	if known["*"] {
		return
	}
	if w.quick {
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if !known[fd.Name()] {
				w.failed = true
			} else {
				w.field("", fd, v, depth)
			}
			return !w.failed
		})
		return
	}
	// Range has no order of its own; reports must have one.
	var set []protoreflect.FieldDescriptor
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, fd)
		return true
	})
	slices.SortFunc(set, func(a, b protoreflect.FieldDescriptor) int { return a.Index() - b.Index() })
	for _, fd := range set {
		at := Join(path, string(fd.Name()))
		if !known[fd.Name()] {
			w.refuse(at, "not implemented")
			continue
		}
		w.field(at, fd, m.Get(fd), depth)
	}
}

func (w *walker) field(at string, fd protoreflect.FieldDescriptor, v protoreflect.Value, depth int) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil {
			return
		}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			w.message(w.index(at, strconv.Quote(k.String())), v.Message(), depth+1)
			return true
		})
	case fd.Message() == nil:
	case fd.IsList():
		for i := range v.List().Len() {
			w.message(w.index(at, strconv.Itoa(i)), v.List().Get(i).Message(), depth+1)
		}
	default:
		w.message(at, v.Message(), depth+1)
	}
}

func (w *walker) index(at, i string) string {
	if w.quick {
		return ""
	}
	return at + "[" + i + "]"
}

func (w *walker) any(path string, m protoreflect.Message, depth int) {
	packed, ok := m.Interface().(*anypb.Any)
	if !ok {
		w.refuse(path, "is not a readable Any")
		return
	}
	if _, listed := w.set.messages[packed.MessageName()]; !listed {
		w.refuse(path, string(packed.MessageName())+" is not implemented")
		return
	}
	inner, err := packed.UnmarshalNew()
	if err != nil {
		w.refuse(path, err.Error())
		return
	}
	w.message(path, inner.ProtoReflect(), depth+1)
}
