package telemetry

// Upstream is what is counted of one cluster. Times are added in nanoseconds and
// shown in the unit of their key.
type Upstream struct {
	Cluster string // "outbound|80|v1|cart"
	Service string // "cart"; for others than outbound clusters the cluster's name

	ConnectionActive   Gauge
	ConnectionTotal    Counter
	ConnectFailures    Counter // refused, timed out or unreachable
	ConnectionOverflow Counter // refused by the cluster's connection limit
	RequestActive      Gauge
	RequestTotal       Counter
	RequestFailed      Counter // 5xx, reset or timeout
	RequestOverflow    Counter // refused by the request limit
	DurationTotal      Counter // ns, request sent to end of response
	FailureEject       Counter // endpoints taken out of rotation after failures
	Retries            Counter
	RetryOverflow      Counter // retries refused by limit or budget
	NoHost             Counter // requests that found no healthy host
	Duration           Histogram
}

const upstreamCells = 13 + histogramCells

// NewUpstream returns counters that start at 0.
func NewUpstream(cluster, service string) *Upstream {
	b := newBlock(Shards(), upstreamCells)
	return &Upstream{
		Cluster:            cluster,
		Service:            service,
		ConnectionActive:   Gauge{b.take(1)},
		ConnectionTotal:    b.take(1),
		ConnectFailures:    b.take(1),
		ConnectionOverflow: b.take(1),
		RequestActive:      Gauge{b.take(1)},
		RequestTotal:       b.take(1),
		RequestFailed:      b.take(1),
		RequestOverflow:    b.take(1),
		DurationTotal:      b.take(1),
		FailureEject:       b.take(1),
		Retries:            b.take(1),
		RetryOverflow:      b.take(1),
		NoHost:             b.take(1),
		Duration:           Histogram{b.take(uint32(histogramCells))},
	}
}
