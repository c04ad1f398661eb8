package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"syscall"
)

// Listen opens a TCP listener for what ("the Mesh API"). setting names the
// setting that moves it, for the error's mend.
func Listen(ctx context.Context, what, addr, setting string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for %s on %s: the port is in use by another process; stop it or set %s to another address", what, addr, setting)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen for %s on %s: this machine has no such address; set %s to one of its own", what, addr, setting)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("listen for %s on %s: not allowed; ports below 1024 need CAP_NET_BIND_SERVICE, or set %s to another port", what, addr, setting)
	}
	return nil, fmt.Errorf("listen for %s on %s: %w; check %s", what, addr, err, setting)
}

// ListenLoopback is Listen, but refuses an address that others than this machine
// can reach: for ports that carry no authentication.
func ListenLoopback(ctx context.Context, what, addr, setting string) (net.Listener, error) {
	if err := CheckLoopback(addr); err != nil {
		return nil, Misuse(fmt.Errorf("listen for %s: %w; set %s to 127.0.0.1 and a port", what, err, setting))
	}
	return Listen(ctx, what, addr, setting)
}

// CheckLoopback reports whether "host:port" names loopback only. A host name
// other than localhost is refused: what it resolves to may change.
func CheckLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q, want host:port", addr)
	}
	if host == "localhost" {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	if err == nil && ip.Unmap().IsLoopback() {
		return nil
	}
	return fmt.Errorf("address %q can be reached from other machines, and this port authenticates nobody", addr)
}
