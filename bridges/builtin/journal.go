package builtin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// journal is the leases file: a line of JSON for each registration and each end,
// the last one of a workload holds. It is rewritten when most of it is history.
type journal struct {
	dir, path string
	open      bool // it was loaded, so that it may be written
	lines     int
	broken    bool // the last write may have left half a line
}

// record is a lease as the file has it.
type record struct {
	ID       string
	TTL      time.Duration
	Workload model.Workload
}

// Bounds of the file.
const (
	// maxJournal is the largest file read, in bytes: ten times what 100,000
	// workloads of 500 bytes take.
	maxJournal = 512 << 20
	// slack is how many lines of history are always allowed.
	slack = 1000
)

// brokenError is a file that could be read in part only; it was put aside.
type brokenError struct {
	path string
	err  error
}

func (e *brokenError) Error() string { return fmt.Sprintf("%s: %v", e.path, e.err) }
func (e *brokenError) Unwrap() error { return e.err }

func newJournal(dir, name string) *journal {
	safe := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, name)
	return &journal{dir: dir, path: filepath.Join(dir, safe+".leases")}
}

// exists fails unless dir is a folder: a missing one is no empty file.
func exists(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", dir)
	}
	return err
}

// load reads the file; none is an empty one. Half a last line is the mark of a
// crash and is left out. With a *brokenError the records that could be read are
// returned, and the file is out of the way.
func (j *journal) load() ([]record, error) {
	if err := exists(j.dir); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	f, err := os.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		j.open = true
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxJournal+1))
	if err == nil && len(data) > maxJournal {
		err = fmt.Errorf("%s is larger than %d bytes", j.path, maxJournal)
	}
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	records, lines, torn, err := decodeJournal(data)
	j.lines, j.broken = lines, torn
	if err != nil {
		aside := j.path + ".damaged"
		if renameErr := os.Rename(j.path, aside); renameErr != nil {
			return nil, fmt.Errorf("leases: %w", errors.Join(err, renameErr))
		}
		j.open, j.broken = true, true
		return records, &brokenError{aside, err}
	}
	j.open = true
	return records, nil
}

// wantsWhole reports whether the next write should be the whole file.
func (j *journal) wantsWhole(live, more int) bool {
	return j.open && (j.broken || j.lines+more > 2*live+slack)
}

// rewrite replaces the file by records, all or nothing.
func (j *journal) rewrite(records []record) (err error) {
	slices.SortFunc(records, func(a, b record) int { return strings.Compare(a.Workload.Name, b.Workload.Name) })
	f, err := os.CreateTemp(j.dir, filepath.Base(j.path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is the one to tell
		}
	}()
	w := bufio.NewWriter(f)
	for i := range records {
		if _, err = w.Write(encodeRecord(&records[i])); err != nil {
			break
		}
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), j.path); err != nil {
		return err
	}
	j.lines, j.broken = len(records), false
	return nil
}

// append adds registrations and the names of workloads whose lease ended.
func (j *journal) append(records []record, ended []string) error {
	if !j.open {
		return fmt.Errorf("%s was never read", j.path)
	}
	var b bytes.Buffer
	for i := range records {
		b.Write(encodeRecord(&records[i]))
	}
	for _, name := range ended {
		b.Write(encodeLine(line{Gone: name}))
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err != nil {
		j.broken = true
		return err
	}
	j.lines += len(records) + len(ended)
	return nil
}

// line is one line of the file: a registration, or the end of one.
type line struct {
	Gone     string         `json:"gone,omitempty"`
	ID       string         `json:"id,omitempty"`
	TTL      int64          `json:"ttl_ms,omitempty"`
	Workload *savedWorkload `json:"workload,omitempty"`
}

type savedWorkload struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	App       string            `json:"app,omitempty"`
	Address   netip.Addr        `json:"address"`
	Labels    map[string]string `json:"labels,omitempty"`
	Locality  *model.Locality   `json:"locality,omitempty"`
	Weight    uint32            `json:"weight,omitempty"`
	Inbound   []model.Inbound   `json:"inbound,omitempty"`
	Health    model.Health      `json:"health"`
	MeshTLS   bool              `json:"mesh_tls,omitempty"`
}

func recordOf(l *lease) record { return record{ID: l.id, TTL: l.ttl, Workload: *l.workload} }

func encodeRecord(r *record) []byte {
	w := &r.Workload
	saved := &savedWorkload{
		Name: w.Name, Namespace: w.Namespace, App: w.App, Address: w.Address,
		Weight: w.Weight, Inbound: w.Inbound, Health: w.Health, MeshTLS: w.MeshTLS,
	}
	if w.Labels.Len() > 0 {
		saved.Labels = w.Labels.Map()
	}
	if w.Locality != (model.Locality{}) {
		saved.Locality = &w.Locality
	}
	return encodeLine(line{ID: r.ID, TTL: r.TTL.Milliseconds(), Workload: saved})
}

func encodeLine(l line) []byte {
	data, err := json.Marshal(l)
	if err != nil {
		panic("builtin: a checked workload has no JSON: " + err.Error()) // strings, numbers and addresses always have one
	}
	return append(data, '\n')
}

// decodeJournal reads a file. torn says that the last line has no end. An error
// names the first line that could not be read; what the others hold is returned
// beside it.
func decodeJournal(data []byte) (records []record, lines int, torn bool, err error) {
	byName := map[string]record{}
	for at := 1; len(data) > 0; at++ {
		text, rest, whole := bytes.Cut(data, []byte("\n"))
		data = rest
		if !whole {
			torn = true
			break
		}
		lines++
		rec, gone, lineErr := decodeLine(text)
		switch {
		case lineErr != nil:
			if err == nil {
				err = fmt.Errorf("line %d: %w", at, lineErr)
			}
		case gone != "":
			delete(byName, gone)
		default:
			byName[rec.Workload.Name] = rec
		}
	}
	for _, rec := range byName {
		records = append(records, rec)
	}
	slices.SortFunc(records, func(a, b record) int { return strings.Compare(a.Workload.Name, b.Workload.Name) })
	return records, lines, torn, err
}

func decodeLine(text []byte) (rec record, gone string, err error) {
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return record{}, "", err
	}
	if l.Gone != "" {
		return record{}, l.Gone, nil
	}
	if l.ID == "" || l.Workload == nil || l.Workload.Name == "" {
		return record{}, "", errors.New("is neither a lease nor the end of one")
	}
	if l.TTL < minTTL.Milliseconds() || l.TTL > maxTTL.Milliseconds() {
		return record{}, "", fmt.Errorf("ttl_ms: %d", l.TTL)
	}
	s := l.Workload
	w := model.Workload{
		Name: s.Name, Namespace: s.Namespace, App: s.App, Address: s.Address, Labels: model.NewLabels(s.Labels),
		Weight: s.Weight, Inbound: s.Inbound, Health: s.Health, MeshTLS: s.MeshTLS,
	}
	if s.Locality != nil {
		w.Locality = *s.Locality
	}
	return record{ID: l.ID, TTL: time.Duration(l.TTL) * time.Millisecond, Workload: w}, "", nil
}
