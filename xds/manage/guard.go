package manage

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
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
