package wire

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Provider is what a Dubbo provider registers at the interface level: a URL whose
// parameters say all else.
type Provider struct {
	Protocol string         // "dubbo", "tri"; lower case
	Address  netip.AddrPort // where it listens
	Path     string         // after the address, without slash; usually the interface
	// Params are the parameters, decoded; never nil after ParseProvider. As
	// Dubbo does it, the last of two equal keys holds, a key without "=" has
	// itself as value, and "default.x" stands for "x" where there is no "x".
	Params map[string]string
}

// maxProviderBytes bounds a node name. The longest seen hold a csv of methods and
// are some KiB; ZooKeeper allows 1 MiB.
const maxProviderBytes = 128 << 10

// defaultPrefix marks a provider-wide default in the URLs of Dubbo 2.6.
const defaultPrefix = "default."

// ParseProvider reads a child of /<group>/<interface>/providers: the URL with
// every reserved character escaped once, "+" being a space.
func ParseProvider(node string) (Provider, error) {
	if len(node) > maxProviderBytes {
		return Provider{}, fmt.Errorf("provider URL of %d bytes, want at most %d", len(node), maxProviderBytes)
	}
	text, err := url.QueryUnescape(node)
	if err != nil {
		return Provider{}, fmt.Errorf("provider URL %s is not escaped as a URL", shown(Public(node)))
	}
	if err := checkShown("provider URL", text, Public(text)); err != nil {
		return Provider{}, err
	}
	protocol, rest, ok := strings.Cut(text, "://")
	if !ok || !isProtocol(protocol) {
		return Provider{}, fmt.Errorf("provider URL %s does not start with a protocol and ://", shown(Public(text)))
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:] // user and password are nobody's business here
	}
	p := Provider{Protocol: strings.ToLower(protocol), Path: path, Params: parseParams(query)}
	if p.Address, err = parseAuthority(authority); err != nil && strings.Contains(path, "@") {
		// The parts of a password with a slash in it are no address to show.
		err = fmt.Errorf("provider URL %s has an @ behind a slash, want it escaped", shown(Public(text)))
	}
	return p, err
}

// isProtocol reports whether s is letters, digits and "+.-", as a URL demands.
func isProtocol(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9') && !strings.ContainsRune("+.-", rune(s[i])) {
			return false
		}
	}
	return s != ""
}

// parseAuthority reads "ip:port". Dubbo writes IPv6 addresses with and without
// brackets, so the last colon decides.
func parseAuthority(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return netip.AddrPort{}, fmt.Errorf("address %s has no port", shown(s))
	}
	addr, addrErr := parseAddr(s[:i])
	number, err := strconv.ParseInt(s[i+1:], 10, 32)
	if err != nil {
		return netip.AddrPort{}, errors.Join(addrErr, fmt.Errorf("port %s, want 1 to 65535", shown(s[i+1:])))
	}
	port, portErr := checkPort(number)
	if err := errors.Join(addrErr, portErr); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addr, port), nil
}

func parseParams(query string) map[string]string {
	params := map[string]string{}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			value = key
		}
		if key != "" {
			params[key] = value
		}
	}
	for key, value := range params {
		if bare, ok := strings.CutPrefix(key, defaultPrefix); ok && bare != "" {
			if _, own := params[bare]; !own {
				params[bare] = value
			}
		}
	}
	return params
}

// Encode returns the node name that ParseProvider reads as p, with parameters in
// the order of their keys, as Dubbo writes them.
func (p Provider) Encode() string {
	var b strings.Builder
	b.WriteString(p.Protocol)
	b.WriteString("://")
	b.WriteString(p.Address.String())
	b.WriteByte('/')
	b.WriteString(p.Path)
	separator := byte('?')
	for _, key := range slices.Sorted(maps.Keys(p.Params)) {
		b.WriteByte(separator)
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(p.Params[key])
		separator = '&'
	}
	return url.QueryEscape(b.String())
}

// Interface is the service's interface: the parameter of that name, else the path.
func (p Provider) Interface() string {
	if name := p.Params["interface"]; name != "" {
		return name
	}
	return p.Path
}

// Registered is when the provider exported the service, by its own clock; zero
// when it does not say.
func (p Provider) Registered() time.Time {
	ms, err := strconv.ParseInt(p.Params["timestamp"], 10, 64)
	if err != nil {
		return time.Time{}
	}
	return fromMilli(ms)
}

// Enabled reports whether the provider takes requests: an operator may have
// registered it with enabled=false or disabled=true.
func (p Provider) Enabled() bool {
	return !strings.EqualFold(p.Params["enabled"], "false") && !strings.EqualFold(p.Params["disabled"], "true")
}

// maxWeight bounds a weight, so that the sum over an interface's providers fits
// the 32 bits that xDS allows it.
const maxWeight = 100_000

// Weight is the provider's weight and whether it states one; 0 means that it
// takes no requests.
func (p Provider) Weight() (weight uint32, stated bool, err error) {
	s, stated := p.Params["weight"]
	if !stated || s == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxWeight {
		return 0, true, fmt.Errorf("weight %s, want 0 to %d", shown(s), maxWeight)
	}
	return uint32(n), true, nil
}
