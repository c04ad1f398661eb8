package router

import (
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
)

var retryConditions = map[string]RetryOn{
	"connect-failure":        ConnectFailure,
	"refused-stream":         RefusedStream,
	"reset":                  Reset,
	"gateway-error":          GatewayError,
	"5xx":                    FiveXX,
	"retriable-4xx":          Retriable4xx,
	"retriable-status-codes": RetriableStatusCodes,
	"reset-before-request":   ResetBeforeRequest,
	"cancelled":              Cancelled,
	"deadline-exceeded":      DeadlineExceeded,
	"internal":               Internal,
	"resource-exhausted":     ResourceExhausted,
	"unavailable":            Unavailable,
	"envoy-ratelimited":      RateLimited,
}

// Bounds of a retry policy.
const (
	maxAttempts  = 100 // beside the first
	maxBackoff   = time.Hour
	defaultTries = 1
)

// retry compiles p; nil stays nil.
func (c *compiler) retry(path string, p *routev3.RetryPolicy) *Retry {
	if p == nil {
		return nil
	}
	r := &Retry{Attempts: defaultTries, PerTryTimeout: c.duration(path+".per_try_timeout", p.GetPerTryTimeout())}
	for name := range strings.SplitSeq(p.GetRetryOn(), ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		condition, known := retryConditions[name]
		if !known {
			c.refuse(path+".retry_on", "%q is not implemented", name)
		}
		r.On |= condition
	}
	if n := p.GetNumRetries(); n != nil {
		r.Attempts = int(min(n.GetValue(), maxAttempts+1))
		if r.Attempts > maxAttempts {
			c.refuse(path+".num_retries", "%d, want at most %d", n.GetValue(), maxAttempts)
		}
	}
	for i, code := range p.GetRetriableStatusCodes() {
		if code < 200 || code > 599 {
			c.refuse(path+"."+fields.Index("retriable_status_codes", i), "%d, want 200 to 599", code)
		}
		r.StatusCodes = append(r.StatusCodes, int(code))
	}
	for i, h := range p.GetRetryHostPredicate() {
		at := path + "." + fields.Index("retry_host_predicate", i)
		if h.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			c.refuse(at+".name", "%q is not implemented", h.GetName())
		}
		if packed := h.GetTypedConfig(); packed != nil && !packed.MessageIs((*previoushostsv3.PreviousHostsPredicate)(nil)) {
			c.refuse(at+".typed_config", "%s is not the configuration of %s", packed.GetTypeUrl(), h.GetName())
		}
		r.AvoidTried = true
	}
	if b := p.GetRetryBackOff(); b != nil {
		r.Backoff = c.duration(path+".retry_back_off.base_interval", b.GetBaseInterval())
		r.MaxBackoff = c.duration(path+".retry_back_off.max_interval", b.GetMaxInterval())
		switch {
		case r.Backoff == 0 || r.Backoff > maxBackoff:
			c.refuse(path+".retry_back_off.base_interval", "%v, want more than 0 and at most %v", r.Backoff, maxBackoff)
		case r.MaxBackoff != 0 && r.MaxBackoff < r.Backoff:
			c.refuse(path+".retry_back_off.max_interval", "%v is less than base_interval", r.MaxBackoff)
		}
	}
	if r.On == 0 || r.Attempts == 0 {
		return nil
	}
	return r
}
