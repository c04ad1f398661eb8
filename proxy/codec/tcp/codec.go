// Package tcp passes bytes between a client and a host as they are.
//
// The goroutine of the downstream connection carries the client's bytes, a second
// one the host's; each waits for the slower side, and the end of one direction
// leaves the other open. A Codec may be used by any number of connections.
//
// Why it copies and does not splice: ../../RATIONALE.md, "TCP".
package tcp

import (
	"context"
	"errors"
	"fmt"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/pool"
)

// Codec serves TCP.
type Codec struct{}

// New returns a codec.
func New() *Codec { return &Codec{} }

// Name returns "tcp".
func (*Codec) Name() string { return "tcp" }

// Sniff accepts everything, even silence: the server may speak first.
func (*Codec) Sniff([]byte) codec.Verdict { return codec.Match }

const protocol = "TCP"

// Serve implements codec.Codec. Config.StreamIdle bounds silence in both
// directions.
func (*Codec) Serve(ctx context.Context, c *conn.Conn, cfg codec.Config, s codec.Session) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, c.Abort)
	defer stop()
	cfg = cfg.Defaults()
	c.SetStall(cfg.StreamIdle)
	x := s.Open()
	step := x.Begin(nil, c.Now())
	dial := codec.NewDialer(ctx)
	for step.Action == codec.Send {
		up, failure := dial.Connect(c, step)
		if failure == codec.None {
			return relay(c, up, cfg, x)
		}
		step = x.Failed(failure, true, c.Now())
	}
	x.End(&codec.End{At: c.Now(), DownstreamProtocol: protocol})
	c.ResetOnClose()
	return nil
}

func relay(c *conn.Conn, up *pool.Conn, cfg codec.Config, x codec.Exchange) error {
	end := codec.End{Sent: c.Now(), DownstreamProtocol: protocol, UpstreamProtocol: protocol}
	up.SetStall(cfg.StreamIdle)
	r := conn.NewRelay(c, up.Conn, max(cfg.StreamIdle, 0), true)
	done := make(chan error, 1)
	go func() { done <- carry(up.Conn, &r.Down) }()
	err := errors.Join(carry(c, &r.Up), <-done)
	up.Close()
	end.At, end.RequestBytes, end.ResponseBytes = c.Now(), r.Up.Bytes, r.Down.Bytes
	end.Flags = flags(r)
	x.End(&end)
	if err != nil {
		return fmt.Errorf("relay tcp: %w", err)
	}
	return nil
}

// carry runs one half; if it cannot be waited for, both ends.
func carry(from *conn.Conn, h *conn.Half) error {
	err := from.Loop(h)
	if err != nil {
		h.Cancel(err)
	}
	return err
}

func flags(r *conn.Relay) (f telemetry.Flags) {
	for _, h := range []*conn.Half{&r.Up, &r.Down} {
		client := (h == &r.Up) != h.Wrote // the side that the error came from
		switch {
		case h.Err == nil:
		case errors.Is(h.Err, conn.ErrIdle):
			f |= telemetry.StreamIdleTimeout
		case client:
			f |= telemetry.DownstreamConnectionEnd
		default:
			f |= telemetry.UpstreamConnectionEnd
		}
	}
	return f
}
