//go:build integration

package conformance_test

import (
	"cmp"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// row is a request and what is right about its answer; empty fields are only
// compared between the proxies.
type row struct {
	name              string
	method, url, body string
	headers           map[string]string

	status        int               // 0 means 200
	version       string            // of the application that answered
	path, host    string            // as the application saw them
	received      map[string]string // headers that it saw; "" means absent
	response      map[string]string // headers of the response; "" means absent
	text          string            // body
	covers        string            // fields of docs/rules.md, "VS http[].name, DR host"
	indeterminate bool              // which instance answers is open
}

type m = map[string]string

var table = []row{
	{name: "a plain request", url: "http://match.test/", version: "v1", path: "/", host: "match.test", covers: "VS hosts[], VS http[].route[].destination.host, VS http[].route[].destination.subset, DR host, DR subsets[].name, DR subsets[].labels{}, SE hosts[], SE ports[].number, SE ports[].protocol, SE ports[].name, SE endpoints[].address, SE endpoints[].ports{}, SE endpoints[].labels{}, SE endpoints[].locality"},
	{name: "host with its port", url: "http://match.test:80/", version: "v1"},
	{name: "host in capitals", url: "http://MATCH.test/", version: "v1"},
	{name: "the other port of a service", url: "http://match.test:8080/x", version: "v1", covers: "SE ports[].targetPort"},
	{name: "a service by its address", url: "http://240.0.0.9/", indeterminate: true, covers: "SE addresses[]"},
	{name: "an unknown host", url: "http://nobody.test/", status: 404},
	{name: "an unknown port", url: "http://match.test:81/", status: 404},
	{name: "exact path", url: "http://match.test/exact", version: "v2", covers: "VS http[].name, VS http[].match[].name, VS http[].match[].uri.exact"},
	{name: "exact path with a query", url: "http://match.test/exact?a=b", version: "v2", path: "/exact?a=b"},
	{name: "longer than the exact path", url: "http://match.test/exact/", version: "v1"},
	{name: "exact path in capitals", url: "http://match.test/EXACT", version: "v1"},
	{name: "prefix", url: "http://match.test/prefix/more", version: "v2", covers: "VS http[].match[].uri.prefix"},
	{name: "prefix without a slash behind", url: "http://match.test/prefixes", version: "v2"},
	{name: "regex", url: "http://match.test/re/abc?x=1", version: "v2", covers: "VS http[].match[].uri.regex"},
	{name: "regex matches the whole path", url: "http://match.test/re/abcd", version: "v1"},
	{name: "method exact", method: "PUT", url: "http://match.test/", body: "x", version: "v2", covers: "VS http[].match[].method.exact"},
	{name: "method prefix", method: "PATCH", url: "http://match.test/", version: "v2", covers: "VS http[].match[].method.prefix"},
	{name: "method regex", method: "DELETE", url: "http://match.test/", version: "v2", covers: "VS http[].match[].method.regex"},
	{name: "another method", method: "POST", url: "http://match.test/", body: "abc", version: "v1"},
	{name: "header exact", url: "http://match.test/", headers: m{"X-Exact": "one"}, version: "v2", covers: "VS http[].match[].headers{}, VS http[].match[].headers{}.exact"},
	{name: "header exact, with case", url: "http://match.test/", headers: m{"X-Exact": "One"}, version: "v1"},
	{name: "header prefix", url: "http://match.test/", headers: m{"X-Prefix": "two"}, version: "v2", covers: "VS http[].match[].headers{}.prefix"},
	{name: "header regex", url: "http://match.test/", headers: m{"X-Regex": "three"}, version: "v2", covers: "VS http[].match[].headers{}.regex"},
	{name: "header regex, whole value", url: "http://match.test/", headers: m{"X-Regex": "threes"}, version: "v1"},
	{name: "header present and another", url: "http://match.test/", headers: m{"X-There": "", "X-And": "both"}, version: "v2"},
	{name: "one of two headers", url: "http://match.test/", headers: m{"X-And": "both"}, version: "v1"},
	{name: "labels of the caller", url: "http://match.test/caller", version: "v2", covers: "VS http[].match[].sourceLabels{}"},
	{name: "labels of another caller", url: "http://match.test/stranger", version: "v1"},
	{name: "namespace of the caller", url: "http://match.test/here", version: "v2", covers: "VS http[].match[].sourceNamespace"},
	{name: "another namespace", url: "http://match.test/there", version: "v1"},
	{name: "the port that a match asks for", url: "http://match.test:8080/port", text: "the other port", covers: "VS http[].match[].port"},
	{name: "a port that it does not ask for", url: "http://match.test/port", version: "v1"},
	{name: "authority exact", url: "http://match.test/authority/exact", version: "v2", covers: "VS http[].match[].authority.exact"},
	{name: "authority exact, with a port", url: "http://match.test:80/authority/exact"},
	{name: "authority prefix", url: "http://match.test/authority/prefix", version: "v2", covers: "VS http[].match[].authority.prefix"},
	{name: "authority regex", url: "http://match.test/authority/regex", version: "v2", covers: "VS http[].match[].authority.regex"},
	{name: "another service's port", url: "http://match.test/elsewhere", host: "elsewhere.example", indeterminate: true, covers: "VS http[].route[].destination.port.number"},
	{name: "no endpoints", url: "http://match.test/empty", status: 503},
	{name: "a service without endpoints", url: "http://empty.test/", status: 503},
	{name: "nobody listens", url: "http://dead.test/", status: 503},
	{name: "a wildcard host", url: "http://star.wild.test/", status: 203, text: "wild"},
	{name: "a short name in a rule", url: "http://reviews.default.svc.cluster.local/", status: 202, text: "short", covers: "VS http[].directResponse.body.bytes"},
	{name: "a short name from the caller", url: "http://reviews/", status: 202, text: "short"},
	{name: "prefix rewritten", url: "http://change.test/old/x?y=/old", path: "/new/x?y=/old", indeterminate: true, covers: "VS http[].rewrite.uri"},
	{name: "exact path and host rewritten", url: "http://change.test/one?q", path: "/other?q", host: "host.example", indeterminate: true, covers: "VS http[].rewrite.authority"},
	{name: "regex match rewritten", url: "http://change.test/r7?q", path: "/number?q", indeterminate: true},
	{
		name: "header changes", url: "http://change.test/headers", headers: m{"X-Gone": "1", "X-Gone-Too": "1", "X-Set": "caller", "X-Add": "caller"}, indeterminate: true,
		received: m{"X-Set": "route", "X-Route": "r", "X-Add": "caller, destination, route", "X-Gone": "", "X-Gone-Too": "", "X-Cluster-Set": ""},
		response: m{"X-Resp": "route", "X-Resp-Add": "destination, route", "X-Echo-Id": "", "X-Echo-Version": ""},
		covers: "VS http[].headers.request.set{}, VS http[].headers.request.add{}, VS http[].headers.request.remove[], VS http[].headers.response.set{}, VS http[].headers.response.add{}, VS http[].headers.response.remove[], " +
			"VS http[].route[].headers.request.set{}, VS http[].route[].headers.request.add{}, VS http[].route[].headers.request.remove[], VS http[].route[].headers.response.set{}, VS http[].route[].headers.response.add{}, VS http[].route[].headers.response.remove[]",
	},
	{name: "redirect of the path", url: "http://change.test/moved?q=1", status: 301, response: m{"Location": "http://change.test/here?q=1"}, covers: "VS http[].redirect.uri"},
	{name: "redirect of all", url: "http://change.test/away", status: 308, response: m{"Location": "https://away.example:8443/there"}, covers: "VS http[].redirect.redirectCode, VS http[].redirect.scheme"},
	{name: "redirect of the host", url: "http://change.test/host/x?q", status: 307, response: m{"Location": "http://host.example/host/x?q"}, covers: "VS http[].redirect.authority"},
	{name: "redirect of the port", url: "http://change.test/found", status: 302, response: m{"Location": "http://change.test:8080/found"}, covers: "VS http[].redirect.port"},
	{name: "redirect of the scheme", url: "http://change.test:80/other", status: 303, response: m{"Location": "https://change.test/other"}},
	{name: "a direct response without a body", url: "http://change.test/teapot", status: 418, covers: "VS http[].directResponse.status"},
	{name: "a direct response with one", url: "http://match.test:8080/port/x", text: "the other port", covers: "VS http[].directResponse.body.string"},
	{name: "a direct response to HEAD", method: "HEAD", url: "http://match.test:8080/port", status: 200},
	{name: "within the time-out", url: "http://change.test/quick?delay=10ms", indeterminate: true},
	{name: "over the time-out", url: "http://change.test/quick?delay=2s", status: 504, covers: "VS http[].timeout"},
	{name: "no retry", url: "http://flaky.test/none", headers: m{"X-Fail": "1", "X-Status": "503"}, status: 503, response: m{"X-Attempt": "1"}},
	{name: "default retries of GET on 503", url: "http://flaky.test/", headers: m{"X-Fail": "2", "X-Status": "503"}, response: m{"X-Attempt": "3"}},
	{name: "default retries end", url: "http://flaky.test/", headers: m{"X-Fail": "3", "X-Status": "503"}, status: 503, response: m{"X-Attempt": "3"}},
	{name: "default retries of GET on reset", url: "http://flaky.test/", headers: m{"X-Fail": "2", "X-Status": "reset"}, response: m{"X-Attempt": "3"}},
	{name: "no default retry on 500", url: "http://flaky.test/", headers: m{"X-Fail": "1", "X-Status": "500"}, status: 500, response: m{"X-Attempt": "1"}},
	{name: "no default retry of POST on 503", method: "POST", body: "b", url: "http://flaky.test/", headers: m{"X-Fail": "1", "X-Status": "503"}, status: 503, response: m{"X-Attempt": "1"}},
	{name: "no default retry of POST on reset", method: "POST", body: "b", url: "http://flaky.test/", headers: m{"X-Fail": "1", "X-Status": "reset"}, status: 503},
	{name: "retries on 5xx", method: "POST", body: "b", url: "http://flaky.test/five", headers: m{"X-Fail": "3", "X-Status": "500"}, response: m{"X-Attempt": "4"}, covers: "VS http[].retries.attempts, VS http[].retries.retryOn"},
	{name: "5xx is not 4xx", url: "http://flaky.test/five", headers: m{"X-Fail": "1", "X-Status": "404"}, status: 404, response: m{"X-Attempt": "1"}},
	{name: "gateway errors", url: "http://flaky.test/gateway", headers: m{"X-Fail": "1", "X-Status": "502"}, response: m{"X-Attempt": "2"}},
	{name: "500 is no gateway error", url: "http://flaky.test/gateway", headers: m{"X-Fail": "1", "X-Status": "500"}, status: 500},
	{name: "status codes", url: "http://flaky.test/codes", headers: m{"X-Fail": "1", "X-Status": "429"}, response: m{"X-Attempt": "2"}},
	{name: "409", url: "http://flaky.test/conflict", headers: m{"X-Fail": "1", "X-Status": "409"}, response: m{"X-Attempt": "2"}},
	{name: "reset", method: "POST", body: "b", url: "http://flaky.test/reset", headers: m{"X-Fail": "2", "X-Status": "reset"}, response: m{"X-Attempt": "3"}},
	{name: "time-out of a try", url: "http://flaky.test/try", headers: m{"X-Fail": "1", "X-Status": "silence"}, response: m{"X-Attempt": "2"}, covers: "VS http[].retries.perTryTimeout"},
	{name: "hash of a", url: "http://hash.test/", headers: m{"X-User": "a"}},
	{name: "hash of b", url: "http://hash.test/", headers: m{"X-User": "b"}},
	{name: "hash of c", url: "http://hash.test/", headers: m{"X-User": "c"}, covers: "DR trafficPolicy.loadBalancer.consistentHash.httpHeaderName, DR trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize"},
	{name: "hash of d", url: "http://hash.test/", headers: m{"X-User": "d"}},
	{name: "hash of e", url: "http://hash.test/", headers: m{"X-User": "e"}},
	{name: "a body", method: "POST", url: "http://match.test/", body: strings.Repeat("0123456789", 20000), version: "v1"},
	{name: "one request a connection", url: "http://pool.test/", indeterminate: true, covers: "DR trafficPolicy.connectionPool.tcp.connectTimeout, DR trafficPolicy.connectionPool.http.maxRequestsPerConnection, DR trafficPolicy.connectionPool.http.idleTimeout, DR trafficPolicy.connectionPool.http.maxRetries"},
}

func TestSidecarAndEnvoyAnswerAlike(t *testing.T) {
	both := subjects(t)
	for _, r := range table {
		t.Run(r.name, func(t *testing.T) {
			var got [2]outcome
			for i, p := range both {
				got[i] = r.ask(t, p)
				r.check(t, p.name, got[i])
				if r.indeterminate {
					got[i].Version = ""
					delete(got[i].Headers, "X-Echo-Id")
					delete(got[i].Headers, "X-Echo-Version")
				}
				delete(got[i].Received, "X-Key")
			}
			if d := gocmp.Diff(got[1], got[0]); d != "" {
				t.Errorf("answers differ (-Envoy +sidecar):\n%s", d)
			}
		})
	}
	for _, p := range both {
		t.Run("shares through "+p.name, func(t *testing.T) { shares(t, p) })
	}
}

// check compares with what the row says.
func (r *row) check(t *testing.T, who string, got outcome) {
	t.Helper()
	if want := cmp.Or(r.status, http.StatusOK); got.Status != want {
		t.Errorf("%s: got status %d, want %d; body %.300s", who, got.Status, want, got.Body)
	}
	for _, f := range []struct{ what, got, want string }{
		{"version", got.Version, r.version}, {"path", got.Path, r.path}, {"host", got.Host, r.host}, {"body", got.Body, r.text},
	} {
		if f.want != "" && f.got != f.want {
			t.Errorf("%s: got %s %q, want %q", who, f.what, f.got, f.want)
		}
	}
	for name, want := range r.received {
		if v := strings.Join(got.Received[name], ", "); v != want {
			t.Errorf("%s: the application saw %s: %q, want %q", who, name, v, want)
		}
	}
	for name, want := range r.response {
		if v := strings.Join(got.Headers[name], ", "); v != want {
			t.Errorf("%s: the caller saw %s: %q, want %q", who, name, v, want)
		}
	}
	if r.body != "" && got.Version != "" && got.Sent != r.body {
		t.Errorf("%s: the application got %d bytes of body, want %d", who, len(got.Sent), len(r.body))
	}
}

// samples is how many requests a share is measured by; a share may be off by
// four standard deviations at most.
const samples = 400

// shareRows are requests that many answers share.
var shareRows = []struct {
	url, covers string
	v2          float64
	exact       bool // not drawn by lot
}{
	{"http://match.test/split", "VS http[].route[].weight", 0.10, false},
	{"http://weighted.test/", "SE endpoints[].weight, DR trafficPolicy.loadBalancer.simple", 0.25, true},
	{"http://selected.test/", "SE workloadSelector.labels{}, WE address, WE ports{}, WE labels{}, WE locality, WE weight", 0.75, true},
}

const streamCovers = "VS tcp[].match[].port, VS tcp[].match[].sourceLabels{}, VS tcp[].match[].sourceNamespace, VS tcp[].route[].destination.host, VS tcp[].route[].destination.subset, VS tcp[].route[].destination.port.number, VS tcp[].route[].weight"

func shares(t *testing.T, p proxy) {
	for _, s := range shareRows {
		r := row{name: s.url, url: s.url}
		v2 := 0
		for range samples {
			if r.ask(t, p).Version == "v2" {
				v2++
			}
		}
		within := 0.1
		if s.exact {
			within = 0.01
		}
		if got := float64(v2) / samples; got < s.v2-within || got > s.v2+within {
			t.Errorf("%s: v2 got %.3f of the requests, want %.2f within %.2f", s.url, got, s.v2, within)
		}
	}
	v2 := 0
	for range samples {
		switch banner(p.stream) {
		case "v2":
			v2++
		case "":
			t.Fatal("a TCP connection was not served")
		}
	}
	if got := float64(v2) / samples; got < 0.65 || got > 0.85 {
		t.Errorf("TCP: v2 got %.3f of the connections, want 0.75 within 0.1", got)
	}

	// Two of three slow requests find room.
	var group sync.WaitGroup
	statuses := make([]int, 3)
	for i := range statuses {
		group.Go(func() {
			slow := row{url: "http://pool.test/?delay=1s"}
			statuses[i] = slow.ask(t, p).Status
		})
	}
	group.Wait()
	count := map[int]int{}
	for _, s := range statuses {
		count[s]++
	}
	if d := gocmp.Diff(map[int]int{200: 2, 503: 1}, count); d != "" {
		t.Errorf("three slow requests where two may be under way (-want +got):\n%s", d)
	}
}

const limitCovers = "DR trafficPolicy.connectionPool.http.http2MaxRequests"

// elsewhere are enforced fields that no request of the table shows, with the
// reason or the test that does.
var elsewhere = map[string]string{
	"DR trafficPolicy.connectionPool.tcp.maxConnections": "proxy/upstream TestLimitsAndBudget",
	"DR trafficPolicy.retryBudget.percent":               "proxy/upstream TestLimitsAndBudget",
	"DR trafficPolicy.retryBudget.minRetryConcurrency":   "proxy/upstream TestLimitsAndBudget",
}

func TestTheTableCoversEveryEnforcedField(t *testing.T) {
	covered := map[string]bool{}
	cover := func(list string) {
		for f := range strings.SplitSeq(list, ", ") {
			covered[f] = true
		}
	}
	for _, r := range table {
		cover(r.covers)
	}
	for _, s := range shareRows {
		cover(s.covers)
	}
	cover(streamCovers)
	cover(limitCovers)
	doc, err := os.ReadFile("../../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{"## VirtualService": "VS", "## DestinationRule": "DR", "## ServiceEntry": "SE", "## WorkloadEntry": "WE"}
	kind, fields := "", 0
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "## ") {
			kind = kinds[line]
		}
		cells := strings.Split(line, "|")
		if kind == "" || len(cells) < 4 || strings.TrimSpace(cells[2]) != "enforced" {
			continue
		}
		fields++
		name := kind + " " + strings.Trim(strings.TrimSpace(cells[1]), "`")
		// Subsets have the same policies as hosts.
		name = strings.Replace(name, "DR subsets[].trafficPolicy.", "DR trafficPolicy.", 1)
		if !covered[name] && elsewhere[name] == "" {
			t.Errorf("no row covers %s", name)
		}
	}
	if fields < 80 {
		t.Errorf("docs/rules.md names %d enforced fields, want at least 80: was its form changed?", fields)
	}
	if len(table) < 60 {
		t.Errorf("the table has %d rows, want at least 60", len(table))
	}
}
