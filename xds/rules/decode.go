package rules

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// reader decodes one document. It walks YAML and message together, so that every
// mistake is found in one pass and keeps its line.
type reader struct {
	*parser
	offset int            // added to the lines of the document
	key    Key            // empty until kind and name are read
	kind   Kind           // set before message is called
	lines  map[string]int // line of each path that was present, for later checks
	nodes  int            // visited so far
	unread []string       // paths that could not be read
}

// place is where the walk is: the path as shown ("spec.http[0].timeout") and the
// path in the table of fields ("http[].timeout").
type place struct{ path, field string }

func (p place) child(name string) place {
	if p.field == "" {
		return place{p.path + "." + name, name}
	}
	return place{p.path + "." + name, p.field + "." + name}
}

func (p place) index(i int) place {
	return place{fmt.Sprintf("%s[%d]", p.path, i), p.field + "[]"}
}

func (p place) entry(key string) place {
	return place{fmt.Sprintf("%s[%s]", p.path, key), p.field + "{}"}
}

func (d *reader) line(n *yaml.Node) int { return n.Line + d.offset }

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// resolve follows aliases and counts the visit, which bounds what nested aliases
// can expand to. It returns nil when the document is too large, and when more
// mistakes were found than are reported.
func (d *reader) resolve(n *yaml.Node, path string) *yaml.Node {
	if d.full() {
		return nil
	}
	for hops := 0; n.Kind == yaml.AliasNode; hops++ {
		if n.Alias == nil || hops > maxDepth {
			d.fail(n, path, "alias that leads nowhere")
			return nil
		}
		n = n.Alias
	}
	if d.nodes++; d.nodes == maxNodes {
		d.fail(n, path, fmt.Sprintf("more than %d values in one document", maxNodes))
	}
	if d.nodes >= maxNodes {
		return nil
	}
	if _, known := d.lines[path]; !known {
		d.lines[path] = d.line(n)
	}
	return n
}

// mapping returns the fields of a mapping, or nil after a report. Keys that appear
// twice are reported.
func (d *reader) mapping(n *yaml.Node, path string) map[string]*yaml.Node {
	if n = d.resolve(n, path); n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, describe(n)+", want a mapping (key: value)")
		return nil
	}
	fields := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			d.fail(key, path, "a key that is no plain text")
			continue
		}
		if len(key.Value) > maxKeyBytes {
			d.fail(key, path, fmt.Sprintf("a key of %d bytes, want at most %d", len(key.Value), maxKeyBytes))
			continue
		}
		if _, twice := fields[key.Value]; twice {
			d.fail(key, join(path, key.Value), "is given twice")
			continue
		}
		fields[key.Value] = value
		d.lines[join(path, key.Value)] = d.line(key)
	}
	return fields
}

