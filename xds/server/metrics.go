package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// metrics are the server's. The label type is a short name ("CDS"), protocol is
// "delta" or "sotw".
type metrics struct {
	streams     *prometheus.GaugeVec   // protocol
	closed      *prometheus.CounterVec // code
	requests    *prometheus.CounterVec // type, kind
	responses   *prometheus.CounterVec // type, protocol
	bytes       *prometheus.CounterVec // type
	resources   *prometheus.CounterVec // type
	refusals    *prometheus.CounterVec // type
	quarantined *prometheus.GaugeVec   // type
	ack         *prometheus.HistogramVec
	waves       prometheus.Counter
	admitted    prometheus.Gauge
	waiting     prometheus.Gauge
}

// The kinds of request.
const (
	kindSubscribe = "subscribe" // first of its type on a stream, or no answer to a response
	kindAck       = "ack"
	kindNack      = "nack"
	kindStale     = "stale"   // carries a nonce other than the newest
	kindUnknown   = "unknown" // of a type that is not served
)

// unknownType stands for all types that are not served.
const unknownType = "other"

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mesh_xds_streams", Help: "Open xDS streams.",
		}, []string{"protocol"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_streams_closed_total", Help: "Streams that ended, by gRPC code.",
		}, []string{"code"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_requests_total", Help: "Discovery requests received.",
		}, []string{"type", "kind"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_responses_total", Help: "Discovery responses sent.",
		}, []string{"type", "protocol"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_response_bytes_total", Help: "Bytes of discovery responses sent.",
		}, []string{"type"}),
		resources: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_resources_sent_total", Help: "Resources in discovery responses sent.",
		}, []string{"type"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_xds_refusals_total", Help: "Resources that a client refused.",
		}, []string{"type"}),
		quarantined: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mesh_xds_quarantined_resources", Help: "Resources whose last good version is served in place of a refused one.",
		}, []string{"type"}),
		ack: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mesh_xds_ack_seconds", Help: "Time from sending a response to its acknowledgement or refusal.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"type"}),
		waves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_xds_waves_total", Help: "Times that the streams of a scope were woken for changes.",
		}),
		admitted: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mesh_xds_admitted_bytes", Help: "Bytes of large responses that await acknowledgement.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mesh_xds_admission_waiting_streams", Help: "Streams whose large response waits for admission.",
		}),
	}
	for t := range resource.Type(resource.NumTypes) {
		for _, kind := range []string{kindSubscribe, kindAck, kindNack, kindStale} {
			m.requests.WithLabelValues(t.String(), kind)
		}
		for _, protocol := range []string{"delta", "sotw"} {
			m.responses.WithLabelValues(t.String(), protocol)
			m.streams.WithLabelValues(protocol)
		}
		m.bytes.WithLabelValues(t.String())
		m.resources.WithLabelValues(t.String())
		m.refusals.WithLabelValues(t.String())
		m.quarantined.WithLabelValues(t.String())
		m.ack.WithLabelValues(t.String())
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.streams, m.closed, m.requests, m.responses, m.bytes, m.resources, m.refusals,
		m.quarantined, m.ack, m.waves, m.admitted, m.waiting,
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) quarantineMoved(t resource.Type, was, is bool) {
	switch {
	case is && !was:
		m.quarantined.WithLabelValues(t.String()).Inc()
	case was && !is:
		m.quarantined.WithLabelValues(t.String()).Dec()
	}
}
