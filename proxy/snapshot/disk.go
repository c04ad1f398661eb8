package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// fileMagic starts the file; a format that differs gets another number.
const fileMagic = "isthmus snapshot 1\n"

// writeDelay is how long changes are gathered before the file is written; with
// the writing it stays within a second.
const writeDelay = 500 * time.Millisecond

// retryDelay is how soon a file that could not be written is tried again.
const retryDelay = 10 * time.Second

// maxFile bounds what Load reads, in bytes: far above a mesh of 100,000 endpoints.
const maxFile = 1 << 30

// loadOrder is the order in which types are applied: what is referred to first.
var loadOrder = [...]resource.Type{resource.Cluster, resource.Endpoints, resource.Listener, resource.Route}

// Load applies what an earlier process kept. It returns how many resources it
// found; a file that is not there is none. After an error nothing was applied.
func (s *Store) Load() (int, error) {
	if s.cfg.Path == "" {
		return 0, nil
	}
	info, err := os.Stat(s.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read last configuration: %w", err)
	}
	if info.Size() > maxFile {
		return 0, fmt.Errorf("read last configuration: %s has %d bytes, want at most %d", s.cfg.Path, info.Size(), maxFile)
	}
	data, err := os.ReadFile(s.cfg.Path)
	if err != nil {
		return 0, fmt.Errorf("read last configuration: %w", err)
	}
	changes, err := decodeFile(data)
	if err != nil {
		return 0, fmt.Errorf("read last configuration: %s: %w", s.cfg.Path, err)
	}
	n := 0
	for _, t := range loadOrder {
		for _, refused := range s.Apply(Change{Type: t, Updated: changes[t]}) {
			s.cfg.Log.Warn("kept configuration refused", "resource", refused.Name, "error", refused)
		}
		n += len(changes[t])
	}
	return n, nil
}

// Run keeps the file up to date and ends waits that take too long, until ctx
// ends; then it writes what is left. It returns nil.
func (s *Store) Run(ctx context.Context) error {
	warm, write := stopped(), stopped()
	defer warm.Stop()
	defer write.Stop()
	unsaved := false
	for {
		select {
		case <-ctx.Done():
			select {
			case <-s.dirty:
				unsaved = true
			default:
			}
			if unsaved {
				s.save()
			}
			return nil
		case <-s.dirty:
			if !unsaved {
				unsaved = true
				write.Reset(writeDelay)
			}
		case <-write.C:
			if unsaved = !s.save(); unsaved {
				write.Reset(retryDelay)
			}
		case <-s.wakeWarm:
			if next := s.nextDeadline(); !next.IsZero() {
				warm.Reset(time.Until(next))
			}
		case now := <-warm.C:
			s.expire(now)
			if next := s.nextDeadline(); !next.IsZero() {
				warm.Reset(time.Until(next))
			}
		}
	}
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// save writes the file and reports whether that went well.
func (s *Store) save() bool {
	if s.cfg.Path == "" {
		return true
	}
	var changes [resource.NumTypes][]Resource
	s.mu.Lock()
	for _, t := range loadOrder {
		for _, a := range s.accepted[t] {
			changes[t] = append(changes[t], a.Resource)
		}
	}
	s.mu.Unlock()
	err := writeFile(s.cfg.Path, encodeFile(&changes))
	s.saved.Store(&err)
	if err != nil {
		s.cfg.Log.Error("last configuration not kept", "error", err)
		return false
	}
	return true
}

// SaveError is why the file could not be written the last time; nil if it was.
func (s *Store) SaveError() error {
	if err := s.saved.Load(); err != nil {
		return *err
	}
	return nil
}

// encodeFile writes, after the magic, a record a resource and a checksum over
// all before it.
func encodeFile(changes *[resource.NumTypes][]Resource) []byte {
	out := []byte(fileMagic)
	for t := range changes {
		for _, r := range changes[t] {
			out = append(out, byte(t))
			for _, part := range [3][]byte{[]byte(r.Name), []byte(r.Version), r.Body} {
				out = append(binary.AppendUvarint(out, uint64(len(part))), part...)
			}
		}
	}
	return binary.BigEndian.AppendUint64(out, xxhash.Sum64(out))
}

func decodeFile(data []byte) (changes [resource.NumTypes][]Resource, err error) {
	const sumBytes = 8
	rest, ok := bytes.CutPrefix(data, []byte(fileMagic))
	if !ok || len(rest) < sumBytes {
		return changes, errors.New("not a snapshot of this version")
	}
	end := len(data) - sumBytes
	if xxhash.Sum64(data[:end]) != binary.BigEndian.Uint64(data[end:]) {
		return changes, errors.New("checksum does not match: the file is damaged")
	}
	rest = rest[:len(rest)-sumBytes]
	for len(rest) > 0 {
		t := rest[0]
		if t >= resource.NumTypes {
			return changes, fmt.Errorf("resource of type %d", t)
		}
		rest = rest[1:]
		var parts [3][]byte
		for i := range parts {
			n, used := binary.Uvarint(rest)
			if used <= 0 || n > uint64(len(rest)-used) {
				return changes, errors.New("ends within a resource")
			}
			parts[i], rest = rest[used:used+int(n)], rest[used+int(n):]
		}
		changes[t] = append(changes[t], Resource{Name: string(parts[0]), Version: string(parts[1]), Body: parts[2]})
	}
	return changes, nil
}

// writeFile replaces the file in one step: after a crash it is the old or the
// new one.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
