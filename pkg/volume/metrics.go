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

// metrics are the metrics of the node's volumes. No label names a pod, an object or a volume, so the number of series
// is
// bounded.
type metrics struct {
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
	// badRecords counts the records that Recover could not use.
	badRecords prometheus.Counter
}

func newMetrics(r prometheus.Registerer, m *Manager) (*metrics, error) {
	mt := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fsuser_volume_operation_duration_seconds",
			Help: "Duration of operations on volumes, by operation (publish, republish, refresh, unpublish) and outcome (ok, " +
				"error). The duration of a publish includes the wait for the object.",
			// The first is a tenth of a millisecond, which a short refresh takes; the last is the two minutes that kubelet
			// waits.
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5, 30, 120},
		}, []string{"operation", "outcome"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fsuser_volume_failures_total",
			Help: "Operations on volumes that failed, by operation (publish, refresh) and reason (not_found, forbidden, " +
				"unavailable: the driver can't read the object; precondition: the object or the target path is not as " +
				"required; limit: the node has reached a limit; stalled: a refresh has been running for more than a " +
				"second, and it counts again if it then fails; other).",
		}, []string{"operation", "reason"}),
		badRecords: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fsuser_bad_records_total",
			Help: "Records of volumes that the driver could not use when it started: damaged records, which it moved to bad " +
				"below --state-dir, and records of another version. The driver refreshes their volumes again after kubelet " +
				"republishes them.",
		}),
	}
	mt.initialize()
	for _, c := range append(m.gauges(), mt.duration, mt.failures, mt.badRecords) {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return mt, nil
}

// initialize creates each series with the value 0, so that it exists before its first event.
func (mt *metrics) initialize() {
	for _, op := range []operation{opPublish, opRefresh} {
		for _, reason := range []string{
			"not_found", "forbidden", "unavailable", "precondition", "limit", "stalled", "other",
		} {
			mt.failures.WithLabelValues(string(op), reason)
		}
	}
	for _, op := range []operation{opPublish, opRepublish, opRefresh, opUnpublish} {
		for _, outcome := range []string{"ok", "error"} {
			mt.duration.WithLabelValues(string(op), outcome)
		}
	}
}

// gauges returns the metrics that are computed from the volumes at each collection.
func (m *Manager) gauges() (all []prometheus.Collector) {
	gauge := func(name, help string, value func() float64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("fsuser_volumes", "Volumes that are published on this node.", func() float64 { return float64(len(m.all())) })
	gauge("fsuser_watched_objects", "Distinct Secrets, ConfigMaps and pods that the driver watches for the volumes of "+
		"this node.",
		func() float64 { return float64(m.config.Source.Watched()) })
	gauge("fsuser_volume_memory_bytes", "Memory of the volumes of this node: one version of their files in whole "+
		"pages, 1.5 KiB for each file, directory and link, their records, and the content of their objects, once "+
		"for each volume.", func() float64 { return float64(m.quota.taken()) })
	gauge("fsuser_volume_bytes", "Bytes of content in the volumes of this node.", func() (sum float64) {
		for _, v := range m.all() {
			sum += float64(v.snapshot().size)
		}
		return sum
	})
	gauge("fsuser_stale_volumes", "Volumes whose files may be outdated: the driver can't read the object, can't write it "+
		"to the volume, or has not reached the API server for ten seconds. The log, the Events of the pod and "+
		"fsuser-csi status show the reason. If all volumes of a node are stale, the node can't reach the API server.",
		func() float64 { return float64(len(m.staleFor())) })
	gauge("fsuser_oldest_stale_volume_seconds", "Time for which the volume that has been stale longest has been "+
		"stale. 0 if no volume is stale.",
		func() (oldest float64) {
			for _, age := range m.staleFor() {
				oldest = max(oldest, age.Seconds())
			}
			return oldest
		})
	gauge("fsuser_oldest_refresh_seconds", "Time for which the refresh that has been running longest has been running. 0 "+
		"if no refresh is running. More than a second probably means that a process holds the directory of a volume: "+
		"fsuser-csi status shows the pod.", func() (oldest float64) {
		for _, v := range m.all() {
			oldest = max(oldest, v.refreshingFor().Seconds())
		}
		return oldest
	})
	return all
}

// observe starts a measurement. The caller ends the measurement with the returned function, which counts the operation
// as failed if *err is not nil then.
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

// staleFor returns, for each stale volume, the time for which it has been stale.
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
		{source.ErrNotFound, "not_found"}, {source.ErrForbidden, "forbidden"}, {source.ErrUnavailable, "unavailable"},
		{ErrInvalid, "precondition"}, {ErrPrecondition, "precondition"}, {ErrExhausted, "limit"}, {errStalled, "stalled"},
	} {
		if errors.Is(err, r.is) {
			reason = r.name
			break
		}
	}
	mt.failures.WithLabelValues(string(op), reason).Inc()
}
