package translate

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/isthmus-mesh/isthmus/xds/resource"
	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// served translates a set whose ServiceEntries are the whole catalog.
func served(t *testing.T, set rules.Set) map[resource.Key]string {
	t.Helper()
	n := readNode(t, []byte("id: envoy-1\nmetadata: {HTTP_PROXY: \"127.0.0.1:15002\", LABELS: {app: web}}\n"))
	f := fixture{}
	for _, svc := range rules.Registry(set).Services {
		f[svc.Host] = svc
	}
	versions := map[resource.Key]string{}
	for _, r := range everything(t, f, set, n, Options{}) {
		versions[resource.Key{Type: r.Type, Name: r.Name}] = r.Version
	}
	return versions
}

func differ(a, b map[resource.Key]string) bool {
	if len(a) != len(b) {
		return true
	}
	for k, v := range a {
		if b[k] != v {
			return true
		}
	}
	return false
}

// The table of enforced fields is proved here: each field, taken out of a rule that
// sets it, changes the resources. Refused fields are proved in xds/rules.
func TestEveryEnforcedFieldChangesResources(t *testing.T) {
	text, err := os.ReadFile("testdata/fields/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set := readRules(t, "fields.yaml", text)
	with := served(t, set)
	for _, f := range rules.Fields() {
		if f.State != rules.Enforced {
			continue
		}
		found, effective := false, false
		for _, r := range set.All() {
			if r.Kind != f.Kind {
				continue
			}
			// The field may stand in several places; one of them must count.
			for i := 0; !effective; i++ {
				spec := proto.Clone(r.Spec)
				nth := i
				if !clearNth(spec.ProtoReflect(), strings.Split(f.Path, "."), &nth) {
					break
				}
				found = true
				changed := *r
				changed.Spec = spec
				effective = differ(with, served(t, set.With(&changed)))
			}
		}
		switch {
		case !found:
			t.Errorf("%v: %s is enforced, but testdata/fields/rules.yaml does not set it", f.Kind, f.Path)
		case !effective:
			t.Errorf("%v: %s is said to be enforced, but leaving it out changes nothing", f.Kind, f.Path)
		}
	}
}

// clearNth clears the nth place where the path is set, and reports whether there
// was one; nth counts down.
func clearNth(m protoreflect.Message, path []string, nth *int) bool {
	fd := m.Descriptor().Fields().ByJSONName(strings.TrimRight(path[0], "[]{}"))
	if !m.Has(fd) {
		return false
	}
	if len(path) == 1 {
		if *nth > 0 {
			*nth--
			return false
		}
		m.Clear(fd)
		return true
	}
	done := false
	switch {
	case fd.IsList():
		for i := 0; i < m.Get(fd).List().Len() && !done; i++ {
			done = clearNth(m.Get(fd).List().Get(i).Message(), path[1:], nth)
		}
	case fd.IsMap():
		m.Get(fd).Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			done = clearNth(v.Message(), path[1:], nth)
			return !done
		})
	default:
		done = clearNth(m.Get(fd).Message(), path[1:], nth)
	}
	return done
}

// Fields that are accepted with their default alone change nothing, as their name says.
func TestDefaultFieldsChangeNothing(t *testing.T) {
	text, err := os.ReadFile("testdata/fields/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plain := string(text)
	for _, f := range rules.Fields() {
		if f.State != rules.Default {
			continue
		}
		name := strings.TrimSuffix(f.Path[strings.LastIndex(f.Path, ".")+1:], "[]")
		setting := name + ": [\"" + f.Values[0] + "\"]"
		var changed string
		switch {
		case strings.HasPrefix(f.Path, "http[].match[]."):
			changed = strings.Replace(plain, "{name: part, ", "{name: part, "+setting+", ", 1)
		case strings.HasPrefix(f.Path, "tcp[].match[]."):
			changed = strings.Replace(plain, "{port: 4000", "{"+setting+", port: 4000", 1)
		default:
			changed = strings.Replace(plain, "kind: "+f.Kind.String()+"\nmetadata: {name: full}\nspec:\n", "kind: "+f.Kind.String()+"\nmetadata: {name: full}\nspec:\n  "+setting+"\n", 1)
		}
		if changed == plain {
			t.Errorf("%v: %s was not tried", f.Kind, f.Path)
			continue
		}
		if differ(served(t, readRules(t, "plain", text)), served(t, readRules(t, "changed", []byte(changed)))) {
			t.Errorf("%v: %s: [%s] changes resources", f.Kind, f.Path, f.Values[0])
		}
	}
}
