// Package router finds the route of a request: virtual host, then the first
// route that matches, then one of its clusters.
//
// A Table is compiled once from a RouteConfiguration (proxy/snapshot does it) and
// never changes; requests read it without a lock and without allocating.
package router

import (
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// Request is what a route may look at. Codecs implement it over their read
// buffer: slices are valid until the caller's next read, and must not be kept.
type Request interface {
	Method() []byte
	Path() []byte      // with the query
	Authority() []byte // host[:port], as sent
	// Header returns the first value of a header; name is lower case.
	Header(name string) ([]byte, bool)
}

// Route is what to do with a request that matched. Exactly one of Destinations,
// Direct and Redirect is set.
type Route struct {
	Name         string
	Destinations []Destination
	Direct       *Direct
	Redirect     *Redirect

	// Timeout bounds the whole exchange, retries included; 0 means none.
	Timeout time.Duration
	// IdleTimeout bounds silence in both directions; 0 means the listener's,
	// less than 0 none.
	IdleTimeout time.Duration
	Retry       *Retry // nil: never retried

	// HostRewrite replaces :authority; empty leaves it.
	HostRewrite string

	match       matcher
	rewrite     rewrite
	hashes      []hashPolicy
	totalWeight uint64
}

// Pick chooses one of Destinations by weight; nil when the route has none. random
// is uniform.
func (r *Route) Pick(random uint64) *Destination {
	if len(r.Destinations) <= 1 {
		if len(r.Destinations) == 0 {
			return nil
		}
		return &r.Destinations[0]
	}
	at := random % r.totalWeight
	for i := range r.Destinations {
		if w := uint64(r.Destinations[i].Weight); at >= w {
			at -= w
			continue
		}
		return &r.Destinations[i]
	}
	return &r.Destinations[len(r.Destinations)-1]
}

// Destination is one weighted cluster of a route, with the header changes of
// route configuration, virtual host, route and weighted cluster merged in order.
type Destination struct {
	Cluster  *upstream.Cluster
	Weight   uint32
	Request  HeaderOps
	Response HeaderOps
}

// HeaderOps changes headers: first Remove, then Set (replace or add), then Add.
type HeaderOps struct {
	Remove   []string // lower case
	Set, Add []HeaderValue
}

// Empty reports whether there is nothing to do.
func (o *HeaderOps) Empty() bool { return len(o.Remove)+len(o.Set)+len(o.Add) == 0 }

// HeaderValue is one header with its static value; Name is lower case.
type HeaderValue struct{ Name, Value string }

// Direct answers without an upstream.
type Direct struct {
	Status   int
	Body     []byte
	Response HeaderOps
}

// Redirect answers with a Location made of the request's parts; empty fields
// keep the request's.
type Redirect struct {
	Status     int
	Scheme     string
	Host       string
	Port       uint16
	Path       string // replaces the path, query kept unless StripQuery
	Prefix     string // replaces the matched prefix
	StripQuery bool
	Response   HeaderOps
}

// RetryOn is a set of conditions.
type RetryOn uint32

// Conditions, named as Envoy's retry_on values.
const (
	ConnectFailure       RetryOn = 1 << iota // no byte of the request was sent
	RefusedStream                            // the peer said it did not process it
	Reset                                    // the connection died before response headers
	GatewayError                             // 502, 503, 504
	FiveXX                                   // any 5xx, and no response at all
	Retriable4xx                             // 409
	RetriableStatusCodes                     // Retry.StatusCodes
	ResetBeforeRequest                       // reset before the request was sent completely
	Cancelled                                // gRPC status in headers
	DeadlineExceeded                         // gRPC status in headers
	Internal                                 // gRPC status in headers
	ResourceExhausted                        // gRPC status in headers
	Unavailable                              // gRPC status in headers
	RateLimited                              // the answer carries x-envoy-ratelimited
)

// Retry is a route's retry policy.
type Retry struct {
	On            RetryOn
	StatusCodes   []int
	Attempts      int           // beside the first
	PerTryTimeout time.Duration // 0: only Route.Timeout
	Backoff       time.Duration // base; 0 means 25 ms, doubled up to MaxBackoff with full jitter
	MaxBackoff    time.Duration // 0 means 10 x Backoff
	// AvoidTried makes retries prefer hosts not tried yet (previous_hosts).
	AvoidTried bool
}
