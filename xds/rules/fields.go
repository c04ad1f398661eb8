package rules

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// State says what the mesh does with a field.
type State uint8

// States of a field.
const (
	Refused  State = iota // setting it is a mistake
	Enforced              // it shapes resources
	Default               // accepted only with the value that changes nothing
	Checked               // accepted, and other fields are checked against it
)

var stateNames = [...]string{"refused", "enforced", "default only", "checked"}

// String is the word used in docs/rules.md.
func (s State) String() string { return stateNames[s] }

// Field is one field of the rules API.
type Field struct {
	Kind   Kind
	Path   string // below spec: "http[].match[].uri.exact"; "{}" is any key of a map
	State  State
	Values []string // of an enum or a Default field: what is accepted; else nil
	Note   string   // what it does, for the documentation
}

func (f Field) allows(value string) bool {
	return f.Values == nil || slices.Contains(f.Values, value)
}

// Fields returns every field of the API, in the order of the API's own
// documentation. Below a refused message nothing is listed: all of it is refused.
func Fields() []Field {
	var all []Field
	for _, k := range Kinds() {
		all = walk(all, k, k.newSpec().ProtoReflect().Descriptor(), "")
	}
	return all
}

func walk(all []Field, k Kind, m protoreflect.MessageDescriptor, prefix string) []Field {
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		path := fd.JSONName()
		if prefix != "" {
			path = prefix + "." + path
		}
		value := fd.Message()
		switch {
		case fd.IsMap():
			path += "{}"
			value = fd.MapValue().Message()
		case fd.IsList():
			path += "[]"
		}
		f := fieldAt(k, path)
		leaf := value == nil || value.ParentFile().Package() == "google.protobuf"
		if leaf || f.State == Refused {
			all = append(all, f)
			continue
		}
		if f.Note != "" {
			all = append(all, f) // a message with a meaning of its own, beside its fields
		}
		all = walk(all, k, value, path)
	}
	return all
}

// fieldAt looks a path up. A list or map may be asked for with or without its
// "[]" or "{}"; a message is enforced when anything below it is.
func fieldAt(k Kind, path string) Field {
	found := Field{Kind: k, Path: path}
	for _, f := range enforced[k] {
		rest, ok := strings.CutPrefix(f.Path, path)
		switch {
		case !ok:
		case rest == "" || rest == "[]" || rest == "{}":
			f.Kind, f.Path = k, path
			return f
		case strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "[].") || strings.HasPrefix(rest, "{}."):
			found.State = Enforced
		}
	}
	return found
}

// enforced is the table of what the mesh enforces; what is not in it is refused.
// xds/translate proves each line by a change of resources.
var enforced = map[Kind][]Field{
	VirtualService:  virtualServiceFields(),
	DestinationRule: destinationRuleFields(),
	ServiceEntry: {
		enforce("hosts[]", "names under which callers know the service; no wildcards"),
		enforce("addresses[]", "single IPs that the explicit HTTP proxy knows the service by; no CIDR blocks"),
		enforce("ports[].number", "the port that callers use"),
		{Path: "ports[].protocol", State: Enforced, Note: "HTTP, HTTP2, GRPC, TCP, TLS or HTTPS, DUBBO, TRI, BOLT"},
		enforce("ports[].name", "a key of endpoints[].ports"),
		enforce("ports[].targetPort", "the endpoints' port, where they name none"),
		{Path: "location", State: Checked, Values: []string{"MESH_EXTERNAL", "MESH_INTERNAL"}, Note: "workloadSelector wants MESH_INTERNAL"},
		{Path: "resolution", State: Checked, Values: []string{"STATIC"}, Note: "must be written: Istio's default NONE is refused"},
		enforce("endpoints[].address", "an IP address"),
		enforce("endpoints[].ports{}", "port by the name of a service port"),
		enforce("endpoints[].labels{}", "what subsets choose by"),
		enforce("endpoints[].locality", "region/zone/subzone"),
		enforce("endpoints[].weight", "relative to the other endpoints; 0 or none is 100"),
		enforce("workloadSelector.labels{}", "takes the WorkloadEntries of the namespace that carry the labels as endpoints"),
		{Path: "exportTo[]", State: Default, Values: []string{"*"}, Note: "every service is visible everywhere"},
	},
	WorkloadEntry: {
		enforce("address", "an IP address"),
		enforce("ports{}", "port by the name of a service port"),
		enforce("labels{}", "what workloadSelector and subsets choose by"),
		enforce("locality", "region/zone/subzone"),
		enforce("weight", "relative to the other endpoints; 0 or none is 100"),
	},
}

func enforce(path, note string) Field { return Field{Path: path, State: Enforced, Note: note} }

// below puts fields under a message.
func below(prefix string, fields ...Field) []Field {
	out := slices.Clone(fields)
	for i := range out {
		out[i].Path = prefix + "." + out[i].Path
	}
	return out
}

