package traffic

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const backlog = 4096

// read and write do not tell the Go scheduler: the descriptors never block, and
// the telling costs as much as a third of the call.
func read(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func write(fd int, b []byte) error {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return errno
	}
	// One message at a time fits the socket's buffer, unless the peer does not read.
	if int(n) != len(b) {
		return fmt.Errorf("only %d of %d bytes could be sent", n, len(b))
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func (l *Loop) watch(fd int) error {
	err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)})
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// add takes fd, which is closed on error.
func (l *Loop) add(fd int, k kind) (*conn, error) {
	if err := errors.Join(unix.SetNonblock(fd, true), l.watch(fd)); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	for fd >= len(l.open) {
		l.open = append(l.open, make([]*conn, 1024)...)
	}
	c := &conn{fd: fd, kind: k}
	l.open[fd] = c
	return c, nil
}

func (l *Loop) listen(at netip.AddrPort, k kind) (netip.AddrPort, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return at, err
	}
	err = unix.Bind(fd, sockaddr(at))
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		return at, errors.Join(err, unix.Close(fd))
	}
	if _, err := l.add(fd, k); err != nil {
		return at, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return at, err
	}
	return netip.AddrPortFrom(at.Addr(), uint16(name.(*unix.SockaddrInet4).Port)), nil
}

func (l *Loop) accept(from *conn) {
	for {
		fd, _, err := unix.Accept4(from.fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return // none is left, or the caller has gone
		}
		k := sink
		if from.kind == listener {
			k = server
			l.accepted.Add(1)
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		if err != nil {
			_ = unix.Close(fd) // the subject sees it
			continue
		}
		_, _ = l.add(fd, k) // closed on error; the subject sees it
	}
}

// dial connects a caller. On loopback that needs nothing from the subject but a
// place in its queue.
func (l *Loop) dial(target netip.AddrPort, request []byte) (*conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err == nil {
		err = unix.Connect(fd, sockaddr(target))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %v: %w", target, err), unix.Close(fd))
	}
	c, err := l.add(fd, client)
	if err != nil {
		return nil, err
	}
	c.request = request
	return c, nil
}

// hangUp resets a caller's connection: ten thousand of them would otherwise hold
// their ports for a minute.
func (l *Loop) hangUp(c *conn) {
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // saves ports only
	l.forget(c)
}

func (l *Loop) forget(c *conn) {
	l.open[c.fd] = nil
	_ = unix.Close(c.fd) // a socket's close has nothing to tell
}

// serve is the application: one answer for each request.
func (l *Loop) serve(c *conn) {
	n, err := read(c.fd, l.buf)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err != nil || n == 0 {
		l.forget(c)
		return
	}
	for range c.requests(l.buf[:n]) {
		if err := write(c.fd, l.response); err != nil {
			l.forget(c) // the subject sees it and answers for it
			return
		}
		l.served.Add(1)
	}
}

const blankLine = "\r\n\r\n"

// requests counts the heads that end in b. Requests have no bodies.
func (c *conn) requests(b []byte) int {
	if c.tail == 0 && len(b) >= 4 && string(b[len(b)-4:]) == blankLine {
		return bytes.Count(b, []byte(blankLine))
	}
	heads := 0
	for _, ch := range b {
		switch {
		case ch == blankLine[c.tail]:
			c.tail++
		case ch == '\r':
			c.tail = 1
		default:
			c.tail = 0
		}
		if c.tail == len(blankLine) {
			heads++
			c.tail = 0
		}
	}
	return heads
}

func (l *Loop) drainLog(c *conn) {
	n, err := read(c.fd, l.buf)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err != nil || n == 0 {
		l.forget(c)
		return
	}
	l.lines.Add(int64(bytes.Count(l.buf[:n], []byte("\n"))))
}

func (l *Loop) close() {
	for _, c := range l.open {
		if c != nil {
			l.forget(c)
		}
	}
	for _, fd := range []int{l.epoll, l.wake, l.timer} {
		if fd >= 0 {
			_ = unix.Close(fd) // nothing was written to them
		}
	}
}
