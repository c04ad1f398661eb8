package builtin

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the figures of one registry.
type metrics struct {
	workloads  prometheus.Gauge
	ended      *prometheus.CounterVec // how
	saveErrors prometheus.Counter
}

// How a lease ends.
const (
	expired = "expired"
	left    = "left"
)

func newMetrics(source string, r prometheus.Registerer) (*metrics, error) {
	labels := prometheus.Labels{"source": source}
	m := &metrics{
		workloads: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mesh_bridges_builtin_workloads", ConstLabels: labels, Help: "Workloads under a lease.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_bridges_builtin_leases_ended_total", ConstLabels: labels,
			Help: "Leases that ended, by how: expired or left.",
		}, []string{"how"}),
		saveErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_bridges_builtin_save_errors_total", ConstLabels: labels,
			Help: "Attempts to save leases that failed.",
		}),
	}
	m.ended.WithLabelValues(expired)
	m.ended.WithLabelValues(left)
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.workloads, m.ended, m.saveErrors} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of %s: %w", source, err)
		}
	}
	return m, nil
}
