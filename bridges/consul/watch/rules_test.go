package watch

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// spring is an instance as Spring Cloud Consul registers it.
func spring(change func(*wire.Entry)) wire.Entry {
	e := wire.Entry{
		Node: &wire.Node{Node: "n1", Address: "10.0.0.1", Datacenter: "dc1"},
		Service: &wire.Service{
			ID: "greeting-8080", Service: "greeting", Address: "10.0.0.7", Port: 8080,
			Meta: map[string]string{"secure": "false"}, Weights: &wire.Weights{Passing: 1, Warning: 1},
		},
		Checks: []wire.Check{{CheckID: "serfHealth", Status: "passing"}, {CheckID: "service:greeting-8080", Status: "passing"}},
	}
	change(&e)
	return e
}

func TestInstanceBecomesEndpoint(t *testing.T) {
	tests := []struct {
		name   string
		rules  Rules
		change func(*wire.Entry)
		want   string // address>port/protocol weight health locality labels, "" for none
		reason string
	}{
		{
			name:   "as Spring Cloud registers it",
			change: func(*wire.Entry) {},
			want:   "10.0.0.7:8080>80/http 100 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name:   "over TLS",
			change: func(e *wire.Entry) { e.Service.Meta["secure"] = "true" },
			want:   "10.0.0.7:8080>443/tls 100 healthy dc1 app=greeting,dc=dc1,secure=true",
		},
		{
			name: "with secrets in its meta and tags",
			change: func(e *wire.Entry) {
				e.Service.Meta = map[string]string{"user.password": "a", "accessKey": "a", "apiToken": "a", "version": "v2"}
				e.Service.Tags = []string{"secret=a", "tier=web"}
			},
			want: "10.0.0.7:8080>80/http 100 healthy dc1 app=greeting,dc=dc1,tier=web,version=v2",
		},
		{
			name:   "of another protocol",
			change: func(e *wire.Entry) { e.Service.Meta = map[string]string{"protocol": "GRPC", "version": "v2"} },
			want:   "10.0.0.7:8080>50051/grpc 100 healthy dc1 app=greeting,dc=dc1,protocol=GRPC,version=v2",
		},
		{
			name:   "of a protocol that nobody knows",
			change: func(e *wire.Entry) { e.Service.Meta = map[string]string{"protocol": "thrift"} },
			want:   "10.0.0.7:8080>8080/tcp 100 healthy dc1 app=greeting,dc=dc1,protocol=thrift",
		},
		{
			name:   "with a service port of the user's",
			rules:  Rules{ServicePorts: map[model.Protocol]uint16{model.HTTP: 8000}},
			change: func(*wire.Entry) {},
			want:   "10.0.0.7:8080>8000/http 100 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name:   "at the address of its node",
			change: func(e *wire.Entry) { e.Service.Address = "" },
			want:   "10.0.0.1:8080>80/http 100 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name:   "at an IPv6 address",
			change: func(e *wire.Entry) { e.Service.Address = "2001:db8::1" },
			want:   "[2001:db8::1]:8080>80/http 100 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name:   "at an IPv4 address written as IPv6",
			change: func(e *wire.Entry) { e.Service.Address = "::ffff:10.0.0.7" },
			want:   "10.0.0.7:8080>80/http 100 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name: "at a host name", change: func(e *wire.Entry) { e.Service.Address = "db.example" },
			reason: `greeting/greeting-8080: address "db.example" is no IP address; host names are not resolved`,
		},
		{
			name: "at every address", change: func(e *wire.Entry) { e.Service.Address = "0.0.0.0" },
			reason: `greeting/greeting-8080: address "0.0.0.0" cannot be dialled from other machines`,
		},
		{
			name: "without a port", change: func(e *wire.Entry) { e.Service.Port = 0 },
			reason: "greeting/greeting-8080: port is 0, want 1 to 65535",
		},
		{
			name: "on a Unix socket", change: func(e *wire.Entry) { e.Service.SocketPath = "/run/x" },
			reason: "greeting/greeting-8080: listens on a Unix socket, which no other machine can reach",
		},
		{
			name: "with several ports",
			change: func(e *wire.Entry) {
				e.Service.Ports = []wire.Port{{Name: "admin", Port: 9}, {Name: "http", Port: 8081, Default: true}}
			},
			want: "10.0.0.7:8081>80/http 100 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name:   "whose node has failed",
			change: func(e *wire.Entry) { e.Checks[0].Status = "critical" },
			want:   "10.0.0.7:8080>80/http 100 unhealthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name: "that warns",
			change: func(e *wire.Entry) {
				e.Checks[1].Status = "warning"
				e.Service.Weights = &wire.Weights{Passing: 10, Warning: 3}
			},
			want: "10.0.0.7:8080>80/http 300 healthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name: "that warns and has no weight then",
			change: func(e *wire.Entry) {
				e.Checks[1].Status = "warning"
				e.Service.Weights = &wire.Weights{Passing: 10}
			},
			want: "10.0.0.7:8080>80/http 100 unhealthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name: "in maintenance",
			change: func(e *wire.Entry) {
				e.Checks = append(e.Checks, wire.Check{CheckID: "_service_maintenance:greeting-8080", Status: "critical"})
			},
			want: "10.0.0.7:8080>80/http 100 draining dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name: "in maintenance and failed",
			change: func(e *wire.Entry) {
				e.Checks = append(e.Checks, wire.Check{CheckID: "_node_maintenance", Status: "critical"}, wire.Check{Status: "critical"})
			},
			want: "10.0.0.7:8080>80/http 100 unhealthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name:   "with a status of a later version",
			change: func(e *wire.Entry) { e.Checks[1].Status = "limbo" },
			want:   "10.0.0.7:8080>80/http 100 unhealthy dc1 app=greeting,dc=dc1,secure=false",
		},
		{
			name: "in a zone by meta",
			change: func(e *wire.Entry) {
				e.Service.Meta = map[string]string{"zone": "z1"}
			},
			want: "10.0.0.7:8080>80/http 100 healthy dc1/z1 app=greeting,dc=dc1,zone=z1",
		},
		{
			name: "with a locality of its own",
			change: func(e *wire.Entry) {
				e.Node.Locality = &wire.Locality{Region: "eu", Zone: "eu-1"}
				e.Service.Locality = &wire.Locality{Zone: "eu-2"}
				e.Service.Meta = nil
			},
			want: "10.0.0.7:8080>80/http 100 healthy eu/eu-2 app=greeting,dc=dc1,zone=eu-2",
		},
		{
			name: "with tags",
			change: func(e *wire.Entry) {
				e.Service.Meta = map[string]string{"version": "from-meta", "app": "mine"}
				e.Service.Tags = []string{"blue", "version=from-tag", "track=canary", "urlprefix-/x", "a b", "traefik.rule=Host(`x`)"}
			},
			want: "10.0.0.7:8080>80/http 100 healthy dc1 app=mine,dc=dc1,tag.blue=true,track=canary,traefik.rule=Host(`x`),version=from-meta" +
				",tag.urlprefix-/x=true",
		},
		{name: "a sidecar of Consul's own mesh", change: func(e *wire.Entry) { e.Service.Kind = "connect-proxy" }},
		{name: "a gateway", change: func(e *wire.Entry) { e.Service.Kind = "mesh-gateway" }},
		{name: "without a wanted tag", rules: Rules{Tags: []string{"blue"}}, change: func(*wire.Entry) {}},
		{name: "without wanted meta", rules: Rules{Meta: map[string]string{"secure": "true"}}, change: func(*wire.Entry) {}},
		{
			name: "with wanted tag and meta", rules: Rules{Tags: []string{"blue"}, Meta: map[string]string{"secure": "false"}},
			change: func(e *wire.Entry) { e.Service.Tags = []string{"green", "blue"} },
			want:   "10.0.0.7:8080>80/http 100 healthy dc1 app=greeting,dc=dc1,secure=false,tag.blue=true,tag.green=true",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.rules.Protocol = model.HTTP
			p := tt.rules.part("dc1", "greeting", wire.Instances{Entries: []wire.Entry{spring(tt.change)}})
			if p == nil {
				p = &part{}
			}
			got, reason := "", ""
			for _, e := range p.endpoints {
				port, _ := find(p.ports, e.Port)
				got += fmt.Sprintf("%v>%d/%v %d %v %v %v", e.Address, e.Port, port.Protocol, e.Weight, e.Health, e.Locality, e.Labels)
			}
			for _, r := range p.rejected {
				reason += r.Where + ": " + r.Reason
			}
			if d := cmp.Diff(sortLabels(tt.want), sortLabels(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.reason, reason); d != "" {
				t.Errorf("reason (-want +got):\n%s", d)
			}
		})
	}
}

