package conn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAtRest is how a codec says that a connection which MayRest has nothing to do:
// whoever called it hands the connection to Lot.Rest and lets its goroutine go.
var ErrAtRest = errors.New("connection is at rest")

// Lot is where idle connections wait without a goroutine, and so without a stack.
// Make it with NewLot and run it once.
type Lot struct {
	events *os.File // immutable, an epoll of its own within the runtime's
	fd     int      // of events
	warm   atomic.Int64

	mu     sync.Mutex // guards the fields below, and what events has of at
	at     []*Conn    // at rest, by descriptor
	closed bool
}

// NewLot returns an empty lot. It must be closed by Run or Close.
func NewLot() (*Lot, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // or os.NewFile would not use the poller
	}
	if err != nil {
		return nil, fmt.Errorf("watch idle connections: %w", err)
	}
	return &Lot{events: os.NewFile(uintptr(fd), "idle connections"), fd: fd}, nil
}

// Admit lets c rest in l. wake is called on a goroutine of its own each time when
// there is something to do for c, which then no longer rests. c must not be used
// before and must be closed by the end.
func (l *Lot) Admit(c *Conn, wake func()) {
	c.lot, c.resume = l, wake
	l.warm.Add(1)
}

// Bounds of Patience.
const (
	restAfter   = time.Second
	restSooner  = restAfter / 10
	manyWarm    = 256
	tooManyWarm = 4096
)

// Patience is how long c is to be idle before it rests: to rest and to wake costs
// about 10 us, to stay awake 8 KiB, so it is less the more others are awake.
func (c *Conn) Patience() time.Duration {
	if c.lot == nil {
		return restAfter
	}
	switch n := c.lot.warm.Load(); {
	case n <= manyWarm:
		return restAfter
	case n <= tooManyWarm:
		return restSooner
	}
	return 0
}

// MayRest reports whether c was admitted to a Lot.
func (c *Conn) MayRest() bool { return c.lot != nil }

// Rested reports whether c has rested before.
func (c *Conn) Rested() bool { return c.rested }

// Rest has c wait in its lot until there is something to read or it is woken. The
// caller must not use c any more. If that cannot be had c is aborted and woken.
func (c *Conn) Rest() {
	l := c.lot
	l.warm.Add(-1)
	l.mu.Lock()
	c.rested = true
	err := l.enroll(c)
	if short := c.fd + 1 - len(l.at); short > 0 {
		l.at = append(l.at, make([]*Conn, short)...)
	}
	l.at[c.fd] = c
	c.resting.Store(true)
	// A Kick that came before this line did not see that c rests.
	kicked := err != nil || c.kicked.Load()
	l.mu.Unlock()
	if err != nil {
		c.Abort()
	}
	if kicked {
		l.wake(c)
	}
}

// enroll has the kernel tell once that there is something to read. l.mu is held.
func (l *Lot) enroll(c *Conn) error {
	if l.closed {
		return os.ErrClosed
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(c.fd)}
	if c.enrolled {
		return unix.EpollCtl(l.fd, unix.EPOLL_CTL_MOD, c.fd, &event)
	}
	c.enrolled = true
	return unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, c.fd, &event)
}

// wake lets c go on, if it still rests.
func (l *Lot) wake(c *Conn) {
	l.mu.Lock()
	rests := c.fd < len(l.at) && l.at[c.fd] == c
	if rests {
		l.at[c.fd] = nil
		c.resting.Store(false)
	}
	l.mu.Unlock()
	if rests {
		l.warm.Add(1)
		go c.resume()
	}
}

// batch is how many connections are woken by one look.
const batch = 128

// Run wakes connections until ctx ends, and closes l. By then none may rest: they
// would not be woken any more.
func (l *Lot) Run(ctx context.Context) error {
	defer l.Close()
	stop := context.AfterFunc(ctx, l.Close)
	defer stop()
	raw, err := l.events.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch idle connections: %w", err)
	}
	var events [batch]unix.EpollEvent
	err = raw.Read(func(uintptr) bool {
		for {
			n, err := unix.EpollWait(l.fd, events[:], 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			for _, e := range events[:max(n, 0)] {
				if c := l.resting(int(e.Fd)); c != nil {
					l.wake(c)
				}
			}
			// Short of a full batch there is nothing more, and the poller will say when.
			if n < batch {
				return err != nil
			}
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch idle connections: %w", err)
}

func (l *Lot) resting(fd int) *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if fd >= len(l.at) {
		return nil
	}
	return l.at[fd]
}

// Close frees what NewLot took.
func (l *Lot) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	_ = l.events.Close() // a second close is as good as the first
}
