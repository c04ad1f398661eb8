// Package echotest starts echo servers for tests.
//
// A server listens on a free port of 127.0.0.1 in the test's own process and
// ends with the test. Start must be called from the test's goroutine.
package echotest

import (
	"context"
	"net"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/echo"
)

// Start starts a server and returns its address, host:port. It fills in the
// configuration's Listener where that is nil.
func Start(t testing.TB, cfg echo.Config) (addr string) {
	t.Helper()
	if cfg.Listener == nil {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listener = listener
	}
	server, err := echo.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cfg.Listener.Addr().String()
}
