// Package codec is the contract of a protocol.
//
// A Codec owns the bytes: it recognises its protocol, decodes requests from a
// downstream connection, sends them to a host and passes the answers back. What
// to do with a request — which host, whether to try again, what to answer when
// nobody can, what to count and log — is decided by an Exchange, which does no
// I/O: proxy/stream implements it. So the same decisions serve codecs that drive
// a request to its end on the connection's goroutine (http1, tcp) and codecs that
// have many under way on one (HTTP/2, Dubbo, Bolt). The suite codectest.Run holds
// every codec to this contract.
//
// A Codec may be used from any goroutine; a Session and its Exchanges belong to
// one connection.
//
// Why not a decoded message and channels: ../RATIONALE.md, "Codecs".
package codec

import (
	"context"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// Verdict is what a codec says about the first bytes of a connection.
type Verdict uint8

// Verdicts.
const (
	NeedMore Verdict = iota // these bytes are a beginning of the protocol, and of others
	Match
	NoMatch
)

// Codec is one protocol.
type Codec interface {
	// Name is the protocol's name in logs, lower case: "http1".
	Name() string
	// Sniff judges the first bytes that a client sent.
	Sniff(prefix []byte) Verdict
	// Serve serves a downstream connection until it ends, and closes it. It
	// returns nil after an orderly end, which includes one by Drain. It does not
	// outlive ctx by more than it takes to close the connection. Of one that
	// MayRest it may return conn.ErrAtRest, with nothing under way, and is called
	// again when there is something to do.
	Serve(ctx context.Context, c *conn.Conn, cfg Config, s Session) error
}

// Config is what a listener says about its connections. Zero fields mean the
// defaults that are given with each; a time-out below 0 means none.
type Config struct {
	MaxHeadBytes int           // of a request or response; 60 KiB
	HeadTimeout  time.Duration // from the first byte of a head to its end; 10 s
	IdleTimeout  time.Duration // without a request; 1 h
	StreamIdle   time.Duration // of silence within a request; 5 min
}

// Defaults fills zero fields.
func (c Config) Defaults() Config {
	if c.MaxHeadBytes <= 0 {
		c.MaxHeadBytes = 60 << 10
	}
	if c.HeadTimeout == 0 {
		c.HeadTimeout = 10 * time.Second
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = time.Hour
	}
	if c.StreamIdle == 0 {
		c.StreamIdle = 5 * time.Minute
	}
	return c
}