func virtualServiceFields() []Field {
	stringMatch := []Field{
		enforce("exact", "equal, with case"),
		enforce("prefix", "begins with, with case"),
		enforce("regex", "RE2, matching the whole value"),
	}
	source := []Field{
		enforce("port", "the service port that the caller uses"),
		enforce("sourceLabels{}", "labels of the caller's workload"),
		enforce("sourceNamespace", "namespace of the caller's workload"),
		{Path: "gateways[]", State: Default, Values: []string{"mesh"}, Note: "sidecars only; there are no gateways yet"},
	}
	destination := []Field{
		enforce("host", "a service, or <host>@<registry> for the part that one registry holds"),
		enforce("subset", "a subset of the host's DestinationRule"),
		enforce("port.number", "needed where the service has several ports, none of them the caller's"),
	}
	headers := slices.Concat(
		below("request", enforce("set{}", "replaces"), enforce("add{}", "appends"), enforce("remove[]", "removes")),
		below("response", enforce("set{}", "replaces"), enforce("add{}", "appends"), enforce("remove[]", "removes")),
	)
	match := slices.Concat(
		[]Field{enforce("name", "shown in the route's name")},
		below("uri", stringMatch...), below("method", stringMatch...), below("authority", stringMatch...),
		[]Field{enforce("headers{}", "names without case; an empty match wants the header to be there")},
		below("headers{}", stringMatch...), source,
	)
	route := slices.Concat(below("destination", destination...),
		[]Field{enforce("weight", "share of the sum; a single destination takes all")}, below("headers", headers...))
	return slices.Concat(
		[]Field{
			enforce("hosts[]", "exact, *.suffix, * or the short name of a Kubernetes service"),
			{Path: "gateways[]", State: Default, Values: []string{"mesh"}, Note: "sidecars only; there are no gateways yet"},
			{Path: "exportTo[]", State: Default, Values: []string{"*"}, Note: "every rule is visible everywhere"},
			enforce("http[].name", "name of the route, for logs and dumps"),
		},
		below("http[].match[]", match...), below("http[].route[]", route...),
		below("http[].redirect", enforce("uri", "new path; the query string stays"), enforce("authority", "new host"),
			enforce("port", "new port"), enforce("scheme", "http or https"), enforce("redirectCode", "301, 302, 303, 307 or 308; 301 by default")),
		below("http[].directResponse", enforce("status", "200 to 599"), enforce("body.string", "at most 4096 bytes"), enforce("body.bytes", "at most 4096 bytes")),
		below("http[].rewrite", enforce("uri", "replaces the matched prefix, or the path that matched exactly or by regex"), enforce("authority", "new Host or :authority")),
		[]Field{enforce("http[].timeout", "of the whole exchange, retries included; none by default")},
		below("http[].retries", enforce("attempts", "retries after the first try; 0 switches them off"),
			enforce("perTryTimeout", "of each try"), enforce("retryOn", "when to retry, for every method; see below for the default")),
		below("http[].headers", headers...),
		below("tcp[].match[]", source...),
		below("tcp[].route[]", slices.Concat(below("destination", destination...), []Field{enforce("weight", "share of the connections")})...),
	)
}

func destinationRuleFields() []Field {
	policy := slices.Concat(
		[]Field{{Path: "loadBalancer.simple", State: Enforced, Values: []string{"UNSPECIFIED", "ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"},
			Note: "LEAST_REQUEST by default"}},
		below("loadBalancer.consistentHash", enforce("httpHeaderName", "ring hash over a request header"),
			enforce("ringHash.minimumRingSize", "1024 by default")),
		below("connectionPool.tcp", enforce("maxConnections", "open connections to the destination"),
			enforce("connectTimeout", "2s by default")),
		below("connectionPool.http",
			enforce("http2MaxRequests", "requests under way, HTTP/1 too"),
			enforce("maxRequestsPerConnection", "then the connection is closed; 1 means no keep-alive"),
			enforce("maxRetries", "retries under way; replaces the retry budget"),
			enforce("idleTimeout", "of a connection without requests; one hour by default")),
		below("retryBudget", enforce("percent", "retries under way, of the requests under way; 80 by default"),
			enforce("minRetryConcurrency", "retries that are always allowed; 32 by default")),
	)
	return slices.Concat(
		[]Field{enforce("host", "exact, *.suffix or the short name of a Kubernetes service")},
		below("trafficPolicy", policy...),
		[]Field{enforce("subsets[].name", "what routes name it by"), enforce("subsets[].labels{}", "endpoints that carry all of them")},
		below("subsets[].trafficPolicy", policy...),
		[]Field{{Path: "exportTo[]", State: Default, Values: []string{"*"}, Note: "every rule is visible everywhere"}},
	)
}
