package manage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/isthmus-mesh/isthmus/xds/api"
)

// loopbackOnly refuses an address that others than this machine can reach: the API
// authenticates nobody yet.
func loopbackOnly(addr net.Addr) error {
	if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return fmt.Errorf("mesh api: listening on %v would let every machine that reaches it change the rules, and callers are not authenticated yet: listen on 127.0.0.1 or [::1]", addr)
	}
	return nil
}

// guard keeps web pages out. A page of another origin says so in Origin; a page
// whose name was rebound to 127.0.0.1 is of the same origin and betrays itself by
// Host. Programs send a loopback Host and no Origin.
func guard(hosts []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localHost(r.Host, hosts) {
			http.Error(w, fmt.Sprintf("host %q is not served here: call the Mesh API by a loopback address or localhost", r.Host), http.StatusForbidden)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			u, err := url.Parse(origin)
			if err != nil || !strings.EqualFold(u.Host, r.Host) {
				http.Error(w, fmt.Sprintf("origin %q may not call the Mesh API", origin), http.StatusForbidden)
				return
			}
		}
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
			http.Error(w, "other sites may not call the Mesh API", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func localHost(hostPort string, hosts []string) bool {
	host := hostPort
	if h, _, err := net.SplitHostPort(hostPort); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// lane bounds the calls of some services, so that they cannot crowd out others.
type lane struct {
	bodies    chan struct{} // a token for each body that is arriving
	calls     chan struct{} // a token for each call that runs
	bodyBytes int64         // the largest body
}

func newLane(bodies, calls int, bodyBytes int64) lane {
	return lane{make(chan struct{}, bodies), make(chan struct{}, calls), bodyBytes}
}

// lanes are all there are. A lease that is not renewed takes endpoints out of the
// mesh, so WorkloadService waits for nobody else's calls. A reflection stream stays
// open as long as its client likes, so there are few.
type lanes struct{ rules, workloads, reflection lane }

func newLanes() *lanes {
	return &lanes{
		// Bodies that only arrive cost memory: 256 of 2 MiB, 512 of 256 KiB.
		rules:      newLane(256, 128, maxRequest+1<<10),
		workloads:  newLane(512, 128, 256<<10),
		reflection: newLane(16, 16, 0),
	}
}

// of returns the lane of a procedure ("/package.Service/Method").
func (l *lanes) of(procedure string) *lane {
	switch {
	case strings.HasPrefix(procedure, "/"+api.WorkloadServiceName+"/"):
		return &l.workloads
	case strings.HasPrefix(procedure, "/grpc.reflection."):
		return &l.reflection
	}
	return &l.rules
}

// receive reads a request's whole body before its call takes a place among those
// that run: a caller that stalls holds none, and is sent away after bodyTime.
// Reflection is the only stream; its messages come whenever its client wants.
func (s *Server) receive(next http.Handler) http.Handler {
	refuse := connecthttp.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l := s.lanes.of(r.URL.Path)
		if l == &s.lanes.reflection {
			next.ServeHTTP(w, r)
			return
		}
		body, err := l.read(w, r, s.bodyTime)
		if err != nil {
			wire := wireError(err)
			s.cfg.Log.Debug("mesh api request refused", "procedure", r.URL.Path, "code", wire.Code().String(), "error", err)
			if r.ProtoMajor == 1 {
				w.Header().Set("Connection", "close") // the rest of the body is in the way of another request
			}
			_ = refuse.Write(w, r, wire) // the caller left
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// read returns the body of r.
func (l *lane) read(w http.ResponseWriter, r *http.Request, within time.Duration) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	select {
	case l.bodies <- struct{}{}:
	default:
		return nil, overLimit("%d requests are arriving; try again", cap(l.bodies))
	}
	defer func() { <-l.bodies }()
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, fmt.Errorf("bound the time of a request: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, l.bodyBytes))
	if big, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, overLimit("the request has more than %d bytes", big.Limit)
	}
	if err != nil {
		return nil, &bodyError{err}
	}
	// From here on the connection is only watched for the caller's leaving.
	if err := control.SetReadDeadline(time.Now().Add(callTime)); err != nil {
		return nil, fmt.Errorf("bound the time of a request: %w", err)
	}
	return body, nil
}

// admit bounds how many calls run at once and how long each may take.
func (s *Server) admit(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		l := s.lanes.of(spec.Procedure)
		select {
		case l.calls <- struct{}{}:
		default:
			return overLimit("%d calls are running; try again", cap(l.calls))
		}
		defer func() { <-l.calls }()
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		return next(ctx, spec, stream)
	}
}
