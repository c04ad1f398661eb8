package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

// dialTimeout bounds one attempt to reach one server.
const dialTimeout = 2 * time.Second

// errOver ends a session's further attempts to connect.
var errOver = errors.New("session is over")

// session is one ZooKeeper session on one connection: when the connection dies,
// the session is over, and a new one reads everything again (RATIONALE.md, "One
// connection, one session").
type session struct {
	*zk.Conn
	events  <-chan zk.Event // closed when the library's goroutines ended
	timeout time.Duration
	log     *slog.Logger
	servers int // how many there are to try
	dialer  net.Dialer

	stop   context.CancelFunc // ends a dial under way
	up     chan struct{}      // closed when the server accepted the session
	over   chan struct{}      // closed when it ended or could not begin
	wake   chan struct{}      // capacity 1: paths changed
	ending sync.Once

	mu      sync.Mutex // guards the fields below
	current *guard
	joined  bool
	err     error               // why the session ended
	tried   []error             // of servers that gave no session
	changed map[string]struct{} // paths that the server said changed
	closing bool
}

// connect opens a session with the first server that accepts one. It tries each
// server once.
func connect(ctx context.Context, cfg Config) (*session, error) {
	s := &session{
		timeout: cfg.SessionTimeout, log: cfg.Log, servers: len(cfg.Servers), dialer: net.Dialer{Timeout: dialTimeout},
		up: make(chan struct{}), over: make(chan struct{}), wake: make(chan struct{}, 1), changed: map[string]struct{}{},
	}
	dialCtx, stop := context.WithCancel(ctx)
	s.stop = stop
	dial := func(network, address string, _ time.Duration) (net.Conn, error) {
		return s.dial(dialCtx, network, address)
	}
	conn, events, err := zk.Connect(cfg.Servers, cfg.SessionTimeout,
		zk.WithDialer(dial), zk.WithEventCallback(s.onEvent), zk.WithHostProvider(&rotation{}),
		zk.WithLogger(s), zk.WithLogInfo(false), zk.WithMaxBufferSize(maxReply))
	if err != nil {
		s.stop()
		return nil, err
	}
	s.Conn, s.events = conn, events
	limit := time.NewTimer(dialTimeout*time.Duration(s.servers) + s.timeout)
	defer limit.Stop()
	select {
	case <-s.up:
		if err := s.authenticate(ctx, cfg.Auth); err != nil {
			s.close()
			return nil, err
		}
		return s, nil
	case <-s.over:
	case <-limit.C:
		s.end(errors.New("no server accepted a session in time"))
	case <-ctx.Done():
		s.end(ctx.Err())
	}
	s.close()
	return nil, s.why(nil)
}

// authenticate presents all credentials.
func (s *session) authenticate(ctx context.Context, all []Auth) error {
	stop := context.AfterFunc(ctx, s.hangUp)
	defer stop()
	for _, auth := range all {
		if err := s.AddAuth(auth.Scheme, []byte(auth.Credential)); err != nil {
			return fmt.Errorf("authenticate with scheme %s: %w", auth.Scheme, s.why(err))
		}
	}
	return nil
}

// dial is the library's dialer. Once a session stood, its connection is not
// replaced.
func (s *session) dial(ctx context.Context, network, address string) (net.Conn, error) {
	s.mu.Lock()
	done := s.joined || s.closing
	s.mu.Unlock()
	if done || ctx.Err() != nil {
		return nil, errOver
	}
	conn, err := s.dialer.DialContext(ctx, network, address)
	if err != nil {
		s.refused(err)
		return nil, err
	}
	g := &guard{Conn: conn, limit: s.timeout}
	s.mu.Lock()
	if s.current != nil {
		_ = s.current.Close() // the library forgets connections that were refused a session
	}
	s.current = g
	s.mu.Unlock()
	return g, nil
}

