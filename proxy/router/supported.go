package router

import "github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"

// supported is what of route configurations is implemented; all else is refused
// by Compile. Values of these fields that are not implemented are refused where
// they are compiled. Fields that concern only who reads the configuration
// (metadata, stat_prefix) or nothing that is there (decorator: operation names
// of traces) are let through.
var supported = fields.Parse(`
envoy.config.route.v3.RouteConfiguration: name virtual_hosts request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove most_specific_header_mutations_wins validate_clusters max_direct_response_body_size_bytes ignore_port_in_host_matching metadata
envoy.config.route.v3.VirtualHost: name domains routes request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove require_tls retry_policy include_request_attempt_count include_attempt_count_in_response metadata
envoy.config.route.v3.Route: name match route redirect direct_response metadata decorator request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove stat_prefix
envoy.config.route.v3.Decorator: *
envoy.config.core.v3.Metadata: *
envoy.config.route.v3.RouteMatch: prefix path safe_regex path_separated_prefix case_sensitive headers query_parameters
envoy.config.route.v3.HeaderMatcher: name exact_match safe_regex_match range_match present_match prefix_match suffix_match contains_match string_match invert_match treat_missing_header_as_empty
envoy.config.route.v3.QueryParameterMatcher: name string_match present_match
envoy.type.matcher.v3.StringMatcher: exact prefix suffix safe_regex contains ignore_case
envoy.type.matcher.v3.RegexMatcher: google_re2 regex
envoy.type.matcher.v3.RegexMatcher.GoogleRE2:
envoy.type.v3.Int64Range: start end
envoy.config.route.v3.RouteAction: cluster weighted_clusters cluster_not_found_response_code prefix_rewrite regex_rewrite host_rewrite_literal auto_host_rewrite timeout idle_timeout retry_policy hash_policy priority max_stream_duration append_x_forwarded_host
envoy.config.route.v3.RouteAction.HashPolicy: header query_parameter terminal
envoy.config.route.v3.RouteAction.HashPolicy.Header: header_name
envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter: name
envoy.config.route.v3.RouteAction.MaxStreamDuration: max_stream_duration grpc_timeout_header_max
envoy.config.route.v3.WeightedCluster: clusters total_weight
envoy.config.route.v3.WeightedCluster.ClusterWeight: name weight request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
envoy.type.matcher.v3.RegexMatchAndSubstitute: pattern substitution
envoy.config.route.v3.RetryPolicy: retry_on num_retries per_try_timeout retry_host_predicate host_selection_retry_max_attempts retriable_status_codes retry_back_off
envoy.config.route.v3.RetryPolicy.RetryHostPredicate: name typed_config
envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate:
envoy.config.route.v3.RetryPolicy.RetryBackOff: base_interval max_interval
envoy.config.route.v3.RedirectAction: https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite response_code strip_query
envoy.config.route.v3.DirectResponseAction: status body
envoy.config.core.v3.DataSource: inline_string inline_bytes
envoy.config.core.v3.HeaderValueOption: header append append_action keep_empty_value
envoy.config.core.v3.HeaderValue: key value raw_value
`)
