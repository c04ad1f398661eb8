package rules

import (
	"cmp"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/types/known/durationpb"
)

// headerName accepts an HTTP token (RFC 9110, 5.6.2) and no pseudo-header.
func (d *reader) headerName(path, name string) bool {
	if strings.HasPrefix(name, ":") {
		d.failAt(path, "is a pseudo-header; use uri, method or authority")
		return false
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	}) {
		d.failf(path, "%q is no header name", name)
		return false
	}
	return true
}

func (d *reader) headers(path string, h *networking.Headers) {
	for side, ops := range map[string]*networking.Headers_HeaderOperations{"request": h.GetRequest(), "response": h.GetResponse()} {
		for op, values := range map[string]map[string]string{"set": ops.GetSet(), "add": ops.GetAdd()} {
			for name, value := range values {
				at := fmt.Sprintf("%s.%s.%s[%s]", path, side, op, name)
				d.changedHeader(at, name)
				if strings.ContainsAny(value, "\x00\r\n") {
					d.failAt(at, "a header value has no line breaks")
				}
				if strings.Contains(value, "%") {
					d.failAt(at, "variables (%...%) are not enforced yet, so % is refused")
				}
			}
		}
		for i, name := range ops.GetRemove() {
			d.changedHeader(fmt.Sprintf("%s.%s.remove[%d]", path, side, i), name)
		}
	}
}

func (d *reader) changedHeader(path, name string) {
	if d.headerName(path, name) && strings.EqualFold(name, "host") {
		d.failAt(path, "the host is changed by rewrite.authority")
	}
}

// duration accepts whole milliseconds from atLeast on, up to a year.
func (d *reader) duration(path string, v *durationpb.Duration, atLeast time.Duration) {
	if v == nil {
		return
	}
	got := v.AsDuration()
	if v.CheckValid() != nil || got < atLeast || got > 365*24*time.Hour || got%time.Millisecond != 0 {
		d.failf(path, "%v, want whole milliseconds from %v to 8760h", got, atLeast)
	}
}

// retryOn are Envoy's conditions that both proxies carry out.
var retryOn = []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited",
	"retriable-4xx", "refused-stream", "retriable-status-codes", "cancelled", "deadline-exceeded", "internal",
	"resource-exhausted", "unavailable"}

// maxAttempts bounds retries: more would outlast any caller.
const maxAttempts = 20

func (d *reader) retries(path string, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	if r.Attempts < 0 || r.Attempts > maxAttempts {
		d.failf(path+".attempts", "%d, want 0 to %d", r.Attempts, maxAttempts)
	}
	d.duration(path+".perTryTimeout", r.PerTryTimeout, time.Millisecond)
	if r.Attempts == 0 && (r.RetryOn != "" || r.PerTryTimeout != nil) {
		d.failAt(path+".attempts", "is 0, so retryOn and perTryTimeout have no effect")
	}
	if r.RetryOn == "" {
		return
	}
	for cond := range strings.SplitSeq(r.RetryOn, ",") {
		cond = strings.TrimSpace(cond)
		code, err := strconv.Atoi(cond)
		if status := err == nil && code >= 400 && code <= 599; !status && !slices.Contains(retryOn, cond) {
			d.failf(path+".retryOn", "%q, want status codes 400 to 599 or %s", cond, strings.Join(retryOn, ", "))
		}
	}
}

func (d *reader) rewrite(path string, r *networking.HTTPRewrite) {
	if r == nil {
		return
	}
	if r.Uri == "" && r.Authority == "" {
		d.failAt(path, "is empty, want uri or authority")
	}
	d.path(path+".uri", r.Uri)
	d.authority(path+".authority", r.Authority)
}

// path refuses what does not begin with a slash or cannot stand in a request
// line as it is: a space or a line break would split the request.
func (d *reader) path(path, value string) {
	switch {
	case value == "":
	case !strings.HasPrefix(value, "/"):
		d.failf(path, "%q, want a path that begins with /", value)
	case !plain(value):
		d.failf(path, "%q, want no space, control or non-ASCII character", value)
	}
}

func (d *reader) authority(path, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse("http://" + value)
	if err == nil && plain(value) && u.Host == value && u.Hostname() != "" && !strings.HasSuffix(value, ":") {
		if port, err := strconv.ParseUint(cmp.Or(u.Port(), "1"), 10, 16); err == nil && port > 0 {
			return
		}
	}
	d.failf(path, "%q, want host or host:port", value)
}

func plain(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func (d *reader) redirect(path string, r *networking.HTTPRedirect) {
	if r == nil {
		return
	}
	d.path(path+".uri", r.Uri)
	d.authority(path+".authority", r.Authority)
	if r.RedirectCode != 0 && !slices.Contains([]uint32{301, 302, 303, 307, 308}, r.RedirectCode) {
		d.failf(path+".redirectCode", "%d, want 301, 302, 303, 307 or 308", r.RedirectCode)
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		d.failf(path+".scheme", "%q, want http or https", r.Scheme)
	}
	if p, ok := r.RedirectPort.(*networking.HTTPRedirect_Port); ok && (p.Port == 0 || p.Port > math.MaxUint16) {
		d.failf(path+".port", "%d, want 1 to 65535", p.Port)
	}
	if r.Uri == "" && r.Authority == "" && r.Scheme == "" && r.RedirectPort == nil {
		d.failAt(path, "leads to itself, want uri, authority, port or scheme")
	}
}

// maxDirectBody is Envoy's default limit for the body of a direct response, in bytes.
const maxDirectBody = 4096

func (d *reader) directResponse(path string, r *networking.HTTPDirectResponse) {
	if r == nil {
		return
	}
	if r.Status < 200 || r.Status > 599 {
		d.failf(path+".status", "%d, want 200 to 599", r.Status)
	}
	if n := max(len(r.GetBody().GetString_()), len(r.GetBody().GetBytes())); n > maxDirectBody {
		d.failf(path+".body", "%d bytes, want at most %d", n, maxDirectBody)
	}
}
