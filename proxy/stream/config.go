// Package stream is the middle of the proxy: it takes a request that a codec
// decoded on a downstream connection, routes it, sends it to a host of the chosen
// cluster, retries where it may, and copies the reply back.
//
// HTTP and TCP serve the connections of a listener: a codec does the I/O and asks
// an exchange of this package at every turn. Exchanges do no I/O and never block.
// Serve may be called from any number of goroutines.
//
// Answers and flags are Envoy's: ../RATIONALE.md, "Answers".
package stream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

// HTTP is what connections of one HTTP listener are served by. It is made by
// proxy/snapshot and not modified afterwards, but for the table behind Routes.
type HTTP struct {
	Routes  *atomic.Pointer[router.Table] // nil table: 503 until routes arrive
	Stats   *telemetry.Downstream
	Log     *telemetry.AccessLog // nil: no access log
	Codec   codec.Codec          // one of the process's, http1.New()
	Inbound bool
	// RequestID gives requests that have none an x-request-id.
	RequestID bool
	// MaxHeaderBytes bounds a request's or response's head; 0 means 60 KiB.
	MaxHeaderBytes int
	// Time-outs; below 0 means none.
	HeaderTimeout time.Duration // first byte to end of head; 0 means 10 s
	IdleTimeout   time.Duration // between requests; 0 means 1 h
	StreamIdle    time.Duration // silence within a request; 0 means 5 min

	exchanges sync.Pool // of *exchange
}

// TCP is what connections of one TCP listener are served by.
type TCP struct {
	Destinations []TCPDestination
	Stats        *telemetry.Downstream
	Log          *telemetry.AccessLog // nil: no access log
	Codec        codec.Codec          // one of the process's, tcp.New()
	Inbound      bool
	IdleTimeout  time.Duration // silence in both directions; 0 means 1 h, below 0 none
	// ConnectAttempts is how many hosts a connection tries: nothing was sent
	// before one of them accepts. 0 means 3; at most MaxConnectAttempts.
	ConnectAttempts int
}

// MaxConnectAttempts bounds TCP.ConnectAttempts.
const MaxConnectAttempts = 8

// TCPDestination is one weighted cluster.
type TCPDestination struct {
	Cluster *upstream.Cluster
	Weight  uint32
}
