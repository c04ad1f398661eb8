package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// tcpServer returns what comes, on every connection. It closes a connection
// when its client has, and all of them when it ends.
type tcpServer struct {
	banner string // immutable

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]struct{}
	ended bool
}

func runTCP(ctx context.Context, cfg Config) error {
	s := &tcpServer{conns: make(map[net.Conn]struct{})}
	if cfg.Banner {
		s.banner = fmt.Sprintf("%s %s\n", cfg.ID, cfg.Version)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = cfg.Listener.Close()
		s.end()
	})
	defer stop()

	var tasks sync.WaitGroup
	defer tasks.Wait()
	for {
		conn, err := cfg.Listener.Accept()
		if err != nil {
			s.end()
			if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("serve echo: %w", err)
		}
		tasks.Go(func() { s.serve(conn) })
	}
}

func (s *tcpServer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if !s.add(conn) {
		return
	}
	defer s.remove(conn)
	if _, err := io.WriteString(conn, s.banner); err != nil {
		return // the client left
	}
	_, _ = io.Copy(conn, conn)
}

// add reports whether the connection may be served.
func (s *tcpServer) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.conns[conn] = struct{}{}
	}
	return !s.ended
}

func (s *tcpServer) remove(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// end closes every connection, and those that are yet to be added.
func (s *tcpServer) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for conn := range s.conns {
		_ = conn.Close()
	}
}
