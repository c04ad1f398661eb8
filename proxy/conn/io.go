package conn

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
)

// ErrWouldBlock says that there is nothing to read, or no room to write, now.
// Like a net.Error of a time-out it is temporary: crypto/tls goes on after it.
var ErrWouldBlock error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "would block" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// ErrStalled says that the peer took no byte for as long as SetStall allows.
var ErrStalled = errors.New("peer takes no data")

// ErrLate says that the time that WriteBy was given is up.
var ErrLate = errors.New("peer takes data too slowly")

// TryRead reads what is there. It never blocks: with nothing there it returns
// ErrWouldBlock, at the end of the stream io.EOF.
//
// The system call is raw: the scheduler need not know about a call that cannot
// block, and telling it is what costs a context switch at low rates. It is recv
// rather than read, which goes through the file layer first.
func (c *Conn) TryRead(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			return int(n), nil
		case syscall.EAGAIN:
			return 0, ErrWouldBlock
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// Fresh reports whether an idle connection can be used: nothing to read and not
// closed by the peer.
func (c *Conn) Fresh() bool { return errors.Is(c.Peek(), ErrWouldBlock) }

// Sniff copies what can be read without taking it; it returns as TryRead.
func (c *Conn) Sniff(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			return int(n), nil
		case syscall.EAGAIN:
			return 0, ErrWouldBlock
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// Peek looks whether something can be read without taking it: nil when there are
// bytes, io.EOF when the peer ended the stream, ErrWouldBlock when neither.
func (c *Conn) Peek() error {
	var b [1]byte
	_, err := c.Sniff(b[:])
	return err
}

// TryWrite writes what there is room for. It never blocks: ErrWouldBlock says
// that n, which may be 0, is less than len(p).
func (c *Conn) TryWrite(p []byte) (n int, err error) {
	for n < len(p) {
		rest := p[n:]
		w, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(rest))), uintptr(len(rest)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			n += int(w)
			c.sent += uint64(w)
		case syscall.EAGAIN:
			return n, ErrWouldBlock
		case syscall.EINTR:
		default:
			return n, errno
		}
	}
	return n, nil
}

// Sent is how many bytes were handed to the kernel since New.
func (c *Conn) Sent() uint64 { return c.sent }

// SetStall bounds how long Write waits for a peer that takes nothing; 0 means 5
// minutes.
func (c *Conn) SetStall(d time.Duration) {
	if d <= 0 {
		d = defaultStall
	}
	c.stall = d
}

// Write writes all of p, waiting for room. It returns ErrStalled when the peer
// takes nothing for too long and net.ErrClosed after Close.
func (c *Conn) Write(p []byte) error { return c.WriteBy(p, 0) }

// WriteBy is Write that returns ErrLate when it still waits at the given moment; 0
// means never.
func (c *Conn) WriteBy(p []byte, by clock.Instant) error {
	n, err := c.TryWrite(p)
	if !errors.Is(err, ErrWouldBlock) {
		return err
	}
	return c.writeRest(p[n:], by)
}

func (c *Conn) writeRest(p []byte, by clock.Instant) error {
	if c.onWritable == nil {
		c.onWritable = c.writable
		c.writeTimer = new(clock.Timer)
		c.writeTimer.Init(c.wheel, (*writer)(c))
	}
	c.pending, c.writeErr = p, nil
	defer func() {
		c.pending = nil
		c.writeTimer.Set(0)
	}()
	limit := c.Now().Add(c.stall)
	c.writeTimer.Set(clock.Earlier(limit, by))
	for {
		before := len(c.pending)
		err := c.raw.Write(c.onWritable)
		switch {
		case err == nil:
			return c.writeErr
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := c.nc.SetWriteDeadline(time.Time{}); err != nil {
				return net.ErrClosed
			}
			now := c.Now()
			switch {
			case by != 0 && now >= by:
				return ErrLate
			case len(c.pending) < before:
				limit = now.Add(c.stall)
			case now >= limit:
				return ErrStalled
			}
			c.writeTimer.Set(clock.Earlier(limit, by))
		case errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		default:
			return fmt.Errorf("write to %v: %w", c.remote, err)
		}
	}
}

func (c *Conn) writable(uintptr) bool {
	n, err := c.TryWrite(c.pending)
	c.pending = c.pending[n:]
	if errors.Is(err, ErrWouldBlock) {
		return false
	}
	c.writeErr = err
	return true
}

// CloseWrite tells the peer that no more bytes come.
func (c *Conn) CloseWrite() error {
	if err := syscall.Shutdown(c.fd, syscall.SHUT_WR); err != nil {
		return fmt.Errorf("close writing to %v: %w", c.remote, err)
	}
	return nil
}

// Unseen reports whether the peer's kernel provably never took a byte of what was
// written after sent (a value of Sent from before): then the peer's program
// cannot have acted on it. It answers no whenever that cannot be proved.
func (c *Conn) Unseen(sent uint64) bool {
	if _, ok := c.nc.(*net.TCPConn); !ok {
		return false
	}
	info, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false
	}
	// Linux counts the acknowledged SYN as one byte.
	return info.Bytes_acked <= sent+1
}
