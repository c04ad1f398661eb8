package stream

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
)

var errNoCodec = errors.New("listener has no codec")

// Serve serves one connection until it ends, and closes it. It returns nil after
// an orderly end, and what went wrong with the socket otherwise. When ctx ends
// the connection is cut off. A connection that MayRest it leaves open when there
// is nothing to do, returns conn.ErrAtRest, and is called again when it wakes.
func (h *HTTP) Serve(ctx context.Context, c *conn.Conn) (err error) {
	if h.Codec == nil {
		c.Close()
		return errNoCodec
	}
	if !c.Rested() {
		countConnection(h.Stats, c.Shard())
	}
	s := &session{h: h, c: c}
	cfg := codec.Config{MaxHeadBytes: h.MaxHeaderBytes, HeadTimeout: h.HeaderTimeout, IdleTimeout: h.IdleTimeout, StreamIdle: h.StreamIdle}
	defer func() { // also when a panic passes
		if !errors.Is(err, conn.ErrAtRest) {
			h.Stats.ConnectionActive.Add(c.Shard(), -1)
		}
	}()
	return h.Codec.Serve(ctx, c, cfg, s)
}

func countConnection(stats *telemetry.Downstream, shard uint32) {
	stats.ConnectionTotal.Add(shard, 1)
	stats.ConnectionActive.Add(shard, 1)
}

// session is one downstream HTTP connection.
type session struct {
	h *HTTP
	c *conn.Conn
}

// Open implements codec.Session.
func (s *session) Open() codec.Exchange {
	x, ok := s.h.exchanges.Get().(*exchange)
	if !ok {
		x = new(exchange)
	}
	x.h, x.c = s.h, s.c
	return x
}

// Malformed implements codec.Session.
func (s *session) Malformed(status int, at clock.Instant) {
	stats, shard := s.h.Stats, s.c.Shard()
	stats.RequestTotal.Add(shard, 1)
	stats.RequestMalformed.Add(shard, 1)
	if status == 0 || status >= 500 {
		stats.RequestFailed.Add(shard, 1) // as an exchange that ends so
	}
	if s.h.Log == nil {
		return
	}
	s.h.Log.Log(shard, &telemetry.Entry{
		Start: s.c.Wheel().Time(at), Failed: true, Status: status, Flags: telemetry.DownstreamProtocolError,
		DownstreamProtocol: "HTTP/1.1", DownstreamLocal: s.c.LocalAddr(), DownstreamRemote: s.c.RemoteAddr(),
	})
}

// Serve serves one connection until it ends, and closes it. It returns nil after
// an orderly end. When ctx ends the connection is cut off.
func (t *TCP) Serve(ctx context.Context, c *conn.Conn) error {
	if t.Codec == nil {
		c.Close()
		return errNoCodec
	}
	countConnection(t.Stats, c.Shard())
	defer t.Stats.ConnectionActive.Add(c.Shard(), -1)
	idle := t.IdleTimeout
	if idle == 0 {
		idle = time.Hour
	}
	return t.Codec.Serve(ctx, c, codec.Config{IdleTimeout: idle, StreamIdle: idle}, &tcpSession{t: t, c: c})
}

func random() uint64 { return rand.Uint64() }
