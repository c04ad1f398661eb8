package rules

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

func virtual(namespace, name string, created int64, hosts ...string) *Rule {
	r := &Rule{Kind: VirtualService, Namespace: namespace, Name: name, Spec: &networking.VirtualService{Hosts: hosts}}
	if created != 0 {
		r.Created = time.Unix(created, 0)
	}
	return r
}

func destination(namespace, name, host string) *Rule {
	return &Rule{Kind: DestinationRule, Namespace: namespace, Name: name, Spec: &networking.DestinationRule{Host: host}}
}

func TestVirtualServiceForHost(t *testing.T) {
	set := NewSet(
		virtual("default", "exact", 5, "Cart"),
		virtual("default", "newer", 9, "cart"),
		virtual("shop", "short", 7, "reviews"),
		virtual("books", "other-short", 3, "reviews"),
		virtual("default", "suffix", 0, "*.acme.com"),
		virtual("default", "longer", 0, "*.eu.acme.com"),
		virtual("default", "java", 0, "com.acme.Greeting"),
	)
	all := set.With(virtual("default", "any", 0, "*"))
	tests := []struct {
		name string
		set  Set
		host model.Host
		want string
	}{
		{"the older of two exact rules, without case", set, "cart", "exact"},
		{"a part that one registry holds is ruled as the whole", set, "cart@zk-main", "exact"},
		{"a short name stands for the Kubernetes host in its namespace", set, "reviews.shop.svc.cluster.local", "short"},
		{"and so in the other namespace", set, "reviews.books.svc.cluster.local", "other-short"},
		{"a short name is a registry's host too, the oldest rule's", set, "reviews", "other-short"},
		{"a short name is not completed with another namespace", set, "reviews.else.svc.cluster.local", ""},
		{"a wildcard", set, "a.acme.com", "suffix"},
		{"the longest wildcard", set, "a.eu.acme.com", "longer"},
		{"a wildcard does not match its own suffix", set, "acme.com", ""},
		{"a dotted name is exact", set, "com.acme.greeting", "java"},
		{"the star takes what is left", all, "unknown", "any"},
		{"nothing in an empty set", Set{}, "cart", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if r := tt.set.VirtualService(tt.host); r != nil {
				got = r.Name
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if set.VirtualService("unknown") != nil {
		t.Error("With changed the set it was called on")
	}
}

func TestDestinationRuleForClient(t *testing.T) {
	set := NewSet(destination("istio-system", "root", "*"), destination("default", "service", "cart"), destination("shop", "client", "cart"))
	for _, tt := range []struct {
		name, client, service string
		host                  model.Host
		want                  string
	}{
		{"the client's namespace first", "shop", "default", "cart", "client"},
		{"then the service's", "else", "default", "cart", "service"},
		{"then the root", "else", "default", "other", "root"},
		{"a rule elsewhere does not count", "else", "else", "cart", "root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := set.DestinationRule(tt.host, tt.client, tt.service); got == nil || got.Name != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func TestSetOperations(t *testing.T) {
	a, b := virtual("default", "a", 0, "a"), virtual("default", "b", 0, "b")
	set := NewSet(b, a)
	if got := set.All(); len(got) != 2 || got[0] != a || got[1] != b {
		t.Errorf("All: got %v", got)
	}
	a2 := virtual("default", "a", 0, "a2")
	if got := set.With(a2); got.Get(a.Key()) != a2 || got.Len() != 2 || set.Get(a.Key()) != a {
		t.Error("With did not replace, or changed its receiver")
	}
	if got := set.Without(a.Key(), "virtualservice/default/none"); got.Len() != 1 || got.VirtualService("a") != nil {
		t.Error("Without kept the rule")
	}
	if got := set.Union(NewSet(a2, virtual("x", "c", 0, "c"))); got.Len() != 3 || got.Get(a.Key()) != a {
		t.Error("Union did not prefer its receiver")
	}
	if (Set{}).Get("x") != nil || (Set{}).Len() != 0 || (Set{}).Without("x").Len() != 0 {
		t.Error("the zero Set is not empty")
	}
}

func TestParseKey(t *testing.T) {
	for text, want := range map[string]Key{
		"VirtualService/shop/cart": "virtualservice/shop/cart", "destinationrule/cart": "destinationrule/default/cart",
		"gateway/a/b": "", "virtualservice": "", "virtualservice/a/B": "", "virtualservice/a/b/c": "",
	} {
		got, err := ParseKey(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", text, got, err, want)
		}
		if err == nil {
			if k, ns, name := got.Split(); NewKey(k, ns, name) != got {
				t.Errorf("%s does not split", got)
			}
		}
	}
}

func TestAnalyze(t *testing.T) {
	set := NewSet(mustParse(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  hosts: [cart]
  http:
  - route:
    - {destination: {host: cart, subset: v1}, weight: 1}
    - {destination: {host: cart, subset: v3}, weight: 1}
    - {destination: {host: cart@consul, port: {number: 81}}, weight: 1}
    - {destination: {host: nowhere, subset: v1}, weight: 1}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b, creationTimestamp: "2021-01-01T00:00:00Z"}
spec: {hosts: [CART], http: [{match: [{uri: {regex: "[a-z]{80}"}}, {uri: {regex: "/[a-z]+/[0-9]{1,20}"}}], route: [{destination: {host: cart}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart}
spec: {host: cart, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart-again}
spec: {host: cart}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far, namespace: far}
spec: {host: cart}
`)...)
	cart := &model.Service{Host: "cart", Namespace: "default", Ports: []model.Port{{Number: 80}}, Registries: []string{"zk"},
		Endpoints: []model.Endpoint{{Labels: model.NewLabels(map[string]string{"version": "v1"})}}}
	var got []string
	for _, f := range Analyze(set, func(h model.Host) *model.Service {
		if h == "cart" {
			return cart
		}
		return nil
	}) {
		got = append(got, f.String())
	}
	want := []string{
		"warning: destinationrule/default/cart: spec.subsets[1]: no endpoint carries version=v2 now",
		"warning: destinationrule/default/cart-again: spec.host: cart has destinationrule/default/cart, which is older; this rule has no effect",
		"warning: destinationrule/far/far: spec.host: cart lives in namespace default, so this rule concerns only clients in far",
		"error: virtualservice/default/a: spec.http[0].route[1].destination.subset: destinationrule/default/cart does not define subset v3",
		"warning: virtualservice/default/a: spec.http[0].route[2].destination.host: registry consul does not hold cart now",
		"warning: virtualservice/default/a: spec.http[0].route[2].destination.port.number: cart has no port 81 now",
		"warning: virtualservice/default/a: spec.http[0].route[3].destination.host: no registry holds nowhere now",
		"error: virtualservice/default/a: spec.http[0].route[3].destination.subset: no DestinationRule defines subset v1 of nowhere",
		"warning: virtualservice/default/b: spec.hosts[0]: CART is ruled by virtualservice/default/a, which is older; this rule has no effect on it",
		"warning: virtualservice/default/b: spec.http[0].match[0].uri.regex: compiles to about 82 instructions; an Envoy refuses more than 100 unless its runtime sets re2.max_program_size.error_level",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("findings (-want +got):\n%s", d)
	}
}

func TestRegistry(t *testing.T) {
	got := Registry(NewSet(mustParse(t, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [DB.shop, db-alias]
  addresses: [10.0.0.9]
  ports: [{number: 3306, name: sql, protocol: TCP, targetPort: 13306}, {number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
  - {address: 10.1.0.2, labels: {version: v1}, locality: eu/a, weight: 7}
  - {address: 10.1.0.1, ports: {sql: 23306}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vms}
spec:
  hosts: [vms]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: vm}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-1}
spec: {address: 10.2.0.1, labels: {app: vm, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-2}
spec: {address: 10.2.0.2, labels: {app: other}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-3, namespace: shop}
spec: {address: 10.2.0.3, labels: {app: vm}}
`)...))
	if !got.Full || len(got.Services) != 3 || len(got.Workloads) != 3 {
		t.Fatalf("got %+v", got)
	}
	var lines []string
	for _, s := range got.Services {
		for _, e := range s.Endpoints {
			lines = append(lines, fmt.Sprintf("%s %s %d %v %v w=%d %v", s.Host, s.Name, e.Port, e.Address, e.Labels, e.Weight, e.Locality))
		}
	}
	want := []string{
		"db-alias db-alias 80 10.1.0.1:80  w=0 ", "db-alias db-alias 3306 10.1.0.1:23306  w=0 ",
		"db-alias db-alias 80 10.1.0.2:80 version=v1 w=7 eu/a", "db-alias db-alias 3306 10.1.0.2:13306 version=v1 w=7 eu/a",
		"db.shop DB.shop 80 10.1.0.1:80  w=0 ", "db.shop DB.shop 3306 10.1.0.1:23306  w=0 ",
		"db.shop DB.shop 80 10.1.0.2:80 version=v1 w=7 eu/a", "db.shop DB.shop 3306 10.1.0.2:13306 version=v1 w=7 eu/a",
		"vms vms 80 10.2.0.1:8080 app=vm,version=v1 w=0 ",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Errorf("endpoints (-want +got):\n%s", d)
	}
	if s := got.Services[1]; s.Namespace != "shop" || len(s.Ports) != 2 || s.Ports[0].Number != 80 || s.Addresses[0] != netip.MustParsePrefix("10.0.0.9/32") {
		t.Errorf("db.shop: got %+v", s)
	}
}
