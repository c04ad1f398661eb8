package bridges

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// kept is the last complete read of a source, as it lies on disk.
type kept struct {
	Source, Kind string
	Read         time.Time
	Services     []*model.Service  // ascending by host
	Workloads    []*model.Workload // ascending by name
}

// snapshotVersion is raised when an older build could not read the file.
const snapshotVersion = 1

// maxSnapshotLine bounds one line, that is one service, in bytes. 100,000
// endpoints of one host with 1 KiB of labels each are under it.
const maxSnapshotLine = 256 << 20

// maxSnapshotServices bounds what a header may claim, so that a damaged one
// does not make the reader allocate.
const maxSnapshotServices = 10_000_000

// The file is a header, one line of JSON a service, one a workload, and a
// trailer with the SHA-256 of all lines before it: readable with head and jq,
// written and read without holding two copies.
type snapshotHeader struct {
	Format    string    `json:"format"`
	Version   int       `json:"version"`
	Source    string    `json:"source"`
	Kind      string    `json:"kind"`
	Read      time.Time `json:"read"`
	Services  int       `json:"services"`
	Workloads int       `json:"workloads"`
}

const snapshotFormat = "isthmus-bridge"

type snapshotTrailer struct {
	SHA256 string `json:"sha256"`
}

type diskService struct {
	Host      model.Host     `json:"host"`
	Name      string         `json:"name,omitempty"`
	Namespace string         `json:"namespace,omitempty"`
	Ports     []model.Port   `json:"ports,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// LabelSets are the distinct label sets of the endpoints, which name them
	// by position: instances of one service mostly share theirs.
	LabelSets []map[string]string `json:"label_sets,omitempty"`
	Endpoints []diskEndpoint      `json:"endpoints,omitempty"`
}

type diskEndpoint struct {
	Address  netip.AddrPort `json:"address"`
	Port     uint16         `json:"port,omitempty"`
	Weight   uint32         `json:"weight,omitempty"`
	Health   model.Health   `json:"health"`
	LabelSet int            `json:"labels"`
	Locality model.Locality `json:"locality,omitzero"`
	Changed  time.Time      `json:"changed,omitzero"`
}

type diskWorkload struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	App       string            `json:"app,omitempty"`
	Address   netip.Addr        `json:"address,omitzero"`
	Labels    map[string]string `json:"labels,omitempty"`
	Locality  model.Locality    `json:"locality,omitzero"`
	Weight    uint32            `json:"weight,omitempty"`
	Inbound   []model.Inbound   `json:"inbound,omitempty"`
	Health    model.Health      `json:"health"`
	MeshTLS   bool              `json:"mesh_tls,omitempty"`
}

// encodeSnapshot writes k to w.
func encodeSnapshot(w io.Writer, k kept) error {
	sum := sha256.New()
	buffered := bufio.NewWriterSize(w, 64<<10)
	out := json.NewEncoder(io.MultiWriter(buffered, sum))
	err := out.Encode(snapshotHeader{
		Format: snapshotFormat, Version: snapshotVersion, Source: k.Source, Kind: k.Kind, Read: k.Read,
		Services: len(k.Services), Workloads: len(k.Workloads),
	})
	for i := 0; err == nil && i < len(k.Services); i++ {
		err = out.Encode(toDisk(k.Services[i]))
	}
	for i := 0; err == nil && i < len(k.Workloads); i++ {
		x := k.Workloads[i]
		err = out.Encode(diskWorkload{
			Name: x.Name, Namespace: x.Namespace, App: x.App, Address: x.Address, Labels: x.Labels.Map(), Locality: x.Locality,
			Weight: x.Weight, Inbound: x.Inbound, Health: x.Health, MeshTLS: x.MeshTLS,
		})
	}
	if err == nil {
		err = json.NewEncoder(buffered).Encode(snapshotTrailer{hex.EncodeToString(sum.Sum(nil))})
	}
	if err == nil {
		err = buffered.Flush()
	}
	return err
}

func toDisk(s *model.Service) diskService {
	d := diskService{Host: s.Host, Name: s.Name, Namespace: s.Namespace, Ports: s.Ports, Addresses: s.Addresses}
	sets := map[model.Labels]int{}
	for _, e := range s.Endpoints {
		set, ok := sets[e.Labels]
		if !ok {
			set = len(d.LabelSets)
			sets[e.Labels] = set
			d.LabelSets = append(d.LabelSets, e.Labels.Map())
		}
		d.Endpoints = append(d.Endpoints, diskEndpoint{
			Address: e.Address, Port: e.Port, Weight: e.Weight, Health: e.Health,
			LabelSet: set, Locality: e.Locality, Changed: inYears(e.Changed),
		})
	}
	return d
}

// inYears drops a time that RFC 3339 cannot write: one registry entry with an
// absurd date must not stop all from being kept.
func inYears(t time.Time) time.Time {
	if y := t.UTC().Year(); y < 0 || y > 9998 {
		return time.Time{}
	}
	return t
}

// decodeSnapshot reads what encodeSnapshot wrote. An error says what is wrong
// with the file; nothing of it may then be used.
func decodeSnapshot(r io.Reader) (k kept, err error) {
	lines := &snapshotLines{in: bufio.NewReaderSize(r, 64<<10)}
	sum := sha256.New()
	next := func(into any) error {
		line, err := lines.next()
		if err != nil {
			return err
		}
		sum.Write(line)
		return lines.decode(line, into)
	}
	var head snapshotHeader
	if err := next(&head); err != nil {
		return kept{}, err
	}
	if head.Format != snapshotFormat {
		return kept{}, fmt.Errorf("format is %.40q, want %q", head.Format, snapshotFormat)
	}
	if head.Version != snapshotVersion {
		return kept{}, fmt.Errorf("version is %d, this build reads %d", head.Version, snapshotVersion)
	}
	if n := head.Services; n < 0 || n > maxSnapshotServices {
		return kept{}, fmt.Errorf("%d services, want 0 to %d", n, maxSnapshotServices)
	}
	if n := head.Workloads; n < 0 || n > maxSnapshotServices {
		return kept{}, fmt.Errorf("%d workloads, want 0 to %d", n, maxSnapshotServices)
	}
	k = kept{Source: head.Source, Kind: head.Kind, Read: head.Read}
	for range head.Services {
		var d diskService
		if err := next(&d); err != nil {
			return kept{}, err
		}
		s, err := fromDisk(d)
		if err != nil {
			return kept{}, fmt.Errorf("line %d: %w", lines.n, err)
		}
		k.Services = append(k.Services, s)
	}
	for range head.Workloads {
		var d diskWorkload
		if err := next(&d); err != nil {
			return kept{}, err
		}
		k.Workloads = append(k.Workloads, &model.Workload{
			Name: d.Name, Namespace: d.Namespace, App: d.App, Address: d.Address, Labels: model.NewLabels(d.Labels), Locality: d.Locality,
			Weight: d.Weight, Inbound: d.Inbound, Health: d.Health, MeshTLS: d.MeshTLS,
		})
	}
	return k, checkTrailer(lines, hex.EncodeToString(sum.Sum(nil)))
}

func checkTrailer(lines *snapshotLines, want string) error {
	line, err := lines.next()
	if err != nil {
		return err
	}
	var tail snapshotTrailer
	if err := lines.decode(line, &tail); err != nil {
		return err
	}
	if tail.SHA256 != want {
		return fmt.Errorf("checksum is %.64q, want %q", tail.SHA256, want)
	}
	if _, err := lines.in.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("line %d: more than the header promised", lines.n+1)
	}
	return nil
}

func fromDisk(d diskService) (*model.Service, error) {
	host, err := model.ParseHost(string(d.Host))
	if err != nil {
		return nil, err
	}
	s := &model.Service{Host: host, Name: d.Name, Namespace: d.Namespace, Ports: d.Ports, Addresses: d.Addresses}
	sets := make([]model.Labels, len(d.LabelSets))
	for i, m := range d.LabelSets {
		sets[i] = model.NewLabels(m)
	}
	for i, e := range d.Endpoints {
		if !e.Address.IsValid() {
			return nil, fmt.Errorf("%s: endpoints[%d] has no address", host, i)
		}
		if e.LabelSet < 0 || e.LabelSet >= len(sets) {
			return nil, fmt.Errorf("%s: endpoints[%d].labels: %d, want 0 to %d", host, i, e.LabelSet, len(sets)-1)
		}
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: e.Address, Port: e.Port, Weight: e.Weight, Health: e.Health,
			Labels: sets[e.LabelSet], Locality: e.Locality, Changed: e.Changed,
		})
	}
	return s, nil
}

// snapshotLines reads whole lines and counts them.
type snapshotLines struct {
	in   *bufio.Reader
	line []byte
	n    int
}

func (l *snapshotLines) next() ([]byte, error) {
	l.n++
	l.line = l.line[:0]
	for {
		part, err := l.in.ReadSlice('\n')
		l.line = append(l.line, part...)
		switch {
		case err == nil:
			return l.line, nil
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("line %d: the file ends early", l.n)
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(l.line) > maxSnapshotLine:
			return nil, fmt.Errorf("line %d: longer than %d bytes", l.n, maxSnapshotLine)
		}
	}
}

func (l *snapshotLines) decode(line []byte, into any) error {
	strict := json.NewDecoder(bytes.NewReader(line))
	strict.DisallowUnknownFields()
	if err := strict.Decode(into); err != nil {
		return fmt.Errorf("line %d: %w", l.n, err)
	}
	return nil
}
