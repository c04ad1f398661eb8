package router

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// Compile makes a table of rc. clusters returns the cluster of a name, and makes
// one that is not known yet: routes may arrive before their clusters. Everything
// that is wrong or not implemented is reported at once, as *fields.Error joined.
func Compile(rc *routev3.RouteConfiguration, clusters func(name string) *upstream.Cluster) (*Table, error) {
	c := &compiler{clusters: clusters}
	if err := supported.Check(rc); err != nil {
		return nil, err
	}
	if rc.GetValidateClusters().GetValue() {
		c.refuse("validate_clusters", "not implemented")
	}
	t := &Table{
		Name:       rc.GetName(),
		exact:      map[string]*virtualHost{},
		ignorePort: rc.GetIgnorePortInHostMatching(),
	}
	c.specificWins = rc.GetMostSpecificHeaderMutationsWins()
	top := c.headers("", rc)
	for i, vh := range rc.GetVirtualHosts() {
		at := fields.Index("virtual_hosts", i)
		v := c.virtualHost(at, vh, top)
		if len(vh.GetDomains()) == 0 {
			c.refuse(at+".domains", "is empty")
		}
		for j, domain := range vh.GetDomains() {
			if !t.addDomain(domain, v) {
				c.refuse(at+"."+fields.Index("domains", j), "%s belongs to another virtual host already", domain)
			}
		}
	}
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return t, nil
}

type compiler struct {
	clusters     func(string) *upstream.Cluster
	specificWins bool
	errs         []error
}

func (c *compiler) refuse(path, format string, args ...any) {
	c.errs = append(c.errs, fields.Errorf(path, format, args...))
}

func (c *compiler) virtualHost(path string, vh *routev3.VirtualHost, top headerLevel) *virtualHost {
	if tls := vh.GetRequireTls(); tls != routev3.VirtualHost_NONE {
		c.refuse(path+".require_tls", "%v is not implemented", tls)
	}
	if vh.GetIncludeRequestAttemptCount() {
		c.refuse(path+".include_request_attempt_count", "not implemented")
	}
	if vh.GetIncludeAttemptCountInResponse() {
		c.refuse(path+".include_attempt_count_in_response", "not implemented")
	}
	v := &virtualHost{name: vh.GetName()}
	host := c.headers(path, vh)
	retry := c.retry(path+".retry_policy", vh.GetRetryPolicy())
	for i, r := range vh.GetRoutes() {
		route := c.route(path+"."+fields.Index("routes", i), r, top, host, retry)
		v.routes = append(v.routes, route)
	}
	if len(v.routes) >= indexFrom {
		v.index = newIndex(v.routes)
	}
	return v
}

func (c *compiler) match(path string, m *routev3.RouteMatch) matcher {
	out := matcher{fold: m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.kind, out.path = prefixPath, p.Prefix
	case *routev3.RouteMatch_Path:
		out.kind, out.path = exactPath, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.kind, out.path = separatedPath, p.PathSeparatedPrefix
		if !strings.HasPrefix(out.path, "/") || strings.HasSuffix(out.path, "/") {
			c.refuse(path+".path_separated_prefix", "%q, want a path that starts with a slash and does not end with one", out.path)
		}
	case *routev3.RouteMatch_SafeRegex:
		out.kind, out.re = regexPath, c.regex(path+".safe_regex", p.SafeRegex)
		out.fold = false // Envoy, too, matches expressions with case
	default:
		c.refuse(path, "no path is asked for")
	}
	if out.fold {
		out.path = strings.ToLower(out.path)
	}
	for i, h := range m.GetHeaders() {
		out.headers = append(out.headers, c.headerMatch(path+"."+fields.Index("headers", i), h))
	}
	for i, q := range m.GetQueryParameters() {
		out.query = append(out.query, c.queryMatch(path+"."+fields.Index("query_parameters", i), q))
	}
	return out
}

