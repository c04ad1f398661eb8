// Package bridgetest is the suite that every bridges.Source passes against its
// real registry: whatever the network or the registry does, no endpoint is lost
// that the registry did not take away, and what it took away goes.
//
// A package of a source calls Run from its tests with a Harness of its own.
// Scenarios run one after the other, each on a fresh Registry; methods of
// Harness, Registry and Proxy are called from the test's goroutine only, those of
// the Source and its sink from the goroutine of the source.
//
// Why a harness brings its own proxy and what a durable registry is:
// RATIONALE.md.
package bridgetest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
)

// Harness starts registries of one kind.
type Harness interface {
	// Start starts a real and empty registry, which ends with the test. It
	// returns once the registry serves.
	Start(t testing.TB) Registry
	// Proxy puts a fault proxy before target, which ends with the test. It is
	// not called when Registry.Addr is empty.
	Proxy(t testing.TB, target string) Proxy
}

// Registry is one registry, with the applications that are registered in it.
// Its methods fail the test themselves when the registry refuses.
type Registry interface {
	// Addr is where the registry listens, "127.0.0.1:2181". Empty means that it
	// lives in this process and is reached without a network: scenarios of the
	// network and of the registry's death are then skipped.
	Addr() string
	// Source makes the source under test, which reaches the registry through
	// via only, with a session or lease time short enough for tests (2 s).
	Source(t testing.TB, via string) bridges.Source
	// Put registers i as an unmodified application would, or changes what is
	// registered at the same service and address. It goes to the registry
	// directly, never through the proxy, and returns once acknowledged.
	Put(t testing.TB, i Instance)
	// PutAll is Put for many instances, as fast as the registry allows.
	PutAll(t testing.TB, all []Instance)
	// Remove deregisters i in an orderly way.
	Remove(t testing.TB, i Instance)
	// PutBroken stores something under the service that has the place of an
	// instance and cannot be understood. It returns a part of the Where or
	// Reason by which the source must report it, or "" when this kind of
	// registry lets nobody store such a thing.
	PutBroken(t testing.TB, service string) string
	// Break overwrites what is registered for i, in its place, with something
	// that cannot be understood; Put and Remove work on it as before. It returns
	// what PutBroken does.
	Break(t testing.TB, i Instance) string
	// Expire ends the leases of all instances at once, as when their
	// applications died or were cut off, and returns when the registry has
	// taken them away.
	Expire(t testing.TB)
	// Kill ends the registry as kill -9 does, Restart starts it again at the
	// same address and returns once it serves. Applications that were
	// registered are registered again when Restart returns.
	Kill(t testing.TB)
	Restart(t testing.TB)
	// Durable says that registrations survive Kill and Restart in the registry
	// itself, so that at no moment after the restart it answers with less.
	// Without it the suite keeps the source away until Restart returned.
	Durable() bool
}

// Instance is one instance of a service. Every registry can hold one.
type Instance struct {
	Service string         // host of the service: lower-case letters, digits, dots
	Address netip.AddrPort // an IPv4 address in 127.0.0.0/8
	Version string         // reported as label "version"; never empty
}

// Proxy stands between a source and its registry and breaks what passes. Faults
// do not add up, the last one set holds, and Resume ends it; a fault reaches open
// connections, too. testenv/faultproxy is one.
type Proxy interface {
	// Addr is where the source connects, "127.0.0.1:40001".
	Addr() string
	// Cut resets all open connections and refuses new ones.
	Cut()
	// Delay delivers every byte later by d, in each direction.
	Delay(d time.Duration)
	// ResetAfter resets each connection once n more bytes of the registry's
	// answers have passed.
	ResetAfter(n int)
	// Blackhole keeps connections open, accepts new ones, and lets no byte pass.
	Blackhole()
	// Resume ends whatever is wrong.
	Resume()
}
