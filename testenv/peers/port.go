package peers

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Ports come from below the range that the kernel gives to outgoing
// connections (32768 to 60999 on Linux), so none is taken by chance, and from
// above the ports that the product listens on by default.
const (
	firstPort = 21000
	lastPort  = 31999
)

// FreePort returns a TCP port that nothing listens on, for a program that cannot
// be told to choose one itself. No other call returns it before the test ends,
// in any process of this machine.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		// An abstract socket is a lock that dies with its process.
		claim, err := net.Listen("unix", fmt.Sprintf("@isthmus-test-port-%d", port))
		if err != nil {
			continue // another test has it
		}
		probe, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			_ = claim.Close()
			continue // another program has it
		}
		if err := probe.Close(); err != nil {
			t.Fatalf("release port %d: %v", port, err)
		}
		t.Cleanup(func() { _ = claim.Close() })
		return port
	}
	t.Fatalf("no free port between %d and %d after 100 tries", firstPort, lastPort)
	return 0
}

// freeAddr returns a FreePort as an address on 127.0.0.1.
func freeAddr(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t)))
}

// portOf returns the port of an address.
func portOf(t testing.TB, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// portNumber returns the port of an address as a number.
func portNumber(t testing.TB, addr string) int {
	t.Helper()
	port, err := strconv.Atoi(portOf(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	return port
}
