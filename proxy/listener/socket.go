package listener

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Keep-alive of accepted connections: a peer that vanished is noticed after
// three minutes.
const (
	keepAliveIdle     = 120 // s
	keepAliveInterval = 20  // s
	keepAliveCount    = 3
)

// listenTCP binds addr. Multipath TCP is off: it would hide the original
// destination of redirected connections. Keep-alive is set on the socket, which
// hands it on, rather than with four calls a connection. SO_REUSEPORT stays off:
// a second sidecar on the same address must fail, not share the traffic.
func listenTCP(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	cfg := net.ListenConfig{KeepAlive: -1, Control: keepAlive}
	cfg.SetMultipathTCP(false)
	l, err := cfg.Listen(ctx, "tcp", addr.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%v is in use by another process", addr)
	}
	return l, err // which names operation and address
}

func keepAlive(_, _ string, raw syscall.RawConn) error {
	var errs []error
	err := raw.Control(func(fd uintptr) {
		for _, o := range [][3]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
		} {
			errs = append(errs, unix.SetsockoptInt(int(fd), o[0], o[1], o[2]))
		}
	})
	return errors.Join(append(errs, err)...)
}
