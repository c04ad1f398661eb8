package listener

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	unbound      prometheus.Gauge
	failures     prometheus.Counter
	acceptErrors prometheus.Counter
	aborted      prometheus.Counter
	panics       prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		unbound: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mesh_proxy_listeners_unbound", Help: "Listeners whose address could not be bound.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_proxy_listener_bind_failures_total", Help: "Attempts to bind an address that failed.",
		}),
		acceptErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_proxy_listener_accept_failures_total", Help: "Connections that could not be accepted, mostly for want of files.",
		}),
		aborted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_proxy_listener_connections_aborted_total", Help: "Connections that did not finish within the drain time.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_proxy_listener_connection_panics_total", Help: "Connections that were closed because their handling panicked.",
		}),
	}
	for _, c := range []prometheus.Collector{m.unbound, m.failures, m.acceptErrors, m.aborted, m.panics} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("listener metrics: %w", err)
		}
	}
	return m, nil
}
