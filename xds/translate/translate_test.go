package translate

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	yamlv3 "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
	"github.com/isthmus-mesh/isthmus/xds/scope"
)

var update = flag.Bool("update", false, "rewrite golden files")

// fixture is catalog.yaml of an archive.
type fixture map[model.Host]*model.Service

func (f fixture) Service(h model.Host) *model.Service { return f[h] }

func (f fixture) hosts() []model.Host {
	var all []model.Host
	for h := range f {
		all = append(all, h)
	}
	slices.Sort(all)
	return all
}

func readFixture(t testing.TB, text []byte) fixture {
	t.Helper()
	var in []struct {
		Host, Namespace string
		Addresses       []string
		Ports           []struct {
			Number   uint16
			Protocol string
		}
		Endpoints []struct {
			Address      string
			Port         uint16
			Weight       uint32
			Health       string
			Labels       map[string]string
			Region, Zone string
			Workload     string
			MeshTLS      bool `yaml:"meshTLS"`
			Registries   []string
		}
	}
	decoder := yamlv3.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&in); err != nil {
		t.Fatalf("catalog.yaml: %v", err)
	}
	f := fixture{}
	for _, s := range in {
		svc := &model.Service{Host: model.Host(strings.ToLower(s.Host)), Namespace: cmp.Or(s.Namespace, "default")}
		for _, a := range s.Addresses {
			svc.Addresses = append(svc.Addresses, netip.MustParsePrefix(a))
		}
		for _, p := range s.Ports {
			protocol, err := model.ParseProtocol(p.Protocol)
			if err != nil {
				t.Fatal(err)
			}
			svc.Ports = append(svc.Ports, model.Port{Number: p.Number, Protocol: protocol})
		}
		for _, e := range s.Endpoints {
			end := model.Endpoint{
				Address: netip.MustParseAddrPort(e.Address), Port: cmp.Or(e.Port, svc.Ports[0].Number), Weight: e.Weight,
				Labels: model.NewLabels(e.Labels), Locality: model.Locality{Region: e.Region, Zone: e.Zone},
				Workload: e.Workload, MeshTLS: e.MeshTLS, Registries: e.Registries,
			}
			if e.Health != "" {
				if err := end.Health.UnmarshalText([]byte(e.Health)); err != nil {
					t.Fatal(err)
				}
			}
			svc.Endpoints = append(svc.Endpoints, end)
		}
		f[svc.Host] = svc
	}
	return f
}

func readRules(t testing.TB, name string, text []byte) rules.Set {
	t.Helper()
	all, err := rules.Parse(name, text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return rules.NewSet(all...)
}

func readNode(t testing.TB, text []byte) *scope.Node {
	t.Helper()
	if len(text) == 0 {
		text = []byte("id: sidecar~10.0.0.1~web.default~local")
	}
	doc, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	raw := &corev3.Node{}
	if err := protojson.Unmarshal(doc, raw); err != nil {
		t.Fatal(err)
	}
	n, err := scope.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// everything translates a whole mesh for one node, as xds/generate does.
func everything(t testing.TB, f fixture, set rules.Set, n *scope.Node, opt Options) []*resource.Resource {
	t.Helper()
	client := n.Caller(set.SourceLabels())
	var all []*resource.Resource
	var virtualHosts []VirtualHost
	inputs := map[model.Host]Inputs{}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range append(f.hosts(), RoutedHosts(f, set)...) {
		in := Resolve(f, set, client, h)
		inputs[h] = in
		if again := Resolve(f, set, client, h); !in.Same(again) {
			t.Errorf("%s: inputs differ from themselves", h)
		}
		out, err := Outbound(in, client, opt)
		must(err)
		all = slices.Concat(all, out.Clusters, out.Listeners, out.Routes)
		virtualHosts = append(virtualHosts, out.VirtualHosts...)
		if svc := f[h]; svc != nil {
			ends, err := Endpoints(svc, in.Dest, in.Parts)
			must(err)
			all = append(all, ends...)
		}
	}
	own, err := Own(n, client, func(h model.Host) Inputs { return inputs[h] }, opt)
	must(err)
	all = append(all, own...)
	if n.HTTPProxy.IsValid() {
		r, err := ProxyRoutes(ProxyRouteName(n.HTTPProxy), virtualHosts)
		must(err)
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *resource.Resource) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	return all
}

func decode(t testing.TB, r *resource.Resource) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(r.Type.URL())
	if err != nil {
		t.Fatal(err)
	}
	m := mt.New().Interface()
	if err := proto.Unmarshal(r.Body, m); err != nil {
		t.Fatalf("%v %s: %v", r.Type, r.Name, err)
	}
	return m
}

// show renders a resource so that the bytes are the same in every build: protojson
// alone varies its spaces.
func show(t testing.TB, r *resource.Resource) string {
	t.Helper()
	compact, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(decode(t, r))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		t.Fatal(err)
	}
	if len(r.Origins) > 0 {
		fmt.Fprintf(&b, "\n// origins: %s", strings.Join(r.Origins, ", "))
	}
	return b.String() + "\n"
}

