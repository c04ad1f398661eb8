// Package http1 is HTTP/1.0 and 1.1: it reads requests strictly, sends them to
// hosts over pooled connections and passes the answers back.
//
// The goroutine of the downstream connection reads a head, asks the exchange what
// to do, sends head and body in one write inside the upstream's poll loop and
// relays the response from there; nothing is handed to another goroutine. Only a
// body that did not come with its head gets a second goroutine, so that request
// and response may flow at the same time. A Codec may be used by any number of
// connections.
//
// What is refused, added and removed: README.md. What was weighed:
// ../../RATIONALE.md, "HTTP/1".
package http1

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/proxy/codec"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
)

// Codec serves HTTP/1. Make it with New.
type Codec struct {
	calls sync.Pool // of *call
	now   atomic.Pointer[dateLine]
}

// New returns a codec.
func New() *Codec {
	return &Codec{calls: sync.Pool{New: func() any { return new(call) }}}
}

// Name returns "http1".
func (*Codec) Name() string { return "http1" }

// maxMethod is the longest method Sniff believes in.
const maxMethod = 20

// Sniff looks for a method, a space and the beginning of a target. The preface of
// HTTP/2 looks like that too and is told apart by its target "*".
func (*Codec) Sniff(prefix []byte) codec.Verdict {
	for i, c := range prefix {
		switch {
		case c == ' ' && i > 0:
			return sniffTarget(prefix[:i], prefix[i+1:])
		case c < 'A' || c > 'Z' || i >= maxMethod:
			return codec.NoMatch
		}
	}
	return codec.NeedMore
}

func sniffTarget(method, target []byte) codec.Verdict {
	switch {
	case len(target) == 0:
		return codec.NeedMore
	case string(method) == "PRI":
		return codec.NoMatch
	case target[0] == '/' || target[0] == '*' || classes[target[0]]&isHost != 0:
		return codec.Match
	}
	return codec.NoMatch
}

// Serve implements codec.Codec.
func (k *Codec) Serve(ctx context.Context, c *conn.Conn, cfg codec.Config, s codec.Session) error {
	d := &downstream{codec: k, c: c, cfg: cfg.Defaults(), session: s, dial: codec.NewDialer(ctx), idleSince: c.Now()}
	d.sleep = func(wait time.Duration) {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	stop := context.AfterFunc(ctx, c.Abort)
	defer stop()
	defer c.Close()
	c.SetStall(d.cfg.StreamIdle)
	err := c.Loop(d)
	d.finish()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve http1: %w", err)
	}
	return nil
}

// dateLine is a Date field good for one second.
type dateLine struct {
	second int64
	line   string
}

// date returns the current Date field line.
func (k *Codec) date(c *conn.Conn) string {
	t := c.Wheel().Time(c.Now())
	second := t.Unix()
	if d := k.now.Load(); d != nil && d.second == second {
		return d.line
	}
	d := &dateLine{second, "date: " + t.UTC().Format(http.TimeFormat) + "\r\n"}
	k.now.Store(d)
	return d.line
}

func statusText(status int) string {
	if s := http.StatusText(status); s != "" {
		return s
	}
	return "Unknown"
}
