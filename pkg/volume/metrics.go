// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// operation is a value of the label "operation".
type operation string

const (
	opPublish   operation = "publish"
	opRepublish operation = "republish"
	opRefresh   operation = "refresh"
	opUnpublish operation = "unpublish"
)

// metrics of the volumes of a node. No label names a pod, an object or a volume: the number of series stays bounded.
type metrics struct {
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
	// badRecords are those that Recover could not use.
	badRecords prometheus.Counter
}

func newMetrics(r prometheus.Registerer, m *Manager) (*metrics, error) {
	mt := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fsuser_volume_operation_duration_seconds",
			Help: "Time an operation on a volume took, by operation (publish, republish, refresh, unpublish) and outcome (ok, error). A publish includes waiting for the object.",
			// From a tenth of a millisecond, which a refresh can take, to the two minutes that kubelet waits.
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5, 30, 120},
		}, []string{"operation", "outcome"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fsuser_volume_failures_total",
			Help: "Operations on volumes that failed, by operation (publish, refresh) and reason (not_found, forbidden, unavailable: the object can't be read; precondition: object or target is not as it must be; limit: the node has reached one; other).",
		}, []string{"operation", "reason"}),
		badRecords: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fsuser_bad_records_total",
			Help: "Records of volumes that the driver could not use at its start: damaged or not its own, and so moved aside, or of another version. It takes these volumes over when kubelet republishes them.",
		}),
	}
	for _, op := range []operation{opPublish, opRefresh} {
		for _, r := range []string{"not_found", "forbidden", "unavailable", "precondition", "limit", "other"} {
			mt.failures.WithLabelValues(string(op), r)
		}
	}
	for _, op := range []operation{opPublish, opRepublish, opRefresh, opUnpublish} {
		for _, outcome := range []string{"ok", "error"} {
			mt.duration.WithLabelValues(string(op), outcome) // visible before the first
		}
	}
	collectors := []prometheus.Collector{
		mt.duration, mt.failures, mt.badRecords,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_stale_volumes",
			Help: "Volumes whose files are not known to be current, because their object can't be read or written out, or because the API server has not been reached for ten seconds.",
		}, func() float64 { return float64(len(m.staleFor())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_oldest_stale_volume_seconds", Help: "How long the volume that has been stale longest has been stale; 0 if none is.",
		}, func() float64 {
			var oldest time.Duration
			for _, age := range m.staleFor() {
				oldest = max(oldest, age)
			}
			return oldest.Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_volume_bytes", Help: "Bytes of content in the volumes of this node.",
		}, func() float64 {
			var sum int64
			for _, v := range m.all() {
				sum += v.snapshot().size
			}
			return float64(sum)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_volumes", Help: "Volumes that are published on this node.",
		}, func() float64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return float64(len(m.volumes))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_watched_objects", Help: "Distinct Secrets, ConfigMaps and pods that are watched for the volumes of this node.",
		}, func() float64 { return float64(m.config.Source.Watched()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fsuser_volume_memory_bytes", Help: "Memory that one version of all volumes of this node takes: content in whole pages, and 1.5 KiB for each file, directory and link.",
		}, func() float64 { return float64(m.quota.taken()) }),
	}
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return mt, nil
}

// observe starts a measurement; the function it returns ends it, as one of the operation, with the outcome that *err then has.
func (mt *metrics) observe(err *error) func(operation) {
	start := time.Now()
	return func(op operation) {
		outcome := "ok"
		if *err != nil {
			outcome = "error"
		}
		if *err != nil && op == opPublish {
			mt.failed(op, *err)
		}
		mt.duration.WithLabelValues(string(op), outcome).Observe(time.Since(start).Seconds())
	}
}

// staleFor are the times for which volumes have not been known to be current.
func (m *Manager) staleFor() (all []time.Duration) {
	for _, v := range m.all() {
		if since, why := m.staleness(v); why != nil {
			all = append(all, time.Since(since))
		}
	}
	return all
}

// failed counts a failure by its reason.
func (mt *metrics) failed(op operation, err error) {
	reason := "other"
	for _, r := range []struct {
		is   error
		name string
	}{
		{source.ErrNotFound, "not_found"}, {source.ErrForbidden, "forbidden"}, {source.ErrUnavailable, "unavailable"}, {ErrInvalid, "precondition"}, {ErrPrecondition, "precondition"}, {ErrExhausted, "limit"},
	} {
		if errors.Is(err, r.is) {
			reason = r.name
			break
		}
	}
	mt.failures.WithLabelValues(string(op), reason).Inc()
}