func (c *compiler) headerMatch(path string, h *routev3.HeaderMatcher) headerMatch {
	out := headerMatch{name: strings.ToLower(h.GetName()), invert: h.GetInvertMatch(), emptyIfMissing: h.GetTreatMissingHeaderAsEmpty()}
	if strings.HasPrefix(out.name, ":") {
		if out.name != ":method" && out.name != ":path" && out.name != ":authority" {
			c.refuse(path+".name", "%s is not implemented", out.name)
		}
	} else if out.name == "" || strings.ContainsFunc(out.name, notToken) {
		c.refuse(path+".name", "%q is no header name", out.name)
	}
	//nolint:staticcheck // the older forms are deprecated, still sent by other control planes
	switch m := h.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_ExactMatch:
		out.value = text{kind: exactText, want: m.ExactMatch}
	case *routev3.HeaderMatcher_PrefixMatch:
		out.value = text{kind: prefixText, want: m.PrefixMatch}
	case *routev3.HeaderMatcher_SuffixMatch:
		out.value = text{kind: suffixText, want: m.SuffixMatch}
	case *routev3.HeaderMatcher_ContainsMatch:
		out.value = text{kind: containsText, want: m.ContainsMatch}
	case *routev3.HeaderMatcher_SafeRegexMatch:
		out.value = c.expressionText(path+".safe_regex_match", m.SafeRegexMatch)
	case *routev3.HeaderMatcher_RangeMatch:
		out.value = text{kind: rangeText, from: m.RangeMatch.GetStart(), to: m.RangeMatch.GetEnd()}
	case *routev3.HeaderMatcher_StringMatch:
		out.value = c.text(path+".string_match", m.StringMatch)
	case *routev3.HeaderMatcher_PresentMatch:
		out.value = text{kind: presentText}
		out.invert = out.invert == m.PresentMatch
	default: // none means present
		out.value = text{kind: presentText}
	}
	return out
}

func (c *compiler) queryMatch(path string, q *routev3.QueryParameterMatcher) queryMatch {
	out := queryMatch{name: q.GetName(), value: text{kind: presentText}}
	if out.name == "" {
		c.refuse(path+".name", "is empty")
	}
	switch m := q.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		out.value = c.text(path+".string_match", m.StringMatch)
	case *routev3.QueryParameterMatcher_PresentMatch:
		if !m.PresentMatch {
			c.refuse(path+".present_match", "false is not implemented")
		}
	}
	return out
}

func (c *compiler) text(path string, m *matcherv3.StringMatcher) text {
	out := text{fold: m.GetIgnoreCase()}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.kind, out.want = exactText, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.kind, out.want = prefixText, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		out.kind, out.want = suffixText, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		out.kind, out.want = containsText, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		out = c.expressionText(path+".safe_regex", p.SafeRegex)
	default:
		c.refuse(path, "no pattern")
	}
	if out.fold {
		out.want = strings.ToLower(out.want)
	}
	return out
}

// expressionText makes a condition of an expression. One that only lists words,
// such as "GET|HEAD", is compared word by word: MeshServer tells methods apart so
// on every route, and the expression cost a request 3 % of its time.
func (c *compiler) expressionText(path string, m *matcherv3.RegexMatcher) text {
	out := text{kind: regexText, re: c.regex(path, m)}
	special := func(r rune) bool { return notToken(r) || strings.ContainsRune("$*+.^", r) }
	if out.re != nil && !strings.ContainsFunc(m.GetRegex(), special) {
		return text{kind: wordsText, words: strings.Split(m.GetRegex(), "|")}
	}
	return out
}

// maxRegex bounds an expression, in bytes; its program grows with it.
const maxRegex = 4096

func (c *compiler) regex(path string, m *matcherv3.RegexMatcher) *regexp.Regexp {
	return c.expression(path+".regex", `\A(?:`, m.GetRegex(), `)\z`)
}

func (c *compiler) expression(path, before, source, after string) *regexp.Regexp {
	if len(source) > maxRegex {
		c.refuse(path, "%d bytes, want at most %d", len(source), maxRegex)
		return nil
	}
	// Alone first: "a)|(b" is an expression only between the anchors.
	_, err := regexp.Compile(source)
	if err == nil {
		re, anchored := regexp.Compile(before + source + after)
		if anchored == nil {
			return re
		}
		err = anchored
	}
	c.refuse(path, "%v", err)
	return nil
}

// duration reads d, which may be nil; negative ones and those that Go cannot hold
// are refused.
func (c *compiler) duration(path string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	v := d.AsDuration()
	if d.CheckValid() != nil || v < 0 || v == math.MaxInt64 {
		c.refuse(path, "%v, want a duration of at least 0", fmt.Sprint(d.GetSeconds(), "s"))
		return 0
	}
	return v
}
