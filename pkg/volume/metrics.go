// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// operation is a value of the label "operation".
type operation string

const (
	opPublish   operation = "publish"
	opRepublish operation = "republish"
	opRefresh   operation = "refresh"
	opUnpublish operation = "unpublish"
)

// metrics of the volumes of a node. No label has a pod, an object or a volume in it: there would be no end to them.
type metrics struct {
	duration *prometheus.HistogramVec
	stale    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, m *Manager) (*metrics, error) {
	mt := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fsuser_volume_operation_duration_seconds",
			Help: "Time an operation on a volume took, by operation (publish, republish, refresh, unpublish) and outcome (ok, error). A publish includes waiting for the object.",
			// From a tenth of a millisecond, which a refresh can take, to the two minutes that kubelet waits.
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5, 30, 120},
		}, []string{"operation", "outcome"}),
		stale: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fsuser_stale_volumes",
			Help: "Volumes whose files are not known to be current, because their object can't be read or written out.",
		}),
	}
	for _, op := range []operation{opPublish, opRepublish, opRefresh, opUnpublish} {
		for _, outcome := range []string{"ok", "error"} {
			mt.duration.WithLabelValues(string(op), outcome) // visible before the first
		}
	}
	collectors := []prometheus.Collector{
		mt.duration, mt.stale,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_volumes", Help: "Volumes that are published on this node.",
		}, func() float64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return float64(len(m.volumes))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_watched_objects", Help: "Distinct Secrets and ConfigMaps that are watched for the volumes of this node.",
		}, func() float64 { return float64(m.Source.Watched()) }),
	}
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return mt, nil
}

// observe starts a measurement; the function it returns ends it, with the outcome that *err then has.
func (mt *metrics) observe(op operation, err *error) func() {
	start := time.Now()
	return func() {
		outcome := "ok"
		if *err != nil {
			outcome = "error"
		}
		mt.duration.WithLabelValues(string(op), outcome).Observe(time.Since(start).Seconds())
	}
}

func (mt *metrics) setStale(stale bool) {
	if stale {
		mt.stale.Inc()
	} else {
		mt.stale.Dec()
	}
}
