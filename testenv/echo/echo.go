// Package echo is the application of the demo and the tests: it says which
// instance answers and what reached it.
//
// Every path answers any method with an Answer in JSON, or, with ?format=text,
// the body as it came. These paths do more:
//
//	/bytes/N    N bytes of a fixed pattern, with Content-Length
//	/chunks/N   N chunks, flushed one by one; ?size=BYTES of each, ?every=DURATION between
//	/sse        server-sent events; ?count=N, ?every=DURATION between
//	/stream     the request's body, returned while it still comes
//	/trailers   the body, then trailers with its length and hash and with the request's own trailers
//	/upgrade    101 to whatever protocol the Upgrade header names, then raw bytes both ways
//
// On every path ?delay=DURATION waits first and ?status=CODE sets the status.
// The headers X-Echo-Id and X-Echo-Version name the instance on every answer. A
// server may speak plain TCP instead; see Config.
package echo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// drainTime bounds the wait for open requests when the server ends.
const drainTime = 10 * time.Second

// headerTime bounds the wait for a request's header.
const headerTime = 30 * time.Second

// Config describes a server.
type Config struct {
	Listener net.Listener // closed by Run
	ID       string       // of the instance, in every answer
	Version  string       // of the application, in every answer

	// TCP returns the bytes of each connection instead of speaking HTTP.
	TCP bool
	// Banner begins each TCP connection with "ID VERSION\n", so that the client
	// learns whom it has reached.
	Banner bool
}

// Server is an echo server. Make it with New.
type Server struct {
	cfg Config
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Listener == nil {
		return nil, errors.New("echo: no listener")
	}
	if cfg.Banner && !cfg.TCP {
		return nil, errors.New("echo: a banner without TCP")
	}
	return &Server{cfg: cfg}, nil
}

// Run serves until ctx ends, then waits up to 10 s for open requests. It returns
// nil if ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	if s.cfg.TCP {
		return runTCP(ctx, s.cfg)
	}
	server := &http.Server{Handler: handler(s.cfg), ReadHeaderTimeout: headerTime}
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if server.Shutdown(bound) != nil {
			_ = server.Close() // they had their time
		}
	})
	err := server.Serve(s.cfg.Listener)
	if !stop() {
		<-drained // Serve returns at once; open requests are still finishing
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve echo: %w", err)
}
