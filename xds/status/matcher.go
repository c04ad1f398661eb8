package status

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// The predicates that matchers compile to.
type (
	nodeMatch   func(*corev3.Node) bool
	stringMatch func(string) bool
	valueMatch  func(*structpb.Value) bool // nil: there is no such value
)

// compileMatchers returns what accepts a node that any of the matchers accepts; none
// accept all. Every mistake is reported, each with its path.
func compileMatchers(ms []*matcherv3.NodeMatcher) (nodeMatch, error) {
	if len(ms) == 0 {
		return func(*corev3.Node) bool { return true }, nil
	}
	var either []nodeMatch
	var errs []error
	for i, m := range ms {
		path := fmt.Sprintf("node_matchers[%d]", i)
		var all []nodeMatch
		if m.GetNodeId() != nil {
			id, err := compileString(path+".node_id", m.GetNodeId())
			errs = append(errs, err)
			all = append(all, func(n *corev3.Node) bool { return id(n.GetId()) })
		}
		for j, meta := range m.GetNodeMetadatas() {
			f, err := compileStruct(fmt.Sprintf("%s.node_metadatas[%d]", path, j), meta)
			errs = append(errs, err)
			all = append(all, f)
		}
		either = append(either, func(n *corev3.Node) bool {
			return !slices.ContainsFunc(all, func(f nodeMatch) bool { return !f(n) })
		})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return func(n *corev3.Node) bool {
		return slices.ContainsFunc(either, func(f nodeMatch) bool { return f(n) })
	}, nil
}

func compileStruct(path string, m *matcherv3.StructMatcher) (nodeMatch, error) {
	value, err := compileValue(path+".value", m.GetValue())
	if err != nil {
		return nil, err
	}
	return func(n *corev3.Node) bool {
		v := structpb.NewStructValue(n.GetMetadata())
		for _, segment := range m.GetPath() {
			v = v.GetStructValue().GetFields()[segment.GetKey()]
		}
		return value(v)
	}, nil
}

func compileValue(path string, m *matcherv3.ValueMatcher) (valueMatch, error) {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_NullMatch_:
		return func(v *structpb.Value) bool { _, ok := v.GetKind().(*structpb.Value_NullValue); return ok }, nil
	case *matcherv3.ValueMatcher_DoubleMatch:
		return func(v *structpb.Value) bool {
			n, ok := v.GetKind().(*structpb.Value_NumberValue)
			return ok && matchNumber(p.DoubleMatch, n.NumberValue)
		}, nil
	case *matcherv3.ValueMatcher_StringMatch:
		text, err := compileString(path+".string_match", p.StringMatch)
		return func(v *structpb.Value) bool {
			s, ok := v.GetKind().(*structpb.Value_StringValue)
			return ok && text(s.StringValue)
		}, err
	case *matcherv3.ValueMatcher_BoolMatch:
		return func(v *structpb.Value) bool {
			b, ok := v.GetKind().(*structpb.Value_BoolValue)
			return ok && b.BoolValue == p.BoolMatch
		}, nil
	case *matcherv3.ValueMatcher_PresentMatch:
		return func(v *structpb.Value) bool { return (v != nil) == p.PresentMatch }, nil
	case *matcherv3.ValueMatcher_ListMatch:
		one, err := compileValue(path+".list_match.one_of", p.ListMatch.GetOneOf())
		return func(v *structpb.Value) bool { return slices.ContainsFunc(v.GetListValue().GetValues(), one) }, err
	case *matcherv3.ValueMatcher_OrMatch:
		var either []valueMatch
		var errs []error
		for i, sub := range p.OrMatch.GetValueMatchers() {
			f, err := compileValue(fmt.Sprintf("%s.or_match.value_matchers[%d]", path, i), sub)
			either, errs = append(either, f), append(errs, err)
		}
		return func(v *structpb.Value) bool {
			return slices.ContainsFunc(either, func(f valueMatch) bool { return f(v) })
		}, errors.Join(errs...)
	}
	return nil, fmt.Errorf("%s: no pattern that is known here", path)
}

func matchNumber(m *matcherv3.DoubleMatcher, n float64) bool {
	if r := m.GetRange(); r != nil {
		return r.GetStart() <= n && n < r.GetEnd()
	}
	return m.GetExact() == n
}

func compileString(path string, m *matcherv3.StringMatcher) (stringMatch, error) {
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		want := fold(p.Exact)
		return func(s string) bool { return fold(s) == want }, nil
	case *matcherv3.StringMatcher_Prefix:
		want := fold(p.Prefix)
		return func(s string) bool { return strings.HasPrefix(fold(s), want) }, nil
	case *matcherv3.StringMatcher_Suffix:
		want := fold(p.Suffix)
		return func(s string) bool { return strings.HasSuffix(fold(s), want) }, nil
	case *matcherv3.StringMatcher_Contains:
		want := fold(p.Contains)
		return func(s string) bool { return strings.Contains(fold(s), want) }, nil
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := regexp.Compile(`\A(?:` + p.SafeRegex.GetRegex() + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("%s.safe_regex: %w", path, err)
		}
		return re.MatchString, nil
	}
	return nil, fmt.Errorf("%s: no pattern that is known here", path)
}
