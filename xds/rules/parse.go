package rules

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds of one Parse. The largest real rule files seen in Istio's issues are a
// few hundred KiB; etcd refuses objects above 1.5 MiB.
const (
	MaxFileBytes = 1 << 20
	maxDocuments = 2000
	maxMistakes  = 200
	maxNodes     = 200_000 // YAML nodes visited in one document, aliases expanded
	maxDepth     = 40      // the API nests 12 deep
	// maxKeyBytes bounds the keys of mappings, which are parts of every path below
	// them; Kubernetes' longest label has 317 bytes.
	maxKeyBytes = 512
)

// apiVersions are the names under which Istio has published the same messages.
var apiVersions = []string{"networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"}

// serverFields of metadata are written by a Kubernetes API server and carry no
// wish of the user: they are let through so that `kubectl get -o yaml` can be read.
var serverFields = []string{"uid", "resourceVersion", "generation", "managedFields", "selfLink", "ownerReferences", "finalizers"}

// Parse reads a stream of YAML documents, each one rule, and checks them. name is
// what mistakes are reported under. The error is of type Mistakes and holds all of
// them (at most maxMistakes, where reading ends); no rule is returned then. Documents without content
// are skipped. JSON is YAML too.
func Parse(name string, data []byte) ([]*Rule, error) {
	p := &parser{file: name, keys: map[Key]int{}}
	switch {
	case len(data) > MaxFileBytes:
		p.report(0, "", "", fmt.Sprintf("%d bytes, want at most %d", len(data), MaxFileBytes))
	case !utf8.Valid(data):
		p.report(0, "", "", "is not UTF-8 text")
	default:
		for i, doc := range splitDocuments(data) {
			if i == maxDocuments {
				p.report(doc.line, "", "", fmt.Sprintf("more than %d documents", maxDocuments))
				break
			}
			if p.document(doc); p.full() {
				break
			}
		}
	}
	if len(p.mistakes) > 0 {
		slices.SortStableFunc(p.mistakes, func(a, b Mistake) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text))
		})
		return nil, p.mistakes
	}
	return p.rules, nil
}

type parser struct {
	file     string
	rules    []*Rule
	keys     map[Key]int // line of the rule that has it
	mistakes Mistakes
}

func (p *parser) report(line int, key Key, path, text string) {
	switch {
	case len(p.mistakes) < maxMistakes:
		p.mistakes = append(p.mistakes, Mistake{p.file, line, key, path, text})
	case len(p.mistakes) == maxMistakes:
		p.mistakes = append(p.mistakes, Mistake{File: p.file, Line: line, Text: "more mistakes follow"})
	}
}

// full reports whether there are more mistakes than are reported. Looking for
// others is pointless then, and in a large file costly.
func (p *parser) full() bool { return len(p.mistakes) > maxMistakes }

type document struct {
	line int // of its first line, from 1
	text []byte
}

// splitDocuments cuts at "---" lines, so that a syntax error in one document does
// not hide the mistakes of the next. A "---" in column 0 always ends a document,
// even inside a block scalar.
func splitDocuments(data []byte) []document {
	var docs []document
	current := document{line: 1}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if after, ok := bytes.CutPrefix(line, []byte("---")); ok && len(bytes.TrimLeft(after[:min(1, len(after))], " \t\r\n")) == 0 {
			docs = append(docs, current)
			// The marker becomes blanks: content may follow it on its line.
			current = document{line: n, text: append([]byte("   "), after...)}
			continue
		}
		current.text = append(current.text, line...)
	}
	docs = append(docs, current)
	return slices.DeleteFunc(docs, func(d document) bool { return len(bytes.TrimSpace(d.text)) == 0 })
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