// inOrder yields fields as they stand in the file, so that the same mistakes are
// found by every reading.
func inOrder(fields map[string]*yaml.Node) iter.Seq2[string, *yaml.Node] {
	keys := slices.SortedFunc(maps.Keys(fields), func(a, b string) int {
		return cmp.Or(cmp.Compare(fields[a].Line, fields[b].Line), cmp.Compare(fields[a].Column, fields[b].Column), cmp.Compare(a, b))
	})
	return func(yield func(string, *yaml.Node) bool) {
		for _, key := range keys {
			if !yield(key, fields[key]) {
				return
			}
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// describe names a node in a mistake, without letting it fill the screen.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	const shown = 60
	s := n.Value
	if len(s) > shown {
		s = strings.ToValidUTF8(s[:shown], "") + "..."
	}
	if n.Tag == "!!str" {
		return strconv.Quote(s)
	}
	return s
}

func (d *reader) string(n *yaml.Node, path string) (string, bool) {
	if n = d.resolve(n, path); n == nil {
		return "", false
	}
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		hint := ""
		if n.Kind == yaml.ScalarNode {
			hint = " (quote it)"
		}
		d.fail(n, path, describe(n)+", want text"+hint)
		return "", false
	}
	return n.Value, true
}

// message fills m from a mapping.
func (d *reader) message(n *yaml.Node, m protoreflect.Message, at place, depth int) {
	if depth > maxDepth {
		d.fail(n, at.path, fmt.Sprintf("nested deeper than %d", maxDepth))
		return
	}
	if d.wellKnown(n, m, at) {
		return
	}
	for key, value := range inOrder(d.mapping(n, at.path)) {
		fd := m.Descriptor().Fields().ByJSONName(key)
		if fd == nil {
			fd = m.Descriptor().Fields().ByTextName(key)
		}
		if fd == nil {
			d.fail(value, join(at.path, key), "no such field")
			continue
		}
		child := at.child(fd.JSONName())
		if isNull(value) {
			continue // the same as leaving it out
		}
		if known := d.lines[join(at.path, key)]; key != fd.JSONName() {
			d.lines[child.path] = known
		}
		if m.Has(fd) {
			d.fail(value, child.path, "is given twice, as "+fd.JSONName()+" and as "+string(fd.Name()))
			continue
		}
		if f := fieldAt(d.kind, child.field); f.State == Refused {
			d.fail(value, child.path, "is not enforced yet, so it is refused")
			continue
		}
		if one := fd.ContainingOneof(); one != nil && !one.IsSynthetic() {
			if other := m.WhichOneof(one); other != nil {
				d.fail(value, child.path, "excludes "+other.JSONName())
				continue
			}
		}
		d.field(value, m, fd, child, depth)
	}
}

func (d *reader) field(n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, at place, depth int) {
	switch {
	case fd.IsMap():
		entries := m.Mutable(fd).Map()
		for key, value := range inOrder(d.mapping(n, at.path)) {
			item := at.entry(key)
			if line, ok := d.lines[join(at.path, key)]; ok {
				d.lines[item.path] = line
			}
			v := entries.NewValue()
			if fd.MapValue().Message() != nil {
				if !isNull(value) {
					d.message(value, v.Message(), item, depth+1)
				}
			} else if got, ok := d.scalar(value, fd.MapValue(), item); ok {
				v = got
			} else {
				continue
			}
			entries.Set(protoreflect.ValueOfString(key).MapKey(), v)
		}
	case fd.IsList():
		if n = d.resolve(n, at.path); n == nil {
			return
		}
		if n.Kind != yaml.SequenceNode {
			d.fail(n, at.path, describe(n)+", want a list (- item)")
			return
		}
		list := m.Mutable(fd).List()
		for i, value := range n.Content {
			item := at.index(i)
			if fd.Message() != nil {
				v := list.NewElement()
				d.message(value, v.Message(), item, depth+1)
				list.Append(v)
			} else if v, ok := d.scalar(value, fd, item); ok {
				list.Append(v)
			}
		}
	case fd.Message() != nil:
		d.message(n, m.Mutable(fd).Message(), at, depth+1)
	default:
		if v, ok := d.scalar(n, fd, at); ok {
			m.Set(fd, v)
		}
	}
}

// wellKnown reads durations and wrappers, which are scalars in YAML; it reports
// false for any other message.
func (d *reader) wellKnown(n *yaml.Node, m protoreflect.Message, at place) bool {
	if m.Descriptor().ParentFile().Package() != "google.protobuf" {
		return false
	}
	if n = d.resolve(n, at.path); n == nil {
		return true
	}
	if n.Kind != yaml.ScalarNode {
		d.fail(n, at.path, describe(n)+", want a single value")
		return true
	}
	if m.Descriptor().Name() == "Duration" {
		// As Istio's own unmarshalling: Go's notation, of which protobuf's is a part.
		v, err := time.ParseDuration(n.Value)
		if err != nil || n.Tag != "!!str" {
			d.fail(n, at.path, describe(n)+", want a duration such as 1.5s or 300ms")
			return true
		}
		durationpb.New(v).ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			m.Set(m.Descriptor().Fields().ByNumber(fd.Number()), v)
			return true
		})
		return true
	}
	text, want := []byte(n.Value), "a number"
	if m.Descriptor().Name() == "BoolValue" {
		want = "true or false"
	}
	if n.Tag == "!!str" {
		d.fail(n, at.path, describe(n)+", want "+want)
		return true
	}
	// The message is decoded apart: a failed Unmarshal leaves it cleared.
	fresh := m.New().Interface()
	if err := protojson.Unmarshal(text, fresh); err != nil {
		d.fail(n, at.path, describe(n)+", want "+want)
		return true
	}
	fresh.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		m.Set(fd, v)
		return true
	})
	return true
}