// sortLabels makes the order of labels in a wanted text irrelevant.
func sortLabels(s string) map[string]int {
	words := map[string]int{}
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' }) {
		words[w]++
	}
	return words
}

func TestOneBadInstanceLeavesItsNeighbours(t *testing.T) {
	rules := Rules{Protocol: model.HTTP}
	p := rules.part("", "greeting", wire.Instances{Entries: []wire.Entry{
		spring(func(e *wire.Entry) { e.Service.ID, e.Service.Port = "a", 1 }),
		spring(func(e *wire.Entry) { e.Service.ID, e.Service.Address = "b", "no-ip" }),
		spring(func(e *wire.Entry) { e.Service.ID, e.Service.Port = "c", 2 }),
	}})
	if len(p.endpoints) != 2 || len(p.rejected) != 1 {
		t.Errorf("%d endpoints, rejected %v", len(p.endpoints), p.rejected)
	}
}

func TestGhostAtTheSameAddressYieldsToTheLiving(t *testing.T) {
	rules := Rules{Protocol: model.HTTP}
	p := rules.part("", "greeting", wire.Instances{Entries: []wire.Entry{
		spring(func(e *wire.Entry) { e.Node.Node = "dead"; e.Checks[0].Status = "critical" }),
		spring(func(e *wire.Entry) { e.Node.Node = "reborn" }),
	}})
	if len(p.endpoints) != 1 || p.endpoints[0].Health != model.Healthy {
		t.Errorf("%+v", p.endpoints)
	}
}

