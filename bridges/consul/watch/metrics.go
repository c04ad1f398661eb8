package watch

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
)

// Metrics are the figures of one follower.
type Metrics struct {
	queries  *prometheus.CounterVec // outcome
	inFlight prometheus.Gauge
	limit    prometheus.Gauge
	services prometheus.Gauge
	wait     prometheus.Gauge
	down     *prometheus.GaugeVec // datacenter
}

// NewMetrics makes the figures of a source and registers them; a nil Registerer
// registers nothing.
func NewMetrics(source string, r prometheus.Registerer) (*Metrics, error) {
	labels := prometheus.Labels{"source": source}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
	}
	m := &Metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_bridges_consul_queries_total", ConstLabels: labels,
			Help: "Queries by outcome: changed, unchanged, unavailable, failing, overloaded, denied, malformed.",
		}, []string{"outcome"}),
		inFlight: gauge("mesh_bridges_consul_queries_in_flight", "Queries that wait for an answer."),
		limit:    gauge("mesh_bridges_consul_queries_limit", "Queries that may run at once; lowered while the agent refuses connections."),
		services: gauge("mesh_bridges_consul_services", "Services followed."),
		wait:     gauge("mesh_bridges_consul_wait_seconds", "How long a query waits for a change; short when there are more services than queries."),
		down: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mesh_bridges_consul_datacenter_down", ConstLabels: labels,
			Help: "1 while the list of services of a data centre cannot be read.",
		}, []string{"datacenter"}),
	}
	for _, outcome := range []string{changed, unchanged} {
		m.queries.WithLabelValues(outcome)
	}
	for k := wire.Unavailable; k <= wire.Malformed; k++ {
		m.queries.WithLabelValues(k.String())
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queries, m.inFlight, m.limit, m.services, m.wait, m.down} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of %s: %w", source, err)
		}
	}
	return m, nil
}

// Outcomes of a query that brought an answer; those of others are wire.Kind names.
const (
	changed   = "changed"
	unchanged = "unchanged"
)