func (p *parser) document(doc document) {
	decoder := yaml.NewDecoder(bytes.NewReader(doc.text))
	var root yaml.Node
	err := decoder.Decode(&root)
	if errors.Is(err, io.EOF) {
		return // comments only
	}
	if err != nil {
		text, line := strings.TrimPrefix(err.Error(), "yaml: "), doc.line
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			text = err.Error()[len(m[0]):]
			if n, err := strconv.Atoi(m[1]); err == nil {
				line += n - 1
			}
		}
		p.report(line, "", "", "not YAML: "+text)
		return
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		p.report(doc.line, "", "", "more follows after the end of the document")
		return
	}
	if len(root.Content) == 0 || root.Content[0].Tag == "!!null" {
		return
	}
	d := &reader{parser: p, offset: doc.line - 1, lines: map[string]int{}}
	rule := d.rule(root.Content[0], withoutBlankLines(doc.text))
	if rule == nil {
		return
	}
	if first, twice := p.keys[rule.Key()]; twice {
		p.report(d.lines["metadata.name"], rule.Key(), "metadata.name", fmt.Sprintf("is taken by the rule at line %d", first))
		return
	}
	p.keys[rule.Key()] = d.lines["metadata.name"]
	p.rules = append(p.rules, rule)
}

// withoutBlankLines cuts the blank lines before a document's content. The first
// line's indentation stays: the others may have the same.
func withoutBlankLines(text []byte) string {
	for {
		line, rest, more := bytes.Cut(text, []byte("\n"))
		if !more || len(bytes.TrimSpace(line)) > 0 {
			return string(text)
		}
		text = rest
	}
}

// rule reads one document. It returns nil when anything was wrong with it.
func (d *reader) rule(n *yaml.Node, text string) *Rule {
	before := len(d.mistakes)
	top := d.mapping(n, "")
	if top == nil {
		return nil
	}
	r := &Rule{YAML: text}
	// Kind and metadata come first, whatever their order: later mistakes name the rule.
	kind := d.text(top, "kind", n)
	var spec *yaml.Node
	var metadata map[string]*yaml.Node
	for key, value := range inOrder(top) {
		switch key {
		case "kind", "apiVersion", "status":
			// status is written by controllers, not by users.
		case "metadata":
			metadata = d.mapping(value, "metadata")
		case "spec":
			spec = value
		default:
			d.fail(value, key, "no such field, want apiVersion, kind, metadata or spec")
		}
	}
	if kind != "" {
		k, err := ParseKind(kind)
		if err != nil || k.String() != kind {
			d.fail(top["kind"], "kind", fmt.Sprintf("%s is not enforced, want one of %s", kind, strings.Join(kindNames[1:], ", ")))
		} else {
			r.Kind = k
		}
	}
	if version := d.text(top, "apiVersion", n); version != "" && !slices.Contains(apiVersions, version) {
		d.fail(top["apiVersion"], "apiVersion", fmt.Sprintf("%s, want one of %s", version, strings.Join(apiVersions, ", ")))
	}
	if top["metadata"] == nil {
		d.fail(n, "metadata", "is missing")
	} else if metadata != nil {
		d.metadata(r, metadata, top["metadata"])
	}
	if r.Kind == 0 {
		return nil
	}
	if r.Name != "" {
		d.key = r.Key()
	}
	if spec == nil || isNull(spec) {
		d.fail(n, "spec", "is missing")
		return nil
	}
	r.Spec = r.Kind.newSpec()
	d.kind = r.Kind
	d.message(spec, r.Spec.ProtoReflect(), place{"spec", ""}, 0)
	if !d.full() {
		d.check(r)
	}
	if len(d.mistakes) != before {
		return nil
	}
	return r
}

