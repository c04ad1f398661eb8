package telemetry

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Registry makes the counters of listeners and clusters, each once, and shows
// them to Prometheus. Make one with NewRegistry.
type Registry struct {
	mu         sync.Mutex // guards the fields below
	downstream map[listenerKey]*Downstream
	upstream   map[string]*Upstream
	log        *AccessLog
}

type listenerKey struct {
	direction string
	port      uint16
}

// NewRegistry returns an empty one.
func NewRegistry() *Registry {
	return &Registry{downstream: map[listenerKey]*Downstream{}, upstream: map[string]*Upstream{}}
}

// Downstream returns the counters of the listeners of that direction and port:
// the same ones however often it is asked.
func (r *Registry) Downstream(direction string, port uint16) *Downstream {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := listenerKey{direction, port}
	if r.downstream[key] == nil {
		r.downstream[key] = NewDownstream(direction, port)
	}
	return r.downstream[key]
}

// Upstream returns the counters of a cluster: the same ones until Forget.
func (r *Registry) Upstream(cluster, service string) *Upstream {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.upstream[cluster] == nil {
		r.upstream[cluster] = NewUpstream(cluster, service)
	}
	return r.upstream[cluster]
}

// Forget drops the counters of a cluster that is gone.
func (r *Registry) Forget(cluster string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.upstream, cluster)
}

// ShowAccessLog adds the counters of l.
func (r *Registry) ShowAccessLog(l *AccessLog) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = l
}

// family is one metric of listeners or clusters.
type family[T any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(T) float64
}

func millis(ns int64) float64 { return float64(ns) / float64(time.Millisecond) }

func listenerMetric(name, help string, kind prometheus.ValueType, read func(*Downstream) float64) family[*Downstream] {
	return family[*Downstream]{prometheus.NewDesc(name, help, []string{"direction", "port"}, nil), kind, read}
}

