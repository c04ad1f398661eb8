package router

import (
	"cmp"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
)

// defaultTimeout is a route's that sets none, as Envoy's.
const defaultTimeout = 15 * time.Second

func (c *compiler) route(path string, r *routev3.Route, top, host headerLevel, retry *Retry) *Route {
	out := &Route{Name: r.GetName(), match: c.match(path+".match", r.GetMatch())}
	own := c.headers(path, r)
	response := c.inOrder(HeaderOps{}, own.response, host.response, top.response)
	switch a := r.GetAction().(type) {
	case *routev3.Route_Route:
		out.Retry = retry
		c.forward(path+".route", out, a.Route, [3]headerLevel{own, host, top})
	case *routev3.Route_Redirect:
		c.redirect(path+".redirect", out, a.Redirect)
		out.Redirect.Response = response
	case *routev3.Route_DirectResponse:
		out.Direct = c.direct(path+".direct_response", a.DirectResponse)
		out.Direct.Response = response
	default:
		c.refuse(path, "has no action")
	}
	return out
}

// inOrder merges the levels, given from the most specific, in the order in which
// Envoy applies them: the last one wins.
func (c *compiler) inOrder(levels ...HeaderOps) HeaderOps {
	if c.specificWins {
		slices.Reverse(levels)
	}
	return merge(levels...)
}

func (c *compiler) forward(path string, out *Route, a *routev3.RouteAction, levels [3]headerLevel) {
	add := func(at, name string, weight uint32, own headerLevel) {
		if name == "" {
			c.refuse(at, "is empty")
			return
		}
		if weight == 0 {
			return
		}
		out.totalWeight += uint64(weight)
		out.Destinations = append(out.Destinations, Destination{
			Cluster:  c.clusters(name),
			Weight:   weight,
			Request:  c.inOrder(own.request, levels[0].request, levels[1].request, levels[2].request),
			Response: c.inOrder(own.response, levels[0].response, levels[1].response, levels[2].response),
		})
	}
	switch s := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		add(path+".cluster", s.Cluster, 1, headerLevel{})
	case *routev3.RouteAction_WeightedClusters:
		for i, w := range s.WeightedClusters.GetClusters() {
			at := path + ".weighted_clusters." + fields.Index("clusters", i)
			add(at+".name", w.GetName(), w.GetWeight().GetValue(), c.headers(at, w))
		}
		if out.totalWeight == 0 {
			c.refuse(path+".weighted_clusters", "all weights together are 0")
		}
		if out.totalWeight > math.MaxUint32 {
			c.refuse(path+".weighted_clusters", "all weights together are %d, want at most %d", out.totalWeight, uint32(math.MaxUint32))
		}
	default:
		c.refuse(path, "names no cluster")
	}
	if code := a.GetClusterNotFoundResponseCode(); code != routev3.RouteAction_SERVICE_UNAVAILABLE {
		c.refuse(path+".cluster_not_found_response_code", "%v is not implemented", code)
	}
	if a.GetPriority() != corev3.RoutingPriority_DEFAULT {
		c.refuse(path+".priority", "%v is not implemented", a.GetPriority())
	}
	if a.GetAutoHostRewrite().GetValue() {
		c.refuse(path+".auto_host_rewrite", "not implemented")
	}
	if a.GetAppendXForwardedHost() {
		c.refuse(path+".append_x_forwarded_host", "not implemented")
	}
	out.HostRewrite = a.GetHostRewriteLiteral()
	if out.HostRewrite != "" && !authority(out.HostRewrite) {
		c.refuse(path+".host_rewrite_literal", "%q, want host or host:port", out.HostRewrite)
	}
	c.rewrite(path, out, a)
	c.timeouts(path, out, a)
	if a.GetRetryPolicy() != nil {
		out.Retry = c.retry(path+".retry_policy", a.GetRetryPolicy())
	}
	for i, p := range a.GetHashPolicy() {
		c.hash(path+"."+fields.Index("hash_policy", i), out, p)
	}
}

// plain reports whether text can stand in a request line as it is: a space or a
// line break would end the target, and what follows would be read as more of the
// head, or as a second request.
func plain(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// authority reports whether text is a host or host:port.
func authority(text string) bool {
	u, err := url.Parse("http://" + text)
	if err != nil || !plain(text) || u.Host != text || u.Hostname() == "" || strings.HasSuffix(text, ":") {
		return false
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "1"), 10, 16)
	return err == nil && port > 0
}

func (c *compiler) rewrite(path string, out *Route, a *routev3.RouteAction) {
	if a.GetPrefixRewrite() != "" {
		if !plain(a.GetPrefixRewrite()) {
			c.refuse(path+".prefix_rewrite", "%q, want no space, control or non-ASCII character", a.GetPrefixRewrite())
		}
		out.rewrite.prefix, out.rewrite.hasPrefix = a.GetPrefixRewrite(), true
	}
	re := a.GetRegexRewrite()
	if re == nil {
		return
	}
	if out.rewrite.hasPrefix {
		c.refuse(path+".regex_rewrite", "beside prefix_rewrite")
	}
	out.rewrite.re = c.expression(path+".regex_rewrite.pattern.regex", "", re.GetPattern().GetRegex(), "")
	if out.rewrite.re == nil {
		return
	}
	template, problem := goTemplate(re.GetSubstitution(), out.rewrite.re.NumSubexp())
	if problem != "" {
		c.refuse(path+".regex_rewrite.substitution", "%q: %s", re.GetSubstitution(), problem)
	}
	if !plain(re.GetSubstitution()) {
		c.refuse(path+".regex_rewrite.substitution", "%q, want no space, control or non-ASCII character", re.GetSubstitution())
	}
	out.rewrite.template = []byte(template)
}

