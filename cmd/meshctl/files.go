package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/xds/rules"
)

// maxFiles bounds what a folder may hold: beyond it the folder is surely the
// wrong one.
const maxFiles = 5000

// source is one rule and the file it was read from.
type source struct {
	*rules.Rule
	file string
}

// readRules reads files, folders (with what is below them) and "-" for standard
// input, and reports every mistake in all of them.
func (a *app) readRules(names []string) ([]source, error) {
	if len(names) == 0 {
		return nil, misuse("no file: name files or folders with -f, or - for standard input")
	}
	var all []source
	var errs []error
	first := map[rules.Key]string{}
	for _, name := range names {
		files, err := expand(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, file := range files {
			label, data, err := a.read(file)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			parsed, err := rules.Parse(label, data)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, r := range parsed {
				if other, twice := first[r.Key()]; twice {
					errs = append(errs, fmt.Errorf("%s: %s is in %s as well", label, r.Key(), other))
					continue
				}
				first[r.Key()] = label
				all = append(all, source{r, label})
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no rule in there", strings.Join(names, ", "))
	}
	return all, nil
}

// expand lists the YAML and JSON files below a folder, in the order of their
// names; a file stands for itself.
func expand(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var files []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if hidden := strings.HasPrefix(d.Name(), ".") && path != name; hidden {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(path); !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			files = append(files, path)
		}
		if len(files) > maxFiles {
			return fmt.Errorf("%s: more than %d files: is this the right folder?", name, maxFiles)
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: no .yaml, .yml or .json file in there", name)
	}
	return files, err
}

func (a *app) read(name string) (label string, data []byte, err error) {
	if name == "-" {
		data, err = io.ReadAll(io.LimitReader(a.In, rules.MaxFileBytes+1))
		if err != nil {
			err = fmt.Errorf("standard input: %w", err)
		}
		return "standard input", data, err
	}
	f, err := os.Open(name)
	if err != nil {
		return name, nil, err
	}
	defer f.Close()
	data, err = io.ReadAll(io.LimitReader(f, rules.MaxFileBytes+1)) // one more: Parse refuses it
	return name, data, err
}

// text joins rules to one stream of documents, as large as a server takes at once.
func text(all []source) (string, error) {
	parts := make([]string, len(all))
	for i, r := range all {
		parts[i] = strings.TrimRight(r.YAML, "\n") + "\n"
	}
	joined := strings.Join(parts, "---\n")
	if len(joined) > rules.MaxFileBytes {
		return "", fmt.Errorf("the rules have %d bytes, and a server takes %d at once: apply them in parts", len(joined), rules.MaxFileBytes)
	}
	return joined, nil
}

// fileOf finds where a rule was read; empty when it was not.
func fileOf(all []source, key string) string {
	i := slices.IndexFunc(all, func(s source) bool { return string(s.Key()) == key })
	if i < 0 {
		return ""
	}
	return all[i].file
}

// byFileThenRule orders findings as a reader goes through files.
func byFileThenRule(all []source) func(a, b rules.Finding) int {
	return func(a, b rules.Finding) int {
		return cmp.Or(cmp.Compare(fileOf(all, string(a.Rule)), fileOf(all, string(b.Rule))), cmp.Compare(a.Rule, b.Rule))
	}
}
