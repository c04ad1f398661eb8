package stream

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

const textPlain = "text/plain"

// Bodies of local answers, worded as Envoy's.
const (
	bodyNoHost   = "no healthy upstream"
	bodyOverflow = "upstream connect error or disconnect/reset before headers. reset reason: overflow"
	bodyRefused  = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
	bodyConnect  = "upstream connect error or disconnect/reset before headers. reset reason: connection timeout"
	bodyReset    = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
	bodyProtocol = "upstream connect error or disconnect/reset before headers. reset reason: protocol error"
	bodyTimeout  = "upstream request timeout"
	bodyIdle     = "stream timeout"
	bodyBroken   = "Bad Request"
)

// overloaded marks answers of an overflow, as Envoy does.
var overloaded = router.HeaderOps{Set: []router.HeaderValue{{Name: "x-envoy-overloaded", Value: "true"}}}

// unprocessedHeader on the 503 of a provider's sidecar says that no byte of the
// request reached the application: whoever sent it may send it elsewhere,
// whatever its method.
const unprocessedHeader = "x-mesh-unprocessed"

var unprocessed = router.HeaderOps{Set: []router.HeaderValue{{Name: unprocessedHeader, Value: "true"}}}

func isUnprocessed(r codec.Response) bool {
	if r.Status() != 503 {
		return false
	}
	_, ok := r.Header(unprocessedHeader)
	return ok
}

// answers are what a client gets for a failure.
var answers = [...]struct {
	status int
	flag   telemetry.Flags
	body   string
}{
	codec.ConnectRefused:    {503, telemetry.UpstreamConnectionFailure, bodyRefused},
	codec.ConnectTimeout:    {503, telemetry.UpstreamConnectionFailure, bodyConnect},
	codec.ConnectOverflow:   {503, telemetry.UpstreamOverflow, bodyOverflow},
	codec.ResetBeforeSent:   {503, telemetry.UpstreamConnectionEnd, bodyReset},
	codec.Reset:             {503, telemetry.UpstreamConnectionEnd, bodyReset},
	codec.BadResponse:       {502, telemetry.UpstreamProtocolError, bodyProtocol},
	codec.TryTimeout:        {504, telemetry.UpstreamRequestTimeout, bodyTimeout},
	codec.Timeout:           {504, telemetry.UpstreamRequestTimeout, bodyTimeout},
	codec.IdleTimeout:       {504, telemetry.StreamIdleTimeout, bodyIdle},
	codec.RequestTimeout:    {408, telemetry.StreamIdleTimeout, bodyIdle},
	codec.DownstreamBroken:  {400, telemetry.DownstreamProtocolError, bodyBroken},
	codec.DownstreamGone:    {0, telemetry.DownstreamConnectionEnd, ""},
	codec.DownstreamStalled: {0, telemetry.DownstreamConnectionEnd, ""},
}

// retriedAfter is the set of conditions that a failure meets.
func retriedAfter(f codec.Failure) router.RetryOn {
	const anyReset = router.Reset | router.FiveXX | router.GatewayError
	switch f {
	case codec.ConnectRefused, codec.ConnectTimeout:
		return router.ConnectFailure | router.ResetBeforeRequest | anyReset
	case codec.ResetBeforeSent:
		return router.ResetBeforeRequest | anyReset
	case codec.Reset, codec.BadResponse, codec.TryTimeout:
		return anyReset
	}
	return 0
}

// wantsRetry reports whether the policy retries after a response head.
func wantsRetry(retry *router.Retry, r codec.Response) bool {
	status, on := r.Status(), retry.On
	switch {
	case status >= 500 && on&router.FiveXX != 0,
		status >= 502 && status <= 504 && on&router.GatewayError != 0,
		status == 409 && on&router.Retriable4xx != 0:
		return true
	}
	if on&router.RetriableStatusCodes != 0 && slices.Contains(retry.StatusCodes, status) {
		return true
	}
	if on&router.RateLimited != 0 {
		if _, ok := r.Header("x-envoy-ratelimited"); ok {
			return true
		}
	}
	return on&grpcConditions != 0 && on&grpcCondition(r) != 0
}

const grpcConditions = router.Cancelled | router.DeadlineExceeded | router.Internal | router.ResourceExhausted | router.Unavailable

// grpcCondition is the condition that a gRPC status in the head meets.
func grpcCondition(r codec.Response) router.RetryOn {
	v, _ := r.Header("grpc-status")
	switch string(v) {
	case "1":
		return router.Cancelled
	case "4":
		return router.DeadlineExceeded
	case "8":
		return router.ResourceExhausted
	case "13":
		return router.Internal
	case "14":
		return router.Unavailable
	}
	return 0
}

const defaultBackoff = 25 * time.Millisecond

// backoff is the wait before attempt number attempts+1: the base doubled with
// every retry up to the maximum, with full jitter.
func backoff(retry *router.Retry, attempts int) time.Duration {
	base := retry.Backoff
	if base <= 0 {
		base = defaultBackoff
	}
	limit := retry.MaxBackoff
	if limit <= 0 {
		limit = 10 * base
	}
	d := base
	for i := 1; i < attempts && d < limit; i++ {
		d *= 2
	}
	return time.Duration(rand.Int64N(int64(min(d, limit)) + 1))
}

// answer makes the step that answers locally.
func (x *exchange) answer(status int, flag telemetry.Flags, body string) *codec.Step {
	x.flags |= flag
	s := &x.step
	s.Action = codec.Answer
	s.Reply = codec.Reply{Status: status}
	if body != "" {
		s.Reply.Body, s.Reply.ContentType = []byte(body), textPlain
	}
	return s
}
