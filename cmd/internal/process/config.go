package process

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxConfigBytes bounds a configuration file: people write them.
const maxConfigBytes = 1 << 20

// maxConfigNodes bounds what aliases may expand to.
const maxConfigNodes = 100_000

// LoadConfig reads the YAML file at path over the defaults in into, a pointer to
// a struct. See DecodeConfig.
func LoadConfig(path string, into any) error {
	data, err := readConfig(path)
	if err != nil {
		return err
	}
	return DecodeConfig(path, data, into)
}

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxConfigBytes {
		return nil, fmt.Errorf("configuration %s: over %d bytes", path, maxConfigBytes)
	}
	return data, nil
}

// DecodeConfig decodes one YAML document over the defaults in into, a pointer to
// a struct with yaml tags. Unknown and repeated keys and wrong types are
// errors; all of them are reported, each as "file:line:column: key: what".
// Keys that are absent or null keep their default. An empty document changes
// nothing.
func DecodeConfig(file string, data []byte, into any) error {
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return syntaxError(file, err)
	}
	if err := dec.Decode(&more); err == nil {
		return fmt.Errorf("%s:%d:1: a second document; a configuration is one", file, more.Line)
	} else if !errors.Is(err, io.EOF) {
		return syntaxError(file, err)
	}
	d := &configDecoder{file: file}
	d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	return errors.Join(d.errs...)
}

var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

func syntaxError(file string, err error) error {
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
		return fmt.Errorf("%s:%s: %s", file, m[1], m[2])
	}
	return fmt.Errorf("%s: %w", file, err)
}

// configDecoder walks a document beside the type it fills, because the
// library's own strict mode names neither column nor key path.
type configDecoder struct {
	file  string
	nodes int
	errs  []error
}

func (d *configDecoder) fail(n *yaml.Node, path, format string, args ...any) {
	where := fmt.Sprintf("%s:%d:%d: ", d.file, n.Line, n.Column)
	if path != "" {
		where += path + ": "
	}
	d.errs = append(d.errs, fmt.Errorf("%s%s", where, fmt.Sprintf(format, args...)))
}

func (d *configDecoder) value(n *yaml.Node, v reflect.Value, path string) {
	if d.nodes++; d.nodes > maxConfigNodes {
		if d.nodes == maxConfigNodes+1 {
			d.fail(n, path, "over %d values, aliases expanded", maxConfigNodes)
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		d.value(n.Alias, v, path)
		return
	}
	if n.Tag == "!!null" {
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(n, v.Elem(), path)
		return
	}
	switch v.Addr().Interface().(type) {
	case yaml.Unmarshaler, encoding.TextUnmarshaler:
		d.scalar(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Map:
		d.table(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *configDecoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "%s, want keys and values", describe(n))
		return
	}
	fields := fieldsOf(v)
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		if line, again := seen[key.Value]; again {
			d.fail(key, at, "given twice, first on line %d", line)
			continue
		}
		seen[key.Value] = key.Line
		field, known := fields[key.Value]
		if !known {
			d.fail(key, at, "unknown key%s", suggest(key.Value, fields))
			continue
		}
		d.value(val, field, at)
	}
}

func (d *configDecoder) table(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "%s, want keys and values", describe(n))
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for i := 0; i < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		before := len(d.errs)
		d.value(key, k, join(path, key.Value))
		d.value(val, e, join(path, key.Value))
		if len(d.errs) > before {
			continue
		}
		v.SetMapIndex(k, e)
	}
}

func (d *configDecoder) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "%s, want a list", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		d.value(item, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

var libraryPrefix = regexp.MustCompile(`(?s)^yaml: unmarshal errors:\s+line \d+: (?:cannot unmarshal )?|^yaml: (?:line \d+: )?`)

func (d *configDecoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if _, isDuration := reflect.TypeAssert[time.Duration](v); isDuration && (n.Kind != yaml.ScalarNode || n.Tag == "!!int" && n.Value != "0" || n.Tag == "!!float") {
		d.fail(n, path, "%s, want a duration with its unit such as 250ms or 5s", describe(n))
		return
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		_, custom := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr())
		_, isType := errors.AsType[*yaml.TypeError](err)
		if isType && !custom {
			d.fail(n, path, "%s, want %s", describe(n), kindName(v.Type()))
			return
		}
		d.fail(n, path, "%s", libraryPrefix.ReplaceAllString(err.Error(), ""))
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", n.Value)
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Uint8, reflect.Uint16:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		return "a whole number that is not negative"
	}
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration with its unit such as 250ms or 5s"
	}
	return "a whole number"
}

// fieldsOf maps yaml keys to the fields of v, those of inlined structs included.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-":
		case slices.Contains(strings.Split(opts, ","), "inline"):
			maps.Copy(fields, fieldsOf(v.Field(i)))
		case name == "":
			fields[strings.ToLower(f.Name)] = v.Field(i)
		default:
			fields[name] = v.Field(i)
		}
	}
	return fields
}

// suggest names the known key that is most like the unknown one, or all of them.
func suggest(key string, fields map[string]reflect.Value) string {
	best, bestDistance := "", (len(key)+2)/3
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if dist := editDistance(strings.ToLower(key), strings.ToLower(name)); dist <= bestDistance {
			best, bestDistance = name, dist-1
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %q?", best)
	case len(names) == 0:
		return ""
	}
	return "; known are " + strings.Join(names, ", ")
}

// editDistance is Levenshtein's, over bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
