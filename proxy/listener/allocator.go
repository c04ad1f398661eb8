package listener

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Allocator gives each service a loopback address of its own. An address stays
// with its service for as long as the file is there, and mostly without it: the
// first choice follows from the name.
type Allocator struct {
	prefix netip.Prefix
	path   string
	taken  map[string]netip.Addr
}

// allocations is the file.
type allocations struct {
	Addresses map[string]netip.Addr `json:"addresses"`
}

// NewAllocator reads path, which need not exist; empty: nothing is kept. Prefix is an IPv4
// prefix of at most 29 bits. Addresses outside it are forgotten: the prefix was
// changed.
func NewAllocator(prefix netip.Prefix, path string) (*Allocator, error) {
	if !prefix.IsValid() || !prefix.Addr().Is4() || prefix.Bits() > 29 {
		return nil, fmt.Errorf("loopback prefix %v: want an IPv4 prefix of at most 29 bits", prefix)
	}
	a := &Allocator{prefix: prefix.Masked(), path: path, taken: map[string]netip.Addr{}}
	if path == "" {
		return a, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read loopback addresses: %w", err)
	}
	var kept allocations
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, fmt.Errorf("read loopback addresses: %s: %w", path, err)
	}
	used := map[netip.Addr]bool{}
	for service, addr := range kept.Addresses {
		if a.prefix.Contains(addr) && !used[addr] {
			a.taken[service], used[addr] = addr, true
		}
	}
	return a, nil
}

// Allocate returns the address of each service, and keeps new ones on disk. On an
// error of the disk the addresses are good, but may differ after a restart.
func (a *Allocator) Allocate(services []string, reserved ...netip.Addr) (map[string]netip.Addr, error) {
	out := make(map[string]netip.Addr, len(services))
	used := map[netip.Addr]bool{}
	for _, addr := range a.taken {
		used[addr] = true
	}
	for _, addr := range reserved {
		used[addr] = true
	}
	changed := false
	services = slices.Clone(services)
	slices.Sort(services)
	for _, service := range slices.Compact(services) {
		addr, ok := a.taken[service]
		if ok && slices.Contains(reserved, addr) {
			ok = false
		}
		if !ok {
			if addr, ok = a.free(service, used); !ok {
				return out, fmt.Errorf("loopback prefix %v: no address left for %s", a.prefix, service)
			}
			a.taken[service], used[addr], changed = addr, true, true
		}
		out[service] = addr
	}
	if !changed || a.path == "" {
		return out, nil
	}
	return out, a.save()
}

// free finds an address, from the one on that the name points at. The first and
// the last of the prefix are left alone.
func (a *Allocator) free(service string, used map[netip.Addr]bool) (netip.Addr, bool) {
	size := uint64(1)<<(32-a.prefix.Bits()) - 2
	base := a.prefix.Addr().As4()
	first := binary.BigEndian.Uint32(base[:]) + 1
	start := xxhash.Sum64String(service) % size
	for i := range size {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], first+uint32((start+i)%size))
		if addr := netip.AddrFrom4(b); !used[addr] {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

func (a *Allocator) save() error {
	data, err := json.MarshalIndent(allocations{a.taken}, "", "  ")
	if err != nil {
		return fmt.Errorf("keep loopback addresses: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(a.path), 0o700); err != nil {
		return fmt.Errorf("keep loopback addresses: %w", err)
	}
	tmp := a.path + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep loopback addresses: %w", err)
	}
	if err := os.Rename(tmp, a.path); err != nil {
		return fmt.Errorf("keep loopback addresses: %w", err)
	}
	return nil
}
