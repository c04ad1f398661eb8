package router

import (
	"errors"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
)

func TestWhatIsNotImplementedIsRefusedByPath(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		want         []string
	}{
		{"fields at every level", `
vhds: {config_source: {ads: {}}}
virtual_hosts:
- name: v
  domains: [a]
  cors: {}
  routes:
  - match: {prefix: /, runtime_fraction: {default_value: {numerator: 1}}}
    route: {cluster: c, request_mirror_policies: [{cluster: d}], hash_policy: [{cookie: {name: x}}]}
    typed_per_filter_config: {}
  - match: {prefix: /, headers: [{name: x, string_match: {custom: {}}}]}
    route: {cluster: c, cors: {}}`,
			[]string{
				"virtual_hosts[0].routes[0].match.runtime_fraction: not implemented",
				"virtual_hosts[0].routes[0].route.request_mirror_policies: not implemented",
				"virtual_hosts[0].routes[0].route.hash_policy[0].cookie: not implemented",
				"virtual_hosts[0].routes[1].match.headers[0].string_match.custom: not implemented",
				"virtual_hosts[0].routes[1].route.cors: not implemented",
				"virtual_hosts[0].cors: not implemented",
				"vhds: not implemented",
			}},
		{"values", `
validate_clusters: true
virtual_hosts:
- name: v
  domains: [a, a]
  require_tls: ALL
  routes:
  - match: {safe_regex: {regex: '('}}
    route: {cluster: ''}
  - match: {path_separated_prefix: /a/}
    route: {weighted_clusters: {clusters: [{name: c, weight: 0}]}}
  - match: {prefix: /, headers: [{name: 'bad name', present_match: true}, {name: ':scheme', present_match: true}]}
    redirect: {response_code: FOUND, port_redirect: 70000}
  - match: {prefix: /}
    direct_response: {status: 99}
  - match: {prefix: /}
  - route: {cluster: c, timeout: -1s, auto_host_rewrite: true}
- name: w
  domains: []`,
			[]string{
				"validate_clusters: not implemented",
				"virtual_hosts[0].require_tls: ALL is not implemented",
				"virtual_hosts[0].routes[0].match.safe_regex.regex: error parsing regexp: missing closing ): `(`",
				"virtual_hosts[0].routes[0].route.cluster: is empty",
				`virtual_hosts[0].routes[1].match.path_separated_prefix: "/a/", want a path that starts with a slash and does not end with one`,
				"virtual_hosts[0].routes[1].route.weighted_clusters: all weights together are 0",
				`virtual_hosts[0].routes[2].match.headers[0].name: "bad name" is no header name`,
				"virtual_hosts[0].routes[2].match.headers[1].name: :scheme is not implemented",
				"virtual_hosts[0].routes[2].redirect.port_redirect: 70000, want at most 65535",
				"virtual_hosts[0].routes[3].direct_response.status: 99, want 200 to 599",
				"virtual_hosts[0].routes[4]: has no action",
				"virtual_hosts[0].routes[5].match: no path is asked for",
				"virtual_hosts[0].routes[5].route.auto_host_rewrite: not implemented",
				"virtual_hosts[0].routes[5].route.timeout: -1s, want a duration of at least 0",
				"virtual_hosts[0].domains[1]: a belongs to another virtual host already",
				"virtual_hosts[1].domains: is empty",
			}},
		{"headers", oneHost(`
- match: {prefix: /}
  route: {cluster: c}
  request_headers_to_add:
  - {header: {key: x-a, value: '%DOWNSTREAM_REMOTE_ADDRESS%'}}
  - {header: {key: Host, value: b}}
  - {header: {key: x-b, value: b}, append_action: ADD_IF_ABSENT}
  - {header: {key: 'x b', value: b}}
  response_headers_to_remove: [':status', Content-Length]`),
			[]string{
				`virtual_hosts[0].routes[0].request_headers_to_add[0].header.value: "%DOWNSTREAM_REMOTE_ADDRESS%": only literal values are implemented, with %% for a percent sign`,
				"virtual_hosts[0].routes[0].request_headers_to_add[1].header.key: host cannot be changed by a route",
				"virtual_hosts[0].routes[0].request_headers_to_add[2].append_action: ADD_IF_ABSENT is not implemented",
				`virtual_hosts[0].routes[0].request_headers_to_add[3].header.key: "x b" is no header name`,
				`virtual_hosts[0].routes[0].response_headers_to_remove[0]: ":status" is no header name`,
				"virtual_hosts[0].routes[0].response_headers_to_remove[1]: content-length cannot be changed by a route",
			}},
		{"retries", oneHost(`
- match: {prefix: /}
  route:
    cluster: c
    retry_policy:
      retry_on: 5xx,retriable-headers
      num_retries: 1000
      retriable_status_codes: [42]
      retry_host_predicate: [{name: envoy.retry_host_predicates.omit_canary_hosts}]
      retry_back_off: {base_interval: 0s}`),
			[]string{
				`virtual_hosts[0].routes[0].route.retry_policy.retry_on: "retriable-headers" is not implemented`,
				"virtual_hosts[0].routes[0].route.retry_policy.num_retries: 1000, want at most 100",
				"virtual_hosts[0].routes[0].route.retry_policy.retriable_status_codes[0]: 42, want 200 to 599",
				`virtual_hosts[0].routes[0].route.retry_policy.retry_host_predicate[0].name: "envoy.retry_host_predicates.omit_canary_hosts" is not implemented`,
				"virtual_hosts[0].routes[0].route.retry_policy.retry_back_off.base_interval: 0s, want more than 0 and at most 1h0m0s",
			}},
		{"regex rewrites", oneHost(`
- match: {prefix: /}
  route: {cluster: c, prefix_rewrite: /x, regex_rewrite: {pattern: {regex: '(a)'}, substitution: '\2'}}
- match: {prefix: /}
  route: {cluster: c, regex_rewrite: {pattern: {regex: '(a)'}, substitution: '\x'}}`),
			[]string{
				"virtual_hosts[0].routes[0].route.regex_rewrite: beside prefix_rewrite",
				`virtual_hosts[0].routes[0].route.regex_rewrite.substitution: "\\2": there is no such group`,
				`virtual_hosts[0].routes[1].route.regex_rewrite.substitution: "\\x": \ is followed by neither a digit nor \`,
			}},
		{"rewrites that would split the request", oneHost(`
- match: {prefix: /}
  route: {cluster: c, prefix_rewrite: "/a HTTP/1.1\r\nHost: evil\r\nX: ", host_rewrite_literal: "a\r\nX: b"}
- match: {prefix: /}
  route: {cluster: c, prefix_rewrite: /ä, host_rewrite_literal: "a:70000"}
- match: {prefix: /}
  route: {cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: "b\tc"}, host_rewrite_literal: a/b}
- match: {prefix: /}
  route: {cluster: c, host_rewrite_literal: "a:"}
- match: {prefix: /}
  route: {cluster: c, prefix_rewrite: "/\x7f", host_rewrite_literal: "[::1]:80"}`),
			[]string{
				`virtual_hosts[0].routes[0].route.host_rewrite_literal: "a\r\nX: b", want host or host:port`,
				`virtual_hosts[0].routes[0].route.prefix_rewrite: "/a HTTP/1.1\r\nHost: evil\r\nX: ", want no space, control or non-ASCII character`,
				`virtual_hosts[0].routes[1].route.host_rewrite_literal: "a:70000", want host or host:port`,
				`virtual_hosts[0].routes[1].route.prefix_rewrite: "/ä", want no space, control or non-ASCII character`,
				`virtual_hosts[0].routes[2].route.host_rewrite_literal: "a/b", want host or host:port`,
				`virtual_hosts[0].routes[2].route.regex_rewrite.substitution: "b\tc", want no space, control or non-ASCII character`,
				`virtual_hosts[0].routes[3].route.host_rewrite_literal: "a:", want host or host:port`,
				`virtual_hosts[0].routes[4].route.prefix_rewrite: "/\x7f", want no space, control or non-ASCII character`,
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile(parse(t, tt.config), clusters())
			if err == nil {
				t.Fatal("accepted")
			}
			if d := cmp.Diff(tt.want, strings.Split(err.Error(), "\n")); d != "" {
				t.Errorf("mistakes (-want +got):\n%s", d)
			}
		})
	}
}

func TestHeaderChangesMergeInEnvoysOrder(t *testing.T) {
	const config = `
request_headers_to_add: [{header: {key: x-set, value: top}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-add, value: top}}]
response_headers_to_add: [{header: {key: x-r, value: '100%%'}}]
virtual_hosts:
- name: v
  domains: ['*']
  request_headers_to_remove: [x-gone]
  request_headers_to_add: [{header: {key: x-add, value: vhost}}]
  routes:
  - match: {prefix: /}
    request_headers_to_add: [{header: {key: X-Set, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-gone, value: route}}, {header: {key: x-empty, value: ''}}, {header: {key: x-kept, value: ''}, keep_empty_value: true}]
    route:
      weighted_clusters:
        clusters:
        - {name: a, weight: 1, request_headers_to_add: [{header: {key: x-set, value: cluster}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-add, value: cluster}}], response_headers_to_remove: [server]}`
	for _, tt := range []struct {
		name, config string
		want         HeaderOps
	}{
		{"the general level comes last and wins", config, HeaderOps{
			Remove: []string{"x-gone"},
			Set:    []HeaderValue{{"x-set", "top"}},
			Add:    []HeaderValue{{"x-add", "cluster"}, {"x-kept", ""}, {"x-add", "vhost"}, {"x-add", "top"}},
		}},
		{"unless the special one is to win", "most_specific_header_mutations_wins: true" + config, HeaderOps{
			Remove: []string{"x-gone"},
			Set:    []HeaderValue{{"x-set", "cluster"}},
			Add:    []HeaderValue{{"x-add", "top"}, {"x-add", "vhost"}, {"x-gone", "route"}, {"x-kept", ""}, {"x-add", "cluster"}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := compile(t, tt.config).Match(req("GET h/"), 0).Pick(0)
			if diff := cmp.Diff(tt.want, d.Request); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			want := HeaderOps{Remove: []string{"server"}, Add: []HeaderValue{{"x-r", "100%"}}}
			if diff := cmp.Diff(want, d.Response); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTimeoutsAndRetries(t *testing.T) {
	for _, tt := range []struct {
		route         string
		timeout, idle time.Duration
		retry         *Retry
	}{
		{"", 15 * time.Second, 0, nil},
		{", timeout: 0s, idle_timeout: 0s", 0, -1, nil},
		{", timeout: 2s, idle_timeout: 3s", 2 * time.Second, 3 * time.Second, nil},
		{", timeout: 0s, max_stream_duration: {max_stream_duration: 4s}", 4 * time.Second, 0, nil},
		{", max_stream_duration: {max_stream_duration: 0s}", 15 * time.Second, 0, nil},
		{", retry_policy: {retry_on: 'connect-failure, reset,,retriable-status-codes', retriable_status_codes: [503]}", 15 * time.Second, 0,
			&Retry{On: ConnectFailure | Reset | RetriableStatusCodes, StatusCodes: []int{503}, Attempts: 1}},
		{", retry_policy: {retry_on: 5xx, num_retries: 0}", 15 * time.Second, 0, nil},
		{", retry_policy: {num_retries: 3}", 15 * time.Second, 0, nil},
		{", retry_policy: {retry_on: unavailable, num_retries: 3, per_try_timeout: 1s, retry_back_off: {base_interval: 1s, max_interval: 2s}, host_selection_retry_max_attempts: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}", 15 * time.Second, 0,
			&Retry{On: Unavailable, Attempts: 3, PerTryTimeout: time.Second, Backoff: time.Second, MaxBackoff: 2 * time.Second, AvoidTried: true}},
	} {
		route := compile(t, oneHost("- {match: {prefix: /}, route: {cluster: c"+tt.route+"}}")).Match(req("GET h/"), 0)
		if route.Timeout != tt.timeout || route.IdleTimeout != tt.idle {
			t.Errorf("%s: got timeout %v, idle %v; want %v, %v", tt.route, route.Timeout, route.IdleTimeout, tt.timeout, tt.idle)
		}
		if d := cmp.Diff(tt.retry, route.Retry); d != "" {
			t.Errorf("%s: retry (-want +got):\n%s", tt.route, d)
		}
	}
	inherited := compile(t, `
