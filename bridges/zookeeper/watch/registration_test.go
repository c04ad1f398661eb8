package watch

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// told renders a node: one line a registration, then the complaint.
func told(n *node) string {
	var b strings.Builder
	for _, r := range n.registrations {
		fmt.Fprintf(&b, "%v %v/%d weight %d %v {%v} zone %q\n", r.address, r.protocol, r.port, r.weight, r.health, r.labels, r.locality.String())
	}
	b.WriteString(n.reject)
	return b.String()
}

func TestFromProvider(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, tt := range []struct{ name, url, want string }{
		{
			"what a Dubbo 3 provider registers", "dubbo://10.0.0.1:20881/a.Cart?application=shop&deprecated=false&dubbo=2.0.2&dynamic=true&generic=false" +
				"&interface=a.Cart&methods=sayHello&pid=1&prefer.serialization=hessian2,fastjson2&release=3.3.6&side=provider&timestamp=1795361611901",
			"10.0.0.1:20881 dubbo/20880 weight 0 healthy {app=shop,deprecated=false,dynamic=true,generic=false,prefer.serialization=hessian2,fastjson2,release=3.3.6} zone \"\"\n",
		},
		{
			"group, version, tag, weight and zone", "tri://10.0.0.1:1/a.Cart?interface=a.Cart&group=g&version=2&dubbo.tag=gray&weight=7&region=r&zone=z",
			"10.0.0.1:1 tri/50051 weight 7 healthy {group=g,region=r,tag=gray,version=2,zone=z} zone \"r/z\"\n",
		},
		{"weight 0 takes no requests", "dubbo://10.0.0.1:1/a.Cart?weight=0", "10.0.0.1:1 dubbo/20880 weight 0 draining {} zone \"\"\n"},
		{"disabled", "dubbo://10.0.0.1:1/a.Cart?enabled=false&weight=5", "10.0.0.1:1 dubbo/20880 weight 0 draining {} zone \"\"\n"},
		{"a weight that is none", "dubbo://10.0.0.1:1/a.Cart?weight=heavy", "10.0.0.1:1 dubbo/20880 weight 0 healthy {} zone \"\"\nweight \"heavy\", want 0 to 100000"},
		{"REST is HTTP", "rest://10.0.0.1:1/a.Cart", "10.0.0.1:1 http/80 weight 0 healthy {} zone \"\"\n"},
		{"a protocol with a port set", "rmi://10.0.0.1:1/a.Cart", "10.0.0.1:1 tcp/1099 weight 0 healthy {} zone \"\"\n"},
		{"a protocol without", "hessian://10.0.0.1:1/a.Cart", `protocol "hessian" has no service port: set one in servicePorts`},
		{"another interface", "dubbo://10.0.0.1:1/a.Cart?interface=a.Pay", `provider of interface "a.Pay", want "a.Cart"`},
		{"secrets are no labels", "dubbo://me:pw@10.0.0.1:1/a.Cart?token=t&Password=p&accesskey=k", "10.0.0.1:1 dubbo/20880 weight 0 healthy {} zone \"\"\n"},
		{
			"the largest labels are left out and named", "dubbo://10.0.0.1:1/a.Cart?application=shop&version=1&a=" + long + "&b=" + long + "x&c=d",
			"10.0.0.1:1 dubbo/20880 weight 0 healthy {a=" + long + ",app=shop,c=d,version=1} zone \"\"\nlabels are over 1024 bytes, left out: b",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := told(fromProvider(url.QueryEscape(tt.url), "a.Cart", map[string]uint16{"rmi": 1099}))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("registration (-want +got):\n%s", d)
			}
		})
	}
}