func TestTwoProtocolsAreTwoPorts(t *testing.T) {
	rules := Rules{Protocol: model.HTTP}
	p := rules.part("", "greeting", wire.Instances{Entries: []wire.Entry{
		spring(func(*wire.Entry) {}),
		spring(func(e *wire.Entry) {
			e.Service.ID, e.Service.Port, e.Service.Meta = "g", 9, map[string]string{"protocol": "grpc"}
		}),
		spring(func(e *wire.Entry) {
			e.Service.ID, e.Service.Port, e.Service.Meta = "h2", 10, map[string]string{"protocol": "http2"}
		}),
	}})
	want := []model.Port{{Number: 80, Protocol: model.HTTP}, {Number: 50051, Protocol: model.GRPC}}
	if d := cmp.Diff(want, p.ports); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if len(p.rejected) != 1 || p.rejected[0].Reason != "speaks http2 on service port 80, which other instances serve as http" {
		t.Errorf("rejected %v", p.rejected)
	}
}

func TestLabelsAreBounded(t *testing.T) {
	e := spring(func(e *wire.Entry) {
		for i := range 64 {
			e.Service.Meta[fmt.Sprintf("k%02d", i)] = strings.Repeat("v", 100)
			e.Service.Tags = append(e.Service.Tags, fmt.Sprintf("t%02d", i))
		}
		e.Service.Meta["version"] = "v1"
		e.Service.Meta["zone"] = "z1"
	})
	rules := Rules{Protocol: model.HTTP}
	p := rules.part("dc1", "greeting", wire.Instances{Entries: []wire.Entry{e}})
	labels := p.endpoints[0].Labels
	if n := labels.Bytes(); n > maxLabelBytes || n < maxLabelBytes/2 {
		t.Errorf("%d bytes of labels", n)
	}
	want := model.NewLabels(map[string]string{"app": "greeting", "dc": "dc1", "version": "v1", "zone": "z1"})
	if !labels.Contains(want) {
		t.Errorf("%v lacks some of %v", labels, want)
	}
	if len(p.rejected) != 1 || !strings.Contains(p.rejected[0].Reason, "labels exceed 1024 bytes") {
		t.Errorf("rejected %v", p.rejected)
	}
}

func TestWhichServicesAreFollowed(t *testing.T) {
	template := func(service, _ string) (string, error) {
		if service == "odd" {
			return "", errors.New("template fails")
		}
		return service + ".mesh", nil
	}
	tests := []struct {
		service string
		rules   Rules
		tags    []string
		want    bool
		reason  string
	}{
		{service: "cart", want: true},
		{service: "com.acme.Cart$Inner", want: true},
		{service: "consul"},
		{service: "a b", reason: `byte 1 is ' '`},
		{service: "a/../b", reason: "cannot be asked for by path"},
		{service: strings.Repeat("x", 600), reason: "want at most 512"},
		{service: "cart", rules: Rules{Tags: []string{"blue"}}, tags: []string{"green"}},
		{service: "cart", rules: Rules{Tags: []string{"blue"}}, tags: []string{"green", "blue"}, want: true},
		{service: "odd", rules: Rules{Host: template}, reason: "template fails"},
	}
	for _, tt := range tests {
		yes, reason := tt.rules.Wants(tt.service, tt.tags, "dc1")
		if yes != tt.want || !strings.Contains(reason, tt.reason) || tt.reason == "" && reason != "" {
			t.Errorf("%.20q with tags %v: %v, %q; want %v, %q", tt.service, tt.tags, yes, reason, tt.want, tt.reason)
		}
	}
}

func BenchmarkPart(b *testing.B) {
	in := wire.Instances{}
	for i := range 1000 {
		in.Entries = append(in.Entries, spring(func(e *wire.Entry) {
			e.Service.ID, e.Service.Port = fmt.Sprint("i", i), 1000+i
			e.Service.Meta["version"] = fmt.Sprint("v", i%3)
			e.Service.Tags = []string{"blue", "track=canary"}
		}))
	}
	rules := Rules{Protocol: model.HTTP}
	b.ReportAllocs()
	for b.Loop() {
		if p := rules.part("dc1", "greeting", in); len(p.endpoints) != 1000 {
			b.Fatal(len(p.endpoints))
		}
	}
}
