// Package watch follows what applications register in a ZooKeeper and reports it
// to the mesh.
//
// Run opens one session, reads every root and every service below it, hands the
// whole on, and then rereads what the server's watch events name: one Apply a
// changed service. When the connection dies, Run returns, having deleted nothing;
// its caller runs it again. Run may be called once at a time.
//
// One connection is one session, what a service is in each layout, and how a
// client library's gaps are closed: RATIONALE.md of bridges/zookeeper.
package watch

import (
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"
)

// Layout is how applications arrange their entries below a root.
type Layout uint8

// The layouts.
const (
	Dubbo  Layout = iota // <root>/<interface>/providers/<URL>, the node's name says all
	Spring               // <root>/<service>/<id>, Curator's JSON in the node's data
)

// Root is a node below which services are registered.
type Root struct {
	Layout Layout
	Path   string // "/dubbo", with the chroot before it
}

// Auth is one credential presented to ZooKeeper.
type Auth struct {
	Scheme     string // "digest"
	Credential string // "user:password"; never logged
}

// Config says what to follow. The zookeeper package checks it and fills defaults.
type Config struct {
	Servers        []string // host:port each
	Chroot         string   // must exist; "" is the whole tree
	Roots          []Root
	Namespace      string // of all services
	SessionTimeout time.Duration
	Auth           []Auth
	ServicePorts   map[string]uint16 // by the registry's protocol name, over the protocol's default
	Log            *slog.Logger
}

// Memory is what instances last registered, from one session to the next: of one
// that was overwritten in between by something unreadable nothing else is known.
// The zero value is empty; it belongs to the Run under way.
type Memory struct {
	nodes map[key]map[string]*node // of services whose entries have data
}

// note takes over what was read of u.
func (m *Memory) note(u *unit) {
	if u.layout == Dubbo {
		return // a provider's name says all, and never changes
	}
	if m.nodes == nil {
		m.nodes = map[key]map[string]*node{}
	}
	m.nodes[u.key] = u.shown
}

// retain forgets the services of a root that are not listed.
func (m *Memory) retain(root int, listed map[key]bool) {
	maps.DeleteFunc(m.nodes, func(k key, _ map[string]*node) bool { return k.root == root && !listed[k] })
}

// Pace of the follower.
const (
	// maxReads bounds the services that are read at once. On one connection
	// requests are pipelined; the server answers them in order.
	maxReads = 64
	// maxGets bounds the entries of one service that are read at once.
	maxGets = 16
	// shortWindow and longWindow bound the time from one read of a service to
	// the next: a read that takes long is repeated less often, so that at most
	// one part in windowShare of the time goes into it.
	shortWindow = 20 * time.Millisecond
	longWindow  = 200 * time.Millisecond
	windowShare = 5
	// retryRead is when a service that could not be read is tried again.
	retryRead = 5 * time.Second
	// statusEvery is the shortest time between two reports of the same phase.
	statusEvery = time.Second
	// confirmEvery is how often a quiet registry is reported as still complete.
	confirmEvery = 30 * time.Second
)

// window is the time from the start of one read to the next.
func window(took time.Duration) time.Duration {
	return min(max(windowShare*took, shortWindow), longWindow)
}

// oneLine renders an error for a table: joined errors on one line, bounded.
func oneLine(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "..."
	}
	return text
}

// maxReason and maxWhere bound the texts of a rejected entry, in bytes.
const (
	maxReason = 512
	maxWhere  = 256
)

// where names a node in a rejected entry.
func where(path string) string {
	if len(path) > maxWhere {
		path = strings.ToValidUTF8(path[:maxWhere], "") + "..."
	}
	for i := range len(path) {
		if path[i] < ' ' || path[i] == 0x7f {
			return fmt.Sprintf("%q", path)
		}
	}
	return path
}
