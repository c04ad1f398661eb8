package rules

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const docsPath = "../../docs/rules.md"

const docsHead = `# Rules

Rules are Istio's YAML, ` + "`apiVersion: networking.istio.io/v1`" + ` (or ` + "`v1beta1`, `v1alpha3`" + `). Put files into the rules folder of
MeshServer, or send them through the Mesh API with ` + "`meshctl rule apply -f file.yaml`" + `; ` + "`meshctl rule check`" + ` reads them and
reports every mistake with file, line, rule and field.

A field that the mesh does not carry out yet is **refused** by name: no rule is accepted in part. This page is made from
the table that decides (` + "`go generate ./xds/rules`" + `).

- **enforced**: shapes what proxies do.
- **checked**: accepted, and other fields are checked against it.
- **default only**: accepted with the value that changes nothing, so that existing files can stay as they are.
- **refused**: setting it is a mistake. Below a refused field nothing is listed: all of it is refused.

## What holds for all rules

- ` + "`metadata`" + `: name, namespace (` + "`default`" + `), labels, annotations. What a Kubernetes API server adds (` + "`uid`, `resourceVersion`, `status`" + ` and so on)
  is passed over; ` + "`creationTimestamp`" + ` counts. Other API groups and kinds are refused.
- Of two VirtualServices for one host, or two DestinationRules for one host in one namespace, the oldest counts; those without
  a time are oldest, equal times are decided by name. The others get a warning.
- A host is found exactly, then as the short name of a Kubernetes service in the rule's namespace, then by the longest ` + "`*.suffix`" + `.
- A DestinationRule holds for clients in its namespace, or for all when it is in the service's namespace or in ` + "`istio-system`" + `.
- HTTP routes apply to ports whose protocol is HTTP, HTTP2 or GRPC, TCP routes to all others. Sidecars carry HTTP/2 and gRPC as
  TCP for now; Envoys and gRPC clients route them.
- A VirtualService of which no route concerns a client (by port, labels or namespace) leaves that client the default route.
- Durations are whole milliseconds. Regular expressions are RE2 and match the whole value. An Envoy refuses those that compile to
  more than 100 instructions, and with them all routes of the host, unless its bootstrap sets the runtime key
  ` + "`re2.max_program_size.error_level`" + ` (Istio sets 32768); ` + "`meshctl rule check`" + ` warns of them.

## Retries where no rule states conditions

Two retries, on another endpoint where there is one. GET, HEAD, OPTIONS and TRACE: when the connection could not be made, the
stream was refused, the connection broke, or the answer was 503. All other methods, and everything on gRPC ports: only when
nothing of the request was sent or the peer refused the stream. ` + "`retries.attempts: 0`" + ` switches retries off; ` + "`retries.retryOn`" + `
states Envoy's conditions (` + "`%s`" + `, and status codes) for all methods alike.

`

func docs() string {
	var b strings.Builder
	fmt.Fprintf(&b, docsHead, strings.Join(retryOn, "`, `"))
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "## %s\n\n| field below `spec` | | what it does |\n| --- | --- | --- |\n", k)
		for _, f := range Fields() {
			if f.Kind != k {
				continue
			}
			note := f.Note
			if f.Values != nil {
				note = strings.TrimSuffix("`"+strings.Join(f.Values, "`, `")+"`; "+note, "; ")
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Path, f.State, note)
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestDocs(t *testing.T) {
	if *update {
		if err := os.WriteFile(docsPath, []byte(docs()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(have), docs()); d != "" {
		t.Errorf("docs/rules.md is stale, run go generate ./xds/rules (-file +table):\n%s", d)
	}
}

// A path in the table that the API does not have would promise what cannot be written.
func TestTableNamesFieldsOfTheAPI(t *testing.T) {
	known := map[string]bool{}
	for _, f := range Fields() {
		known[f.Kind.String()+"."+f.Path] = true
	}
	for k, fields := range enforced {
		for _, f := range fields {
			if !known[k.String()+"."+f.Path] {
				t.Errorf("%v: %s is not a field of the API", k, f.Path)
			}
			if f.Note == "" {
				t.Errorf("%v: %s has no note for the documentation", k, f.Path)
			}
		}
	}
}

// Every field that is not in the table is refused by name and path.
func TestRefusedFields(t *testing.T) {
	refused := 0
	for _, f := range Fields() {
		if f.State != Refused {
			continue
		}
		refused++
		doc := fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: a}\nspec: %s\n", f.Kind, sample(t, f))
		_, err := Parse("f", []byte(doc))
		shown := strings.NewReplacer("[]", "[0]", "{}", "[k]").Replace(strings.TrimSuffix(strings.TrimSuffix(f.Path, "[]"), "{}"))
		want := fmt.Sprintf("%s: spec.%s: is not enforced yet, so it is refused", NewKey(f.Kind, "default", "a"), shown)
		if err == nil || !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(line string) bool {
			return strings.HasSuffix(line, want) && strings.HasPrefix(line, "f:4: ")
		}) {
			t.Errorf("%v: %s\n%s\ngot  %v\nwant %s", f.Kind, f.Path, doc, err, want)
		}
	}
	if refused < 30 {
		t.Errorf("only %d refused fields looked at", refused)
	}
}

// sample is a spec in flow style that sets the field and nothing else.
func sample(t *testing.T, f Field) string {
	t.Helper()
	m := f.Kind.newSpec().ProtoReflect().Descriptor()
	var open, end string
	parts := strings.Split(f.Path, ".")
	for i, part := range parts {
		name := strings.TrimSuffix(strings.TrimSuffix(part, "[]"), "{}")
		fd := m.Fields().ByJSONName(name)
		open, end = open+"{"+name+": ", "}"+end
		if strings.HasSuffix(part, "[]") && i < len(parts)-1 {
			open, end = open+"[", "]"+end
		}
		if strings.HasSuffix(part, "{}") && i < len(parts)-1 {
			open, end = open+"{k: ", "}"+end
		}
		if fd.IsMap() {
			m = fd.MapValue().Message()
		} else {
			m = fd.Message()
		}
	}
	return open + "{}" + end
}

// Values of enumerations that are not listed are refused with the listed ones.
func TestRefusedValues(t *testing.T) {
	for _, f := range Fields() {
		fd := descriptorAt(f)
		if f.State == Refused || fd.Kind() != protoreflect.EnumKind {
			continue
		}
		if f.Values == nil {
			t.Errorf("%v: %s: the accepted values are not listed", f.Kind, f.Path)
		}
		for i := range fd.Enum().Values().Len() {
			name := string(fd.Enum().Values().Get(i).Name())
			if f.allows(name) {
				continue
			}
			spec := strings.Replace(sample(t, f), "{}", name, 1)
			_, err := Parse("f", fmt.Appendf(nil, "apiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: a}\nspec: %s\n", f.Kind, spec))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q: not enforced yet, so it is refused", name)) {
				t.Errorf("%v: %s: %s: got %v", f.Kind, f.Path, name, err)
			}
		}
	}
}

func descriptorAt(f Field) protoreflect.FieldDescriptor {
	m := f.Kind.newSpec().ProtoReflect().Descriptor()
	var fd protoreflect.FieldDescriptor
	for part := range strings.SplitSeq(f.Path, ".") {
		fd = m.Fields().ByJSONName(strings.TrimSuffix(strings.TrimSuffix(part, "[]"), "{}"))
		if fd.IsMap() {
			m = fd.MapValue().Message()
		} else {
			m = fd.Message()
		}
	}
	return fd
}
