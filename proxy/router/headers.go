package router

import (
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
)

// headerLevel is the header changes of one level: route configuration, virtual
// host, route or weighted cluster.
type headerLevel struct{ request, response HeaderOps }

// leveled is what each of the four messages offers.
type leveled interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func (c *compiler) headers(path string, m leveled) headerLevel {
	return headerLevel{
		request:  c.ops(path, "request", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		response: c.ops(path, "response", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
}

func (c *compiler) ops(path, side string, add []*corev3.HeaderValueOption, remove []string) HeaderOps {
	var ops HeaderOps
	for i, name := range remove {
		at := fields.Join(path, fields.Index(side+"_headers_to_remove", i))
		name = strings.ToLower(name)
		if c.headerName(at, name) {
			ops.Remove = append(ops.Remove, name)
		}
	}
	for i, option := range add {
		at := fields.Join(path, fields.Index(side+"_headers_to_add", i))
		name, value := strings.ToLower(option.GetHeader().GetKey()), option.GetHeader().GetValue()
		if raw := option.GetHeader().GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		if !c.headerName(at+".header.key", name) {
			continue
		}
		value, ok := literal(value)
		if !ok {
			c.refuse(at+".header.value", "%q: only literal values are implemented, with %%%% for a percent sign", value)
			continue
		}
		if strings.ContainsAny(value, "\r\n\x00") {
			c.refuse(at+".header.value", "%q holds a line break or NUL", value)
			continue
		}
		if value == "" && !option.GetKeepEmptyValue() {
			continue
		}
		h := HeaderValue{Name: name, Value: value}
		overwrite := option.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		if a := option.GetAppend(); a != nil { //nolint:staticcheck // deprecated, still sent by older control planes
			overwrite = !a.GetValue()
		}
		switch {
		case overwrite:
			ops.Set = append(ops.Set, h)
		case option.GetAppendAction() == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			ops.Add = append(ops.Add, h)
		default:
			c.refuse(at+".append_action", "%v is not implemented", option.GetAppendAction())
		}
	}
	return ops
}

// headerName reports whether a route may change the header.
func (c *compiler) headerName(path, name string) bool {
	switch {
	case name == "" || strings.ContainsFunc(name, notToken):
		c.refuse(path, "%q is no header name", name)
	case name == "host", name == "content-length", name == "transfer-encoding", name == "connection":
		c.refuse(path, "%s cannot be changed by a route", name)
	default:
		return true
	}
	return false
}

func notToken(r rune) bool {
	alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// literal undoes the escape of percent signs; ok is false for a value that asks
// for something of the request. The value is returned either way.
func literal(value string) (string, bool) {
	bare := strings.ReplaceAll(value, "%%", "")
	return strings.ReplaceAll(value, "%%", "%"), !strings.Contains(bare, "%")
}

// merge makes one HeaderOps that does what levels do one after the other: of each
// its removals, then what it sets, then what it adds.
func merge(levels ...HeaderOps) HeaderOps {
	var out HeaderOps
	named := func(name string) func(HeaderValue) bool {
		return func(h HeaderValue) bool { return h.Name == name }
	}
	for _, l := range levels {
		for _, name := range l.Remove {
			out.Set = slices.DeleteFunc(out.Set, named(name))
			out.Add = slices.DeleteFunc(out.Add, named(name))
			if !slices.Contains(out.Remove, name) {
				out.Remove = append(out.Remove, name)
			}
		}
		for _, h := range l.Set {
			out.Set = slices.DeleteFunc(out.Set, named(h.Name))
			out.Add = slices.DeleteFunc(out.Add, named(h.Name))
			out.Set = append(out.Set, h)
		}
		out.Add = append(out.Add, l.Add...)
	}
	return out
}
