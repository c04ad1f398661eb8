package bridges

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// metrics are those of one source; each carries the labels source and kind.
type metrics struct {
	phase     *prometheus.GaugeVec // phase
	lastRead  prometheus.Gauge
	services  prometheus.Gauge
	endpoints prometheus.Gauge
	skipped   prometheus.Gauge
	updates   *prometheus.CounterVec // step
	restarts  prometheus.Counter
	saves     *prometheus.CounterVec // result
	saveTime  prometheus.Histogram
	diskBytes prometheus.Gauge
}

// newMetrics registers the metrics of one source; a second source of the same
// name and kind is an error.
func newMetrics(reg prometheus.Registerer, source, kind string) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		phase: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mesh_bridges_source_phase", Help: "1 for the phase the source is in: syncing, live or stale.",
		}, []string{"phase"}),
		lastRead:  gauge("mesh_bridges_last_read_timestamp_seconds", "When what is held was last known to be complete; 0 means never."),
		services:  gauge("mesh_bridges_services", "Services held of the source."),
		endpoints: gauge("mesh_bridges_endpoints", "Endpoints held of the source."),
		skipped:   gauge("mesh_bridges_skipped_entries", "Entries of the registry that could not be understood."),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_bridges_updates_total", Help: "Updates handed on, by step: full or delta.",
		}, []string{"step"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mesh_bridges_restarts_total", Help: "Times the source ended and was started again.",
		}),
		saves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mesh_bridges_snapshot_saves_total", Help: "Attempts to keep the last complete read on disk, by result: ok or failed.",
		}, []string{"result"}),
		saveTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mesh_bridges_snapshot_save_duration_seconds", Help: "Time to write and sync the last complete read.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		diskBytes: gauge("mesh_bridges_snapshot_size_bytes", "Size of the last complete read on disk."),
	}
	for _, phase := range []model.SourcePhase{model.Syncing, model.Live, model.Stale} {
		m.phase.WithLabelValues(phase.String())
	}
	for _, step := range []string{"full", "delta"} {
		m.updates.WithLabelValues(step)
	}
	for _, result := range []string{"ok", "failed"} {
		m.saves.WithLabelValues(result)
	}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"source": source, "kind": kind}, reg)
	var errs []error
	for _, c := range []prometheus.Collector{
		m.phase, m.lastRead, m.services, m.endpoints, m.skipped, m.updates, m.restarts, m.saves, m.saveTime, m.diskBytes,
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) setPhase(now model.SourcePhase) {
	for _, phase := range []model.SourcePhase{model.Syncing, model.Live, model.Stale} {
		value := 0.0
		if phase == now {
			value = 1
		}
		m.phase.WithLabelValues(phase.String()).Set(value)
	}
}