// goTemplate turns RE2's \1 into Go's ${1}.
func goTemplate(substitution string, groups int) (template, problem string) {
	var b strings.Builder
	for i := 0; i < len(substitution); i++ {
		switch s := substitution[i]; {
		case s == '$':
			b.WriteString("$$")
		case s != '\\':
			b.WriteByte(s)
		case i+1 == len(substitution):
			return "", `ends with \`
		case substitution[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case substitution[i+1] < '0' || substitution[i+1] > '9':
			return "", `\ is followed by neither a digit nor \`
		case int(substitution[i+1]-'0') > groups:
			return "", "there is no such group"
		default:
			b.WriteString("${" + substitution[i+1:i+2] + "}")
			i++
		}
	}
	return b.String(), ""
}

func (c *compiler) timeouts(path string, out *Route, a *routev3.RouteAction) {
	out.Timeout = defaultTimeout
	if a.GetTimeout() != nil {
		out.Timeout = c.duration(path+".timeout", a.GetTimeout())
	}
	// A stream's longest life bounds HTTP/1 exchanges as the timeout does. The
	// bound for grpc-timeout concerns callers who send that header.
	if longest := c.duration(path+".max_stream_duration.max_stream_duration", a.GetMaxStreamDuration().GetMaxStreamDuration()); longest > 0 &&
		(out.Timeout == 0 || longest < out.Timeout) {
		out.Timeout = longest
	}
	if a.GetIdleTimeout() != nil {
		if out.IdleTimeout = c.duration(path+".idle_timeout", a.GetIdleTimeout()); out.IdleTimeout == 0 {
			out.IdleTimeout = -1
		}
	}
}

func (c *compiler) hash(path string, out *Route, p *routev3.RouteAction_HashPolicy) {
	policy := hashPolicy{terminal: p.GetTerminal()}
	switch s := p.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		policy.header = strings.ToLower(s.Header.GetHeaderName())
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		policy.query = s.QueryParameter.GetName()
	}
	if policy.header == "" && policy.query == "" {
		c.refuse(path, "names nothing to hash")
		return
	}
	out.hashes = append(out.hashes, policy)
}

func (c *compiler) redirect(path string, out *Route, a *routev3.RedirectAction) {
	status, known := redirectStatus[a.GetResponseCode()]
	if !known {
		c.refuse(path+".response_code", "%v is not implemented", a.GetResponseCode())
	}
	r := &Redirect{
		Status:     status,
		Scheme:     a.GetSchemeRedirect(),
		Host:       a.GetHostRedirect(),
		Path:       a.GetPathRedirect(),
		Prefix:     a.GetPrefixRewrite(),
		StripQuery: a.GetStripQuery(),
	}
	if a.GetHttpsRedirect() {
		r.Scheme = "https"
	}
	if port := a.GetPortRedirect(); port > math.MaxUint16 {
		c.refuse(path+".port_redirect", "%d, want at most %d", port, math.MaxUint16)
	} else {
		r.Port = uint16(port)
	}
	for _, part := range [][2]string{{"scheme_redirect", r.Scheme}, {"host_redirect", r.Host}, {"path_redirect", r.Path}, {"prefix_rewrite", r.Prefix}} {
		if strings.ContainsAny(part[1], "\r\n\x00") {
			c.refuse(path+"."+part[0], "%q holds a line break or NUL", part[1])
		}
	}
	if r.Prefix != "" {
		out.rewrite.prefix, out.rewrite.hasPrefix = r.Prefix, true
	}
	out.Redirect = r
}

var redirectStatus = map[routev3.RedirectAction_RedirectResponseCode]int{
	routev3.RedirectAction_MOVED_PERMANENTLY:  http.StatusMovedPermanently,
	routev3.RedirectAction_FOUND:              http.StatusFound,
	routev3.RedirectAction_SEE_OTHER:          http.StatusSeeOther,
	routev3.RedirectAction_TEMPORARY_REDIRECT: http.StatusTemporaryRedirect,
	routev3.RedirectAction_PERMANENT_REDIRECT: http.StatusPermanentRedirect,
}

func (c *compiler) direct(path string, a *routev3.DirectResponseAction) *Direct {
	d := &Direct{Status: int(a.GetStatus())}
	if d.Status < 200 || d.Status > 599 {
		c.refuse(path+".status", "%d, want 200 to 599", d.Status)
	}
	switch s := a.GetBody().GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		d.Body = []byte(s.InlineString)
	case *corev3.DataSource_InlineBytes:
		d.Body = s.InlineBytes
	}
	return d
}