func (d *reader) scalar(n *yaml.Node, fd protoreflect.FieldDescriptor, at place) (protoreflect.Value, bool) {
	none := protoreflect.Value{}
	if fd.Kind() == protoreflect.StringKind {
		s, ok := d.string(n, at.path)
		return protoreflect.ValueOfString(s), ok
	}
	if n = d.resolve(n, at.path); n == nil {
		return none, false
	}
	wrong := func(want string) (protoreflect.Value, bool) {
		d.fail(n, at.path, describe(n)+", want "+want)
		return none, false
	}
	if n.Kind != yaml.ScalarNode {
		return wrong("a single value")
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		if n.Tag != "!!bool" {
			return wrong("true or false")
		}
		return protoreflect.ValueOfBool(strings.EqualFold(n.Value, "true")), true
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.DecodeString(n.Value)
		if err != nil || n.Tag != "!!str" && n.Tag != "!!binary" {
			return wrong("base64 text")
		}
		return protoreflect.ValueOfBytes(b), true
	case protoreflect.EnumKind:
		return d.enum(n, fd, at)
	}
	var number float64
	if fd.Kind() == protoreflect.Uint64Kind && n.Tag == "!!str" {
		// Protobuf's JSON writes 64 bits as text.
		v, err := strconv.ParseUint(n.Value, 10, 64)
		if err != nil {
			return wrong("a number")
		}
		return protoreflect.ValueOfUint64(v), true
	}
	if n.Tag != "!!int" && n.Tag != "!!float" || n.Decode(&number) != nil {
		return wrong("a number")
	}
	integer := number == math.Trunc(number)
	switch fd.Kind() {
	case protoreflect.Int32Kind:
		if !integer || number < math.MinInt32 || number > math.MaxInt32 {
			return wrong("a whole number of 32 bits")
		}
		return protoreflect.ValueOfInt32(int32(number)), true
	case protoreflect.Uint32Kind:
		if !integer || number < 0 || number > math.MaxUint32 {
			return wrong("a whole number from 0 to 4294967295")
		}
		return protoreflect.ValueOfUint32(uint32(number)), true
	case protoreflect.Uint64Kind:
		if !integer || number < 0 || number > 1<<53 {
			return wrong("a whole number from 0 to 9007199254740992")
		}
		return protoreflect.ValueOfUint64(uint64(number)), true
	case protoreflect.DoubleKind:
		if math.IsNaN(number) || math.IsInf(number, 0) {
			return wrong("a finite number")
		}
		return protoreflect.ValueOfFloat64(number), true
	}
	d.fail(n, at.path, fmt.Sprintf("a field of kind %v cannot be read yet", fd.Kind()))
	return none, false
}

// enum reads a name, and only those values that are enforced.
func (d *reader) enum(n *yaml.Node, fd protoreflect.FieldDescriptor, at place) (protoreflect.Value, bool) {
	f := fieldAt(d.kind, at.field)
	value := fd.Enum().Values().ByName(protoreflect.Name(n.Value))
	if value != nil && f.allows(n.Value) {
		return protoreflect.ValueOfEnum(value.Number()), true
	}
	known := "no such value"
	if value != nil {
		known = "not enforced yet, so it is refused"
	}
	d.fail(n, at.path, fmt.Sprintf("%s: %s, want %s", describe(n), known, strings.Join(f.Values, ", ")))
	return protoreflect.Value{}, false
}
