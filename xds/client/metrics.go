package client

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// metrics are the client's. The label type is a short name ("CDS").
type metrics struct {
	connected prometheus.Gauge
	attempts  *prometheus.CounterVec // result
	responses *prometheus.CounterVec // type
	updates   *prometheus.CounterVec // type
	rejected  *prometheus.CounterVec // type
}

// The results of a connection, from the attempt to its end.
const (
	resultUnreachable = "unreachable" // it ended before the first response
	resultLost        = "lost"
)

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mesh_xds_client_connected", Help: "1 while a control plane answers on the stream.",
		}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_client_connections_total", Help: "Connections to a control plane that ended.",
		}, []string{"result"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_client_responses_total", Help: "Discovery responses received.",
		}, []string{"type"}),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_client_resources_total", Help: "Resources received.",
		}, []string{"type"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_client_rejections_total", Help: "Resources received and not taken.",
		}, []string{"type"}),
	}
	for t := range resource.Type(resource.NumTypes) {
		m.responses.WithLabelValues(t.String())
		m.updates.WithLabelValues(t.String())
		m.rejected.WithLabelValues(t.String())
	}
	m.attempts.WithLabelValues(resultUnreachable)
	m.attempts.WithLabelValues(resultLost)
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connected, m.attempts, m.responses, m.updates, m.rejected} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
