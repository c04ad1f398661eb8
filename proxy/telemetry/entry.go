package telemetry

import (
	"net/netip"
	"time"
)

// Flags say why the sidecar answered or ended a request as it did. Their text is
// Envoy's.
type Flags uint32

// Response flags.
const (
	NoHealthyUpstream          Flags = 1 << iota // UH
	UpstreamConnectionFailure                    // UF
	UpstreamOverflow                             // UO
	NoRouteFound                                 // NR
	RetryLimitExceeded                           // URX
	UpstreamRequestTimeout                       // UT
	UpstreamReset                                // UR: remote reset
	UpstreamConnectionEnd                        // UC
	DownstreamConnectionEnd                      // DC
	DownstreamProtocolError                      // DPE
	UpstreamProtocolError                        // UPE
	UpstreamMaxDurationReached                   // UMSDR
	StreamIdleTimeout                            // SI
	NoClusterFound                               // NC
	OverloadRefused                              // OM
	DurationTimeout                              // DT
	LocalReset                                   // LR
)

// flagNames are in the order of the constants.
var flagNames = [...]string{
	"UH", "UF", "UO", "NR", "URX", "UT", "UR", "UC", "DC", "DPE", "UPE", "UMSDR", "SI", "NC", "OM", "DT", "LR",
}

// Append appends the flags' names, "URX,UF", or "-".
func (f Flags) Append(dst []byte) []byte {
	if f == 0 {
		return append(dst, '-')
	}
	first := true
	for i, name := range flagNames {
		if f&(1<<i) == 0 {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		dst, first = append(dst, name...), false
	}
	return dst
}

// Entry is one line of the access log: an HTTP request, or a TCP connection at
// its end. Empty fields are left out of JSON and written "-" in text. Slices are
// read within Log only.
type Entry struct {
	Start    time.Time
	Duration time.Duration
	// Process is the part of Duration spent inside the sidecar, split into the
	// way to the upstream and the way back.
	Process, ProcessRequest, ProcessResponse time.Duration
	// Upstream is the time from the request's last byte sent to the response's
	// first byte received.
	Upstream time.Duration
	// Failed says that the sidecar itself failed the request.
	Failed bool

	Method, Path, Authority, UserAgent, ForwardedFor, RequestID []byte

	// DownstreamProtocol and UpstreamProtocol are "HTTP/1.1", "TCP", ...
	DownstreamProtocol, UpstreamProtocol string
	Status                               int // 0 when nothing was answered, and for TCP
	Flags                                Flags
	RequestBytes, ResponseBytes          int64 // bodies; for TCP all bytes
	Attempts                             int   // upstream attempts; 0: none was made

	Route, Cluster, TargetApp, SourceApp string
	RPCService, RPCMethod                string

	UpstreamHost, UpstreamLocal, DownstreamLocal, DownstreamRemote netip.AddrPort
}