func TestFromInstance(t *testing.T) {
	body := func(ports, meta string) string {
		return `{"name":"cart","id":"1","address":"10.0.0.1",` + ports + `,"payload":{"@class":"` + string(wire.ClassSpring) + `","metadata":{` + meta + `}}}`
	}
	for _, tt := range []struct{ name, data, want string }{
		{"plain", body(`"port":8080`, `"instance_status":"UP"`), "10.0.0.1:8080 http/80 weight 0 healthy {app=cart} zone \"\"\n"},
		{"labels", body(`"port":8080`, `"version":"2","zone":"z","app":"own"`), "10.0.0.1:8080 http/80 weight 0 healthy {app=own,version=2,zone=z} zone \"/z\"\n"},
		{"TLS", body(`"sslPort":8443`, ``), "10.0.0.1:8443 tls/443 weight 0 healthy {app=cart} zone \"\"\n"},
		{"both", body(`"port":8080,"sslPort":8443`, ``), "10.0.0.1:8080 http/80 weight 0 healthy {app=cart} zone \"\"\n10.0.0.1:8443 tls/443 weight 0 healthy {app=cart} zone \"\"\n"},
		{"one port that speaks TLS", body(`"port":8443,"sslPort":8443`, ``), "10.0.0.1:8443 tls/443 weight 0 healthy {app=cart} zone \"\"\n"},
		{"out of service", body(`"port":80`, `"instance_status":"out_of_service"`), "10.0.0.1:80 http/80 weight 0 draining {app=cart} zone \"\"\n"},
		{"down", body(`"port":80`, `"instance_status":"DOWN"`), "10.0.0.1:80 http/80 weight 0 unhealthy {app=cart} zone \"\"\n"},
		{"Spring's weight of 1 is the mesh's 100", body(`"port":80`, `"weight":"3"`), "10.0.0.1:80 http/80 weight 300 healthy {app=cart} zone \"\"\n"},
		{"weight 0", body(`"port":80`, `"weight":"0"`), "10.0.0.1:80 http/80 weight 0 draining {app=cart} zone \"\"\n"},
		{"a weight that is none", body(`"port":80`, `"weight":"1.5"`), "10.0.0.1:80 http/80 weight 0 healthy {app=cart} zone \"\"\nweight \"1.5\", want 0 to 100000"},
		{"not JSON", `x`, `instance "x" is not a Curator instance: invalid character 'x' looking for beginning of value`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := fromInstance([]byte(tt.data), 1795364022670, "cart", nil)
			if d := cmp.Diff(tt.want, told(n)); d != "" {
				t.Errorf("registration (-want +got):\n%s", d)
			}
			for _, r := range n.registrations {
				if !r.changed.Equal(time.UnixMilli(1795364022670)) {
					t.Errorf("changed %v, want the node's time", r.changed)
				}
			}
		})
	}
}

func TestMergeDoesNotDependOnOrder(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:1")
	reg := func(version string, health model.Health, when int64) registration {
		return registration{
			address: at, port: 20880, protocol: model.Dubbo, health: health, changed: time.Unix(when, 0), variant: "/" + version,
			labels: model.NewLabels(map[string]string{"version": version}),
		}
	}
	for _, tt := range []struct {
		name string
		a, b registration
		want string
	}{
		{"the newer one", reg("1", model.Healthy, 1), reg("2", model.Unhealthy, 2), "2"},
		{"at one time the healthier", reg("1", model.Healthy, 1), reg("2", model.Draining, 1), "1"},
		{"else the greater labels", reg("1", model.Healthy, 1), reg("2", model.Healthy, 1), "2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, pair := range [][2]registration{{tt.a, tt.b}, {tt.b, tt.a}} {
				m := newMerged()
				m.add(pair[0])
				m.add(pair[1])
				s := m.service("cart", "cart", "default")
				if got, _ := s.Endpoints[0].Labels.Get("version"); len(s.Endpoints) != 1 || got != tt.want {
					t.Errorf("endpoints %+v, want version %s alone", s.Endpoints, tt.want)
				}
			}
		})
	}
}

// BenchmarkChange is one change among many: what it costs from event to Apply when
// there are 100 or 10,000 services; the figures must be alike.
func BenchmarkChange(b *testing.B) {
	for _, services := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("%d services", services), func(b *testing.B) {
			m := &mesh{held: map[model.Host]*model.Service{}}
			f := newFollower(Config{Roots: bothRoots, Namespace: "default"}, nil, &Memory{}, m)
			root := f.units[key{root: 0}]
			names := make([]string, services)
			for i := range names {
				names[i] = fmt.Sprintf("a.Service%d", i)
			}
			now := time.Now()
			f.relisted(root, names, now)
			f.live = true
			u := f.units[key{0, "a.Service7"}]
			nodes := []map[string]*node{{}, {}}
			for i := range nodes {
				for j := range 10 {
					name := url.QueryEscape(fmt.Sprintf("dubbo://10.0.%d.%d:1/a.Service7?version=1", i, j+1))
					nodes[i][name] = fromProvider(name, "a.Service7", nil)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				u.busy = true
				f.reads++
				f.take(reading{unit: u, started: now, nodes: nodes[i%2]}, now)
				m.updates = m.updates[:0]
			}
			if len(m.held) != 1 {
				b.Fatalf("held %d services", len(m.held))
			}
		})
	}
}

func TestSecretsBecomeNoLabels(t *testing.T) {
	data, err := wire.Instance{
		Name: "shop", ID: "1", Address: netip.MustParseAddr("10.0.0.1"), Port: 80, Class: wire.ClassSpring, Enabled: true,
		Metadata: map[string]string{"instance_status": "UP", "version": "1", "user.name": "a", "user.password": "a", "access_token": "a", "accessKey": "a"},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	spring := fromInstance(data, 0, "shop", nil)
	dubbo := fromProvider(url.QueryEscape("dubbo://10.0.0.1:1/shop?version=1&token=a&Password=a&secret-key=a&username=a&application=shop"), "shop", nil)
	for kind, n := range map[string]*node{"spring": spring, "dubbo": dubbo} {
		if len(n.registrations) != 1 || n.registrations[0].labels.String() != "app=shop,version=1" {
			t.Errorf("%s: %+v", kind, n)
		}
	}
}
