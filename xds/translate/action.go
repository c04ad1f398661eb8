package translate

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

// Retries where no rule states conditions; the reasons are in RATIONALE.md.
const (
	safeMethods  = "GET|HEAD|OPTIONS|TRACE"
	retrySafe    = "connect-failure,refused-stream,reset,retriable-status-codes"
	retryUnsent  = "connect-failure,refused-stream,reset-before-request"
	retryInbound = "reset-before-request"

	defaultAttempts = 2
	// otherHosts is how often a retry looks for a host that was not tried yet.
	otherHosts = 5
)

// retryCase is one of the routes that a rule's route becomes.
type retryCase struct {
	methods    string // regex that the method must match; empty for all
	conditions string // empty for no retries
	statuses   []uint32
}

// retryCases splits by method where the conditions differ by it: a GET may be sent
// again after a connection broke in the middle, a POST may not.
func (r *router) retryCases(retries *networking.HTTPRetry, method *networking.StringMatch) []retryCase {
	if retries != nil && retries.Attempts == 0 {
		return []retryCase{{}}
	}
	if retries.GetRetryOn() != "" {
		return []retryCase{statedConditions(retries.GetRetryOn())}
	}
	safe := retryCase{methods: safeMethods, conditions: retrySafe, statuses: []uint32{503}}
	unsent := retryCase{conditions: retryUnsent}
	if r.client.Kind == scope.GRPC || r.port.Protocol == model.GRPC {
		return []retryCase{unsent} // every call is a POST
	}
	if exact, ok := method.GetMatchType().(*networking.StringMatch_Exact); ok {
		if slices.Contains(strings.Split(safeMethods, "|"), exact.Exact) {
			safe.methods = ""
			return []retryCase{safe}
		}
		return []retryCase{unsent}
	}
	return []retryCase{safe, unsent}
}

// statedConditions reads a rule's retryOn, in which status codes may stand among
// the names of conditions.
func statedConditions(retryOn string) retryCase {
	var c retryCase
	var names []string
	for cond := range strings.SplitSeq(retryOn, ",") {
		cond = strings.TrimSpace(cond)
		if code, err := strconv.ParseUint(cond, 10, 32); err == nil {
			c.statuses = append(c.statuses, uint32(code))
		} else if !slices.Contains(names, cond) {
			names = append(names, cond)
		}
	}
	const byStatus = "retriable-status-codes"
	if len(c.statuses) > 0 && !slices.Contains(names, byStatus) {
		names = append(names, byStatus)
	}
	c.conditions = strings.Join(names, ",")
	return c
}

func (c retryCase) policy(retries *networking.HTTPRetry) (*routev3.RetryPolicy, error) {
	if c.conditions == "" {
		return nil, nil
	}
	previous, err := pack(&previoushostsv3.PreviousHostsPredicate{})
	if err != nil {
		return nil, err
	}
	attempts := uint32(defaultAttempts)
	if retries != nil {
		attempts = uint32(retries.Attempts)
	}
	return &routev3.RetryPolicy{
		RetryOn: c.conditions, NumRetries: wrapperspb.UInt32(attempts), PerTryTimeout: retries.GetPerTryTimeout(),
		RetriableStatusCodes: c.statuses,
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: previous},
		}},
		HostSelectionRetryMaxAttempts: otherHosts,
	}, nil
}

// timeoutOf is none unless a rule says otherwise, as in Istio; Envoy's own default
// of 15 s would cut streams.
func timeoutOf(h *networking.HTTPRoute) *durationpb.Duration {
	if h.GetTimeout() != nil {
		return h.GetTimeout()
	}
	return durationpb.New(0)
}

func directResponse(in *networking.HTTPDirectResponse) *routev3.Route_DirectResponse {
	out := &routev3.DirectResponseAction{Status: in.GetStatus()}
	switch body := in.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: body.Bytes}}
	}
	return &routev3.Route_DirectResponse{DirectResponse: out}
}

// headersToAdd puts replacements before additions, each by name.
func headersToAdd(ops *networking.Headers_HeaderOperations) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	add := func(m map[string]string, action corev3.HeaderValueOption_HeaderAppendAction) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			out = append(out, &corev3.HeaderValueOption{
				Header: &corev3.HeaderValue{Key: strings.ToLower(name), Value: m[name]}, AppendAction: action,
				KeepEmptyValue: m[name] == "",
			})
		}
	}
	add(ops.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	add(ops.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)
	return out
}

func headersToRemove(ops *networking.Headers_HeaderOperations) []string {
	var out []string
	for _, name := range ops.GetRemove() {
		out = append(out, strings.ToLower(name))
	}
	return out
}