virtual_hosts:
- name: v
  domains: ['*']
  retry_policy: {retry_on: reset}
  routes: [{match: {prefix: /}, route: {cluster: c}}]`).Match(req("GET h/"), 0)
	if inherited.Retry == nil || inherited.Retry.On != Reset {
		t.Errorf("retry policy of the virtual host: got %+v", inherited.Retry)
	}
}

func FuzzCompile(f *testing.F) {
	for _, text := range []string{
		oneHost("- {match: {prefix: /}, route: {cluster: c}}"),
		oneHost("- {match: {safe_regex: {regex: '(a|b)+'}}, redirect: {path_redirect: /x}}"),
		oneHost("- {match: {path: /, headers: [{name: x, range_match: {start: 1, end: 2}}]}, direct_response: {status: 200, body: {inline_string: x}}}"),
		"virtual_hosts: [{name: a, domains: ['*.b', 'c.*', '*']}]",
	} {
		b, err := proto.Marshal(parse(f, text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "/a/b?c=d", "x.b")
	}
	f.Fuzz(func(t *testing.T, body []byte, path, authority string) {
		var rc routev3.RouteConfiguration
		if proto.Unmarshal(body, &rc) != nil {
			return
		}
		table, err := Compile(&rc, clusters())
		if err != nil {
			if _, ok := errors.AsType[*fields.Error](err); !ok {
				t.Fatalf("an error without a path: %v", err)
			}
			return
		}
		r := &request{method: "GET", path: path, authority: authority}
		route := table.Match(r, 1)
		if route == nil {
			return
		}
		if (route.Destinations != nil) == (route.Direct != nil || route.Redirect != nil) {
			t.Fatalf("route is none or several of forward, direct and redirect: %+v", route)
		}
		if route.Destinations != nil && route.Pick(7) == nil {
			t.Fatal("no destination")
		}
		route.RewritePath(nil, []byte(path))
		route.Hash(r)
		if route.Redirect != nil {
			route.AppendLocation(nil, r, "http")
		}
	})
}
