// Package traffic is both ends of the road that a proxy stands on: the callers
// and the application behind the proxy, driven by one thread on one core.
//
// One thread for both, because what the load costs must not vary with how the
// scheduler mixes two programs: the proxy alone is to be the bottleneck. Every
// answer is checked: status, length and each byte of the body. Memory is taken
// before a measurement, none during it.
package traffic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// BodyBytes is the size of the application's answer.
const BodyBytes = 1024

// Config of a Loop.
type Config struct {
	// Core is the processor that the loop's thread stays on.
	Core int
	// Application lists where the application listens; port 0 is a free one.
	Application []netip.AddrPort
}

// Loop drives callers and application. Use it from any goroutine while Run runs;
// one measurement at a time.
type Loop struct {
	core     int
	addrs    []netip.AddrPort
	sink     netip.AddrPort
	response []byte // what the application answers
	body     []byte

	accepted atomic.Int64 // connections to the application, ever
	served   atomic.Int64 // requests that reached it
	lines    atomic.Int64 // that came to the sink
	lost     atomic.Int64 // held connections that the subject closed

	jobs chan job // capacity 1

	// The fields below belong to the loop's thread.
	epoll, wake, timer int
	open               []*conn // by descriptor
	run                *run    // nil while nothing is measured
	held               []*conn
	buf                []byte
	lastHead           []byte // the head of the last answer and
	lastLength         int    // its Content-Length: most are alike
	began              time.Time
}

// job is a call on the loop's thread.
type job struct {
	do   func() error // nil error: done is sent by the run that it began
	done chan error   // capacity 1
}

// what a descriptor is.
type kind uint8

const (
	listener     kind = iota // of the application
	sinkListener             // of the log sink
	server                   // a connection to the application
	sink                     // a connection that brings log lines
	client                   // a connection of a caller
)

type conn struct {
	fd   int
	kind kind

	tail int // server: how much of the blank line that ends a request was read

	request []byte  // client: what it sends each time
	partial []byte  // client: the part of an answer that has come
	sentAt  int64   // client: when the request was due, ns; 0 while idle
	waiting []int64 // client: requests that are due and wait for this connection
	holding bool    // client: idle for good
}

const readBytes = 256 << 10

// New opens the application's sockets.
func New(cfg Config) (_ *Loop, err error) {
	l := &Loop{
		core: cfg.Core, jobs: make(chan job, 1), buf: make([]byte, readBytes),
		body: bytes.Repeat([]byte("0123456789abcdef"), BodyBytes/16), began: time.Now(),
		epoll: -1, wake: -1, timer: -1,
	}
	l.response = append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n", BodyBytes), l.body...)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	if err := errors.Join(l.watch(l.wake), l.watch(l.timer)); err != nil {
		return nil, err
	}
	for _, a := range cfg.Application {
		at, err := l.listen(a, listener)
		if err != nil {
			return nil, fmt.Errorf("listen on %v: %w", a, err)
		}
		l.addrs = append(l.addrs, at)
	}
	l.sink, err = l.listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), sinkListener)
	return l, err
}

// Application returns where the application listens.
func (l *Loop) Application() []netip.AddrPort { return l.addrs }

// Sink returns where log lines may be sent over TCP; Lines counts them.
func (l *Loop) Sink() netip.AddrPort { return l.sink }

// Lines is the number of lines that have come to the sink.
func (l *Loop) Lines() int64 { return l.lines.Load() }

// Accepted is the number of connections that the application has taken, ever.
func (l *Loop) Accepted() int64 { return l.accepted.Load() }

// Served is the number of requests that have reached the application.
func (l *Loop) Served() int64 { return l.served.Load() }

// Run serves until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	runtime.LockOSThread() // never unlocked: the thread, being bound to a core, ends with Run
	defer l.close()
	var cores unix.CPUSet
	cores.Set(l.core)
	if err := unix.SchedSetaffinity(0, &cores); err != nil {
		return fmt.Errorf("bind the load to core %d: %w", l.core, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.ring() }) // a failed ring is met by the next event
	defer stop()
	events := make([]unix.EpollEvent, 512)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(l.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		for i := range max(0, n) {
			l.event(int(events[i].Fd))
		}
	}
	if l.run != nil {
		l.end(context.Cause(ctx))
	}
	return nil
}

func (l *Loop) event(fd int) {
	switch {
	case fd == l.wake:
		var b [8]byte
		_, _ = unix.Read(fd, b[:]) // only empties it
		select {
		case j := <-l.jobs:
			if err := j.do(); err != nil {
				j.done <- err
			}
		default:
		}
		return
	case fd == l.timer:
		var b [8]byte
		_, _ = unix.Read(fd, b[:]) // the clock says how many ticks passed
		if l.run != nil {
			l.tick()
		}
		return
	}
	c := l.open[fd]
	if c == nil {
		return // closed while this batch of events was worked through
	}
	switch c.kind {
	case listener, sinkListener:
		l.accept(c)
	case server:
		l.serve(c)
	case sink:
		l.drainLog(c)
	case client:
		l.answer(c)
	}
}

// call runs do on the loop's thread and waits for the end of what it began.
func (l *Loop) call(ctx context.Context, do func(done chan<- error) error) error {
	done := make(chan error, 1)
	select {
	case l.jobs <- job{do: func() error { return do(done) }, done: done}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := l.ring(); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Loop) ring() error {
	_, err := unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// now is the loop's clock, in ns.
func (l *Loop) now() int64 { return int64(time.Since(l.began)) }

// answer reads what came for a caller.
func (l *Loop) answer(c *conn) {
	n, err := read(c.fd, l.buf)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err == nil && n == 0 {
		err = errors.New("the connection was closed by the subject")
	}
	if err != nil {
		l.broken(c, err)
		return
	}
	if c.sentAt == 0 {
		l.broken(c, fmt.Errorf("bytes that nobody asked for: %.80q", l.buf[:n]))
		return
	}
	b := l.buf[:n]
	if len(c.partial) > 0 {
		c.partial = append(c.partial, b...)
		b = c.partial
	}
	complete, err := l.check(b)
	if err != nil {
		l.broken(c, err)
		return
	}
	if !complete {
		if len(c.partial) == 0 {
			c.partial = append(c.partial, b...)
		}
		return
	}
	c.partial = c.partial[:0]
	l.answered(c)
}

// check reports whether b is the whole answer that is due.
func (l *Loop) check(b []byte) (complete bool, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return false, nil
	}
	head := b[:end+4]
	if !bytes.Equal(head, l.lastHead) {
		l.lastLength, err = contentLength(head)
		if err != nil {
			return false, err
		}
		l.lastHead = append(l.lastHead[:0], head...)
	}
	body := b[end+4:]
	switch {
	case l.lastLength != BodyBytes || len(body) > BodyBytes:
		return false, fmt.Errorf("an answer of %d bytes, Content-Length %d, want %d", len(body), l.lastLength, BodyBytes)
	case len(body) < BodyBytes:
		return false, nil
	case !bytes.Equal(body, l.body):
		return false, errors.New("an answer with another body than the application's")
	}
	return true, nil
}

func contentLength(head []byte) (int, error) {
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("answer %.80q, want status 200", head)
	}
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, found := bytes.Cut(line, []byte(":"))
		if found && bytes.EqualFold(name, []byte("content-length")) {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
		if found && bytes.EqualFold(name, []byte("connection")) && bytes.EqualFold(bytes.TrimSpace(value), []byte("close")) {
			return 0, errors.New("the subject does not keep the connection alive")
		}
	}
	return 0, fmt.Errorf("answer without Content-Length: %q", head)
}