// validate runs the checks that Envoy runs on what it receives, from the
// annotations of its API, in every message down the tree.
func validate(t *testing.T, r *resource.Resource, m proto.Message) {
	t.Helper()
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			t.Errorf("%v %s: Envoy would refuse: %v", r.Type, r.Name, err)
		}
	}
	var walk func(protoreflect.Message)
	walk = func(m protoreflect.Message) {
		if m.Descriptor().FullName() == "google.protobuf.Any" {
			url := m.Get(m.Descriptor().Fields().ByName("type_url")).String()
			mt, err := protoregistry.GlobalTypes.FindMessageByURL(url)
			if err != nil {
				t.Errorf("%v %s: %v", r.Type, r.Name, err)
				return
			}
			inner := mt.New().Interface()
			if err := proto.Unmarshal(m.Get(m.Descriptor().Fields().ByName("value")).Bytes(), inner); err != nil {
				t.Errorf("%v %s: %v", r.Type, r.Name, err)
			}
			validate(t, r, inner)
			return
		}
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case fd.IsMap() && fd.MapValue().Message() != nil:
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { walk(v.Message()); return true })
			case fd.IsList() && fd.Message() != nil:
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			case fd.Message() != nil && !fd.IsMap():
				walk(v.Message())
			}
			return true
		})
	}
	walk(m.ProtoReflect())
}

// An archive holds catalog.yaml, rules.yaml (may be missing), node.yaml (may be
// missing) and show: the resources that are golden, "RDS cart:80" or "CDS *".
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { golden(t, path) })
	}
}

func golden(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	in, want := map[string][]byte{}, map[string]string{}
	var inputs []txtar.File
	for _, f := range archive.Files {
		switch f.Name {
		case "catalog.yaml", "rules.yaml", "node.yaml", "options.yaml", "show":
			in[f.Name] = f.Data
			inputs = append(inputs, f)
		default:
			want[f.Name] = string(f.Data)
		}
	}
	var opt Options
	if err := yamlv3.Unmarshal(in["options.yaml"], &opt); err != nil {
		t.Fatal(err)
	}
	n := readNode(t, in["node.yaml"])
	got := map[string]string{}
	var files []txtar.File
	for _, r := range everything(t, readFixture(t, in["catalog.yaml"]), readRules(t, "rules.yaml", in["rules.yaml"]), n, opt) {
		m := decode(t, r)
		validate(t, r, m)
		again, err := resource.New(r.Type, r.Name, m)
		if err != nil || again.Version != r.Version {
			t.Errorf("%v %s: bytes are not canonical (%v)", r.Type, r.Name, err)
		}
		name := fmt.Sprintf("%v %s", r.Type, r.Name)
		for line := range strings.Lines(string(in["show"])) {
			if line = strings.TrimSpace(line); line == name || line == r.Type.String()+" *" {
				got[name] = show(t, r)
				files = append(files, txtar.File{Name: name, Data: []byte(got[name])})
				break
			}
		}
	}
	if *update {
		archive.Files = append(inputs, files...)
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("resources (-want +got):\n%s", d)
	}
}