// refused counts a server that gave no session, and gives up when all did.
func (s *session) refused(err error) {
	s.mu.Lock()
	s.tried = append(s.tried, err)
	tried := slices.Clip(s.tried)
	s.mu.Unlock()
	if len(tried) >= s.servers {
		s.end(errors.New(oneLine(errors.Join(tried...))))
	}
}

// onEvent is called by the library's goroutines and must not wait. Watch events
// of a path come before the replies that show the change.
func (s *session) onEvent(e zk.Event) {
	if e.Type != zk.EventSession {
		if e.Type != zk.EventNotWatching {
			s.mu.Lock()
			s.changed[e.Path] = struct{}{}
			s.mu.Unlock()
			select {
			case s.wake <- struct{}{}:
			default: // a wake-up is pending; the reader will find the path
			}
		}
		return
	}
	switch e.State {
	case zk.StateHasSession:
		s.mu.Lock()
		first := !s.joined
		s.joined = true
		s.mu.Unlock()
		if first {
			close(s.up)
		}
	case zk.StateAuthFailed:
		s.end(zk.ErrAuthFailed)
	case zk.StateDisconnected:
		s.disconnected(errors.New("connection closed by the server or the network"))
	}
}

func (s *session) disconnected(err error) {
	s.mu.Lock()
	joined := s.joined
	if s.current != nil {
		if bad := s.current.refused(); bad != nil {
			err = fmt.Errorf("%s: %w", s.current.RemoteAddr(), bad)
		}
	}
	s.mu.Unlock()
	if joined {
		s.end(err)
		return
	}
	s.refused(err)
}

// end marks the session as over; the first reason holds.
func (s *session) end(err error) {
	s.ending.Do(func() {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		close(s.over)
	})
}

// why is the reason for the session's end, or err while there is none.
func (s *session) why(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return err
}

// take returns the paths that changed since the last call.
func (s *session) take() map[string]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := s.changed
	s.changed = map[string]struct{}{}
	return paths
}

// close ends the session at the server, when that still answers, and returns once
// the library's goroutines have ended.
func (s *session) close() {
	s.end(errOver)
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.stop()
	s.Close() // waits for the server for a second at most
	s.hangUp()
	for range s.events { // drained until the library closes it
	}
}

// hangUp closes the connection, which ends the library's loops and every request
// under way.
func (s *session) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		_ = s.current.Close() // it is being given up
	}
}

// Printf implements zk.Logger.
func (s *session) Printf(format string, args ...any) {
	s.log.Debug("zookeeper client", "text", fmt.Sprintf(format, args...))
}

// list returns the names of path's children, and asks for one event when they
// change if watch is set.
func (s *session) list(path string, watch bool) ([]string, error) {
	if watch {
		names, _, _, err := s.ChildrenW(path)
		return names, err
	}
	names, _, err := s.Children(path)
	return names, err
}

// get returns the data of path and its modification time in ms, and asks for one
// event when it changes.
func (s *session) get(path string) ([]byte, int64, error) {
	data, stat, _, err := s.GetW(path)
	if err != nil {
		return nil, 0, err
	}
	return data, stat.Mtime, nil
}

// absent asks for one event when path appears, and reports that it is not there.
func (s *session) absent(path string) (bool, error) {
	there, _, _, err := s.ExistsW(path)
	return !there, err
}

// rotation hands the servers out in turn, names unresolved: the dialer resolves
// them anew on each attempt.
type rotation struct {
	mu      sync.Mutex // guards the fields below
	servers []string
	next    int
}

// Init implements zk.HostProvider.
func (r *rotation) Init(servers []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers = servers
	return nil
}

// Len implements zk.HostProvider.
func (r *rotation) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.servers)
}

// Next implements zk.HostProvider. retryStart makes the library wait a second,
// and drop its requests, before it goes round again.
func (r *rotation) Next() (server string, retryStart bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	server = r.servers[r.next%len(r.servers)]
	retryStart = r.next > 0 && r.next%len(r.servers) == 0
	r.next++
	return server, retryStart
}

// Connected implements zk.HostProvider.
func (r *rotation) Connected() {}