func clusterMetric(name, help string, kind prometheus.ValueType, read func(*Upstream) float64) family[*Upstream] {
	return family[*Upstream]{prometheus.NewDesc(name, help, []string{"cluster", "service"}, nil), kind, read}
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// The names without prefix are the product's fixed keys; times are milliseconds.
var listenerMetrics = []family[*Downstream]{
	listenerMetric("downstream_connection_active", "Open connections of callers.", gauge, func(d *Downstream) float64 { return float64(d.ConnectionActive.Value()) }),
	listenerMetric("downstream_request_active", "Requests under way.", gauge, func(d *Downstream) float64 { return float64(d.RequestActive.Value()) }),
	listenerMetric("downstream_request_total", "Requests received.", counter, func(d *Downstream) float64 { return float64(d.RequestTotal.Value()) }),
	listenerMetric("downstream_request_time_total", "Milliseconds from the first byte of requests to the last of their responses.", counter, func(d *Downstream) float64 { return millis(d.RequestTimeTotal.Value()) }),
	listenerMetric("downstream_process_time_total", "Milliseconds of it spent inside the sidecar.", counter, func(d *Downstream) float64 { return millis(d.ProcessTimeTotal.Value()) }),
	listenerMetric("downstream_request_failed", "Requests answered 5xx or not at all.", counter, func(d *Downstream) float64 { return float64(d.RequestFailed.Value()) }),
	listenerMetric("mesh_proxy_downstream_connections_total", "Connections accepted.", counter, func(d *Downstream) float64 { return float64(d.ConnectionTotal.Value()) }),
	listenerMetric("mesh_proxy_downstream_connections_refused_total", "Connections closed at once: over a limit.", counter, func(d *Downstream) float64 { return float64(d.ConnectionRefused.Value()) }),
	listenerMetric("mesh_proxy_downstream_malformed_requests_total", "Requests refused as malformed, oversized or too slow.", counter, func(d *Downstream) float64 { return float64(d.RequestMalformed.Value()) }),
}

var clusterMetrics = []family[*Upstream]{
	clusterMetric("upstream_connection_active", "Open connections to hosts.", gauge, func(u *Upstream) float64 { return float64(u.ConnectionActive.Value()) }),
	clusterMetric("upstream_request_active", "Requests under way to hosts.", gauge, func(u *Upstream) float64 { return float64(u.RequestActive.Value()) }),
	clusterMetric("upstream_request_total", "Requests sent to hosts, retries included.", counter, func(u *Upstream) float64 { return float64(u.RequestTotal.Value()) }),
	clusterMetric("upstream_request_duration_time_total", "Milliseconds from sending requests to the end of their responses.", counter, func(u *Upstream) float64 { return millis(u.DurationTotal.Value()) }),
	clusterMetric("upstream_request_failure_eject", "Hosts taken out of rotation after failures.", counter, func(u *Upstream) float64 { return float64(u.FailureEject.Value()) }),
	clusterMetric("mesh_proxy_upstream_connections_total", "Connections made.", counter, func(u *Upstream) float64 { return float64(u.ConnectionTotal.Value()) }),
	clusterMetric("mesh_proxy_upstream_connect_failures_total", "Connections refused, unreachable or timed out.", counter, func(u *Upstream) float64 { return float64(u.ConnectFailures.Value()) }),
	clusterMetric("mesh_proxy_upstream_connections_overflowed_total", "Connections refused by the cluster's limit.", counter, func(u *Upstream) float64 { return float64(u.ConnectionOverflow.Value()) }),
	clusterMetric("mesh_proxy_upstream_requests_failed_total", "Requests that ended in 5xx, reset or timeout.", counter, func(u *Upstream) float64 { return float64(u.RequestFailed.Value()) }),
	clusterMetric("mesh_proxy_upstream_requests_overflowed_total", "Requests refused by the cluster's limit.", counter, func(u *Upstream) float64 { return float64(u.RequestOverflow.Value()) }),
	clusterMetric("mesh_proxy_upstream_retries_total", "Attempts beside the first.", counter, func(u *Upstream) float64 { return float64(u.Retries.Value()) }),
	clusterMetric("mesh_proxy_upstream_retries_overflowed_total", "Retries refused by limit or budget.", counter, func(u *Upstream) float64 { return float64(u.RetryOverflow.Value()) }),
	clusterMetric("mesh_proxy_upstream_no_host_total", "Requests that found no host to send to.", counter, func(u *Upstream) float64 { return float64(u.NoHost.Value()) }),
}

var (
	listenerDuration = prometheus.NewDesc("mesh_proxy_downstream_request_duration_seconds", "Time from the first byte of a request to the last of its response.", []string{"direction", "port"}, nil)
	clusterDuration  = prometheus.NewDesc("mesh_proxy_upstream_request_duration_seconds", "Time from sending a request to the end of its response.", []string{"cluster", "service"}, nil)
	logDropped       = prometheus.NewDesc("mesh_proxy_access_log_dropped_total", "Lines of the access log that were lost.", nil, nil)
	logWritten       = prometheus.NewDesc("mesh_proxy_access_log_written_total", "Lines of the access log that were written.", nil, nil)
)

// Describe implements prometheus.Collector.
func (r *Registry) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range listenerMetrics {
		ch <- f.desc
	}
	for _, f := range clusterMetrics {
		ch <- f.desc
	}
	for _, d := range []*prometheus.Desc{listenerDuration, clusterDuration, logDropped, logWritten} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (r *Registry) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	down := make([]*Downstream, 0, len(r.downstream))
	for _, d := range r.downstream {
		down = append(down, d)
	}
	up := make([]*Upstream, 0, len(r.upstream))
	for _, u := range r.upstream {
		up = append(up, u)
	}
	log := r.log
	r.mu.Unlock()

	for _, d := range down {
		port := strconv.Itoa(int(d.Port))
		for _, f := range listenerMetrics {
			ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.read(d), d.Direction, port)
		}
		count, sum, buckets := d.Duration.snapshot()
		ch <- prometheus.MustNewConstHistogram(listenerDuration, count, sum, buckets, d.Direction, port)
	}
	for _, u := range up {
		for _, f := range clusterMetrics {
			ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.read(u), u.Cluster, u.Service)
		}
		count, sum, buckets := u.Duration.snapshot()
		ch <- prometheus.MustNewConstHistogram(clusterDuration, count, sum, buckets, u.Cluster, u.Service)
	}
	if log != nil {
		ch <- prometheus.MustNewConstMetric(logDropped, counter, float64(log.Dropped()))
		ch <- prometheus.MustNewConstMetric(logWritten, counter, float64(log.Written()))
	}
}