func (d *reader) metadata(r *Rule, fields map[string]*yaml.Node, n *yaml.Node) {
	r.Namespace = DefaultNamespace
	if value := fields["namespace"]; value != nil && !isNull(value) {
		r.Namespace = d.name(value, "metadata.namespace")
	}
	if value := fields["name"]; value != nil && !isNull(value) {
		r.Name = d.name(value, "metadata.name")
	} else {
		d.fail(n, "metadata.name", "is missing")
	}
	if r.Kind != 0 && r.Name != "" && r.Namespace != "" {
		d.key = r.Key()
	}
	for key, value := range inOrder(fields) {
		path := "metadata." + key
		switch {
		case key == "name" || key == "namespace" || slices.Contains(serverFields, key):
		case key == "labels":
			r.Labels = d.stringMap(value, path)
		case key == "annotations":
			d.stringMap(value, path) // checked for shape; nothing reads them
		case key == "creationTimestamp":
			if isNull(value) {
				continue // as kubectl writes it in templates
			}
			t, err := time.Parse(time.RFC3339, value.Value)
			if err != nil {
				d.fail(value, path, fmt.Sprintf("%q, want a time as 2006-01-02T15:04:05Z", value.Value))
			}
			r.Created = t
		default:
			d.fail(value, path, "no such field, want name, namespace, labels or annotations")
		}
	}
}

func (d *reader) name(n *yaml.Node, path string) string {
	s, ok := d.string(n, path)
	if !ok {
		return ""
	}
	if err := checkName(s); err != nil {
		d.fail(n, path, err.Error())
		return ""
	}
	return s
}

func (d *reader) text(fields map[string]*yaml.Node, key string, parent *yaml.Node) string {
	value := fields[key]
	if value == nil || isNull(value) {
		d.fail(parent, key, "is missing")
		return ""
	}
	s, _ := d.string(value, key)
	return s
}

func (d *reader) stringMap(n *yaml.Node, path string) map[string]string {
	if isNull(n) {
		return nil
	}
	m := map[string]string{}
	for key, value := range inOrder(d.mapping(n, path)) {
		if s, ok := d.string(value, fmt.Sprintf("%s[%s]", path, key)); ok {
			m[key] = s
		}
	}
	return m
}

// fail reports what cannot be read. Of paths, it keeps as many as there are
// mistakes, so that failAt has few to compare with.
func (d *reader) fail(n *yaml.Node, path, text string) {
	if d.full() {
		return
	}
	d.unread = append(d.unread, path)
	d.report(d.line(n), d.key, path, text)
}

// failAt reports a mistake found after decoding, at the line of the longest known
// prefix of path. It stays silent where something at, above or below path could
// not be read: that mistake is reported, and this one may only follow from it.
func (d *reader) failAt(path, text string) {
	if d.full() {
		return
	}
	for _, u := range d.unread {
		if within(u, path) || within(path, u) {
			return
		}
	}
	line, at := 0, path
	for {
		if n, ok := d.lines[at]; ok {
			line = n
			break
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			break
		}
		at = at[:i]
	}
	d.report(line, d.key, path, text)
}

// within reports whether path is outer or a part of it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// Mistake is one thing wrong with what a user wrote.
type Mistake struct {
	File string // as given to Parse
	Line int    // from 1; 0 when no line can be named
	Rule Key    // empty when the document has no readable kind and name
	Path string // "spec.http[0].route[1].weight"; empty for the document itself
	Text string // "140, want 0 to 100"
}

// String is "file:line: kind/namespace/name: path: text", without empty parts.
func (m Mistake) String() string {
	var b strings.Builder
	b.WriteString(m.File)
	if m.Line > 0 {
		fmt.Fprintf(&b, ":%d", m.Line)
	}
	for _, part := range []string{string(m.Rule), m.Path, m.Text} {
		if part != "" {
			if b.Len() > 0 {
				b.WriteString(": ")
			}
			b.WriteString(part)
		}
	}
	return b.String()
}

// Mistakes is the error of Parse: everything that is wrong, in the order of the file.
type Mistakes []Mistake

// Error is one mistake a line.
func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i := range m {
		lines[i] = m[i].String()
	}
	return strings.Join(lines, "\n")
}
