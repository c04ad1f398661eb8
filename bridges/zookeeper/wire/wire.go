// Package wire reads and writes what applications store in ZooKeeper: Dubbo's
// provider URLs, which are node names, and Curator's service instances, which are
// node data (Spring Cloud, Dubbo 3's application level).
//
// Functions are pure and may be called from any goroutine. What they return owns
// its memory. Input is hostile: whoever may write to ZooKeeper writes it. Every
// error is about one entry, names the part and says what was wanted; its text is
// bounded and printable.
//
// What each format leaves open and how it is read here: README.md.
package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxShown is how much of a wrong value an error shows, in bytes.
const maxShown = 64

// shown quotes s for an error text.
func shown(s string) string {
	if len(s) > maxShown {
		return strconv.QuoteToASCII(s[:maxShown]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// checkText refuses what no registry name or value contains and what would break
// logs, tables and headers further on.
func checkText(what, s string) error { return checkShown(what, s, s) }

// checkShown is checkText that shows another text for s.
func checkShown(what, s, public string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %s is not UTF-8", what, shown(public))
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return fmt.Errorf("%s %s has control character %q at byte %d", what, shown(public), s[i], i)
		}
	}
	return nil
}

// parseAddr reads the address that an instance registered. A host name is
// refused: it would have to be resolved here, where the answer may differ from
// that at the caller, and again whenever it changes.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, errors.New("address is empty")
	}
	if strings.EqualFold(s, "localhost") {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address %s is a host name, which is not resolved: let the application register its IP", shown(s))
	}
	addr = addr.Unmap()
	switch {
	case addr.Zone() != "":
		return netip.Addr{}, fmt.Errorf("address %s has a zone: link-local addresses hold on one machine only", shown(s))
	case addr.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("address %s means no particular host", shown(s))
	case addr.IsMulticast():
		return netip.Addr{}, fmt.Errorf("address %s is a multicast address", shown(s))
	}
	return addr, nil
}

func checkPort(n int64) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %d, want 1 to 65535", n)
	}
	return uint16(n), nil
}

// lastMilli is the end of the year 2199: a later time stamp is a mistake.
const lastMilli = 7_258_118_400_000 - 1

// fromMilli reads a Java time stamp; what cannot be one is the zero time.
func fromMilli(ms int64) time.Time {
	if ms <= 0 || ms > lastMilli {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
