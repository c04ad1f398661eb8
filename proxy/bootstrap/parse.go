package bootstrap

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a file, in bytes; aliases are refused, so that it cannot grow
// when it is read.
const maxFile = 1 << 20

// Parse reads a file over the defaults. Unknown and repeated keys and values of
// the wrong form are all reported, as "name:line:column: key: what is wrong"; it
// does not Validate.
func Parse(name string, data []byte) (Config, error) {
	c := Defaults()
	if len(data) > maxFile {
		return c, fmt.Errorf("%s: %d bytes, want at most %d", name, len(data), maxFile)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return c, fmt.Errorf("%s: %w", name, err)
	}
	if len(doc.Content) == 0 {
		return c, nil
	}
	p := parser{name: name}
	p.value("", doc.Content[0], reflect.ValueOf(&c).Elem())
	return c, errors.Join(p.errs...)
}

type parser struct {
	name string
	errs []error
}

func (p *parser) refuse(path string, n *yaml.Node, format string, args ...any) {
	if path != "" {
		path += ": "
	}
	p.errs = append(p.errs, fmt.Errorf("%s:%d:%d: %s%s", p.name, n.Line, n.Column, path, fmt.Sprintf(format, args...)))
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (p *parser) value(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		p.refuse(path, n, "aliases are not supported")
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // the default stays
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		if n.Kind != yaml.ScalarNode {
			p.refuse(path, n, "want a single value")
		} else if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			p.refuse(path, n, "%v", err)
		}
		return
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(n.Value)
		if n.Kind != yaml.ScalarNode || err != nil {
			p.refuse(path, n, "%q, want a duration such as 30s", n.Value)
		}
		v.SetInt(int64(d))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		p.object(path, n, v)
	case reflect.Map:
		p.strings(path, n, v)
	case reflect.Slice:
		p.list(path, n, v)
	default:
		p.scalar(path, n, v)
	}
}

// keys yields the pairs of a mapping and refuses what is repeated.
func (p *parser) keys(path string, n *yaml.Node, each func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.refuse(path, n, "want keys and values")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if line, twice := seen[key.Value]; twice {
			p.refuse(join(path, key.Value), key, "is set in line %d already", line)
			continue
		}
		seen[key.Value] = key.Line
		each(key, n.Content[i+1])
	}
}

func (p *parser) object(path string, n *yaml.Node, v reflect.Value) {
	p.keys(path, n, func(key, value *yaml.Node) {
		var known []string
		for i := range v.NumField() {
			tag := v.Type().Field(i).Tag.Get("yaml")
			if tag == key.Value {
				p.value(join(path, tag), value, v.Field(i))
				return
			}
			known = append(known, tag)
		}
		p.refuse(join(path, key.Value), key, "unknown key, want one of %s", strings.Join(known, ", "))
	})
}

func (p *parser) strings(path string, n *yaml.Node, v reflect.Value) {
	out := map[string]string{}
	p.keys(path, n, func(key, value *yaml.Node) {
		if value.Kind != yaml.ScalarNode {
			p.refuse(join(path, key.Value), value, "want a single value")
			return
		}
		out[key.Value] = value.Value
	})
	v.Set(reflect.ValueOf(out))
}

func (p *parser) list(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		p.refuse(path, n, "want a list")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, e := range n.Content {
		p.value(fmt.Sprintf("%s[%d]", path, i), e, out.Index(i))
	}
	v.Set(out)
}

func (p *parser) scalar(path string, n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		p.refuse(path, n, "want a single value")
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		var b bool
		if err := n.Decode(&b); err != nil {
			p.refuse(path, n, "%q, want true or false", n.Value)
		}
		v.SetBool(b)
	default: // whole numbers; the schema has no others
		var i int64
		if err := n.Decode(&i); err != nil {
			p.refuse(path, n, "%q, want a whole number", n.Value)
			return
		}
		if v.CanUint() {
			if i < 0 || v.OverflowUint(uint64(i)) {
				p.refuse(path, n, "%d, want 0 to %d", i, uint64(math.MaxUint64)>>(64-8*v.Type().Size()))
				return
			}
			v.SetUint(uint64(i))
			return
		}
		v.SetInt(i)
	}
}
