package generate

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

type metrics struct {
	scopes, clients, unlabelled prometheus.Gauge
	failures                    prometheus.Counter
	passes                      *prometheus.HistogramVec
	changed                     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		scopes:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "mesh_xds_generate_scopes", Help: "Scopes of nodes that are connected."}),
		clients: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mesh_xds_generate_clients", Help: "Sets of outbound resources held."}),
		unlabelled: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mesh_xds_generate_unlabelled_scopes", Help: "Scopes served as if they had no labels, since there are too many clients.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "mesh_xds_generate_failures_total", Help: "Hosts that could not be translated."}),
		passes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mesh_xds_generate_pass_seconds", Help: "Time from a change to its publication, by what changed.",
			Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5},
		}, []string{"change"}),
		changed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_generate_changed_resources_total", Help: "Resources published as changed, over all scopes.",
		}, []string{"type"}),
	}
	for _, change := range []string{"endpoints", "services", "rules"} {
		m.passes.WithLabelValues(change)
	}
	for t := range resource.Type(resource.NumTypes) {
		m.changed.WithLabelValues(t.String())
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.scopes, m.clients, m.unlabelled, m.failures, m.passes, m.changed} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) sizes(scopes, clients int) {
	m.scopes.Set(float64(scopes))
	m.clients.Set(float64(clients))
}

func (m *metrics) pass(change string, took time.Duration, published []publication) {
	m.passes.WithLabelValues(change).Observe(took.Seconds())
	for _, p := range published {
		for _, k := range p.changed {
			m.changed.WithLabelValues(k.Type.String()).Inc()
		}
	}
}
