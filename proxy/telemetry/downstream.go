package telemetry

// Downstream is what is counted of the callers of one listener. Times are added
// in nanoseconds and shown in the unit of their key.
type Downstream struct {
	Direction string // "inbound" or "outbound"
	Port      uint16 // of the listener

	ConnectionActive  Gauge
	ConnectionTotal   Counter
	ConnectionRefused Counter // over a connection limit, or draining
	RequestActive     Gauge
	RequestTotal      Counter
	RequestFailed     Counter // answered 5xx or not answered at all
	RequestMalformed  Counter // refused by the codec: 400, 408, 431, ...
	RequestTimeTotal  Counter // ns, first byte of the request to last of the response
	ProcessTimeTotal  Counter // ns of it, spent inside the sidecar
	Duration          Histogram
}

const downstreamCells = 9 + histogramCells

// NewDownstream returns counters that start at 0.
func NewDownstream(direction string, port uint16) *Downstream {
	b := newBlock(Shards(), downstreamCells)
	return &Downstream{
		Direction:         direction,
		Port:              port,
		ConnectionActive:  Gauge{b.take(1)},
		ConnectionTotal:   b.take(1),
		ConnectionRefused: b.take(1),
		RequestActive:     Gauge{b.take(1)},
		RequestTotal:      b.take(1),
		RequestFailed:     b.take(1),
		RequestMalformed:  b.take(1),
		RequestTimeTotal:  b.take(1),
		ProcessTimeTotal:  b.take(1),
		Duration:          Histogram{b.take(uint32(histogramCells))},
	}
}
