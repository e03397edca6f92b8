// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	clientmetrics "k8s.io/client-go/tools/metrics"

	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// newMetrics returns a registry with the metrics about the process, the node and the limits.
func (o nodeOptions) newMetrics(features tmpfs.Features) *prometheus.Registry {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("fsuser_build_info", "1, with the versions of the driver and of Go, and the revision of the source code "+
			"(empty if it is not known).", 1, prometheus.Labels{
			"version": buildVersion(), "goversion": runtime.Version(), "revision": buildRevision(),
		}))
	noSwap := 0.0
	if features.NoSwap {
		noSwap = 1
	}
	for _, g := range []struct {
		name, help string
		value      float64
	}{
		{"fsuser_noswap", "1 if volumes are never written to swap. 0 if the kernel can't promise that (before Linux 6.4, " +
			"or in a user namespace): if the node has swap, Secrets may be written to its disk.", noSwap},
		// The name of the metric of a limit is the name of its flag.
		{"fsuser_max_volume_bytes", "Limit of the content of one volume.", float64(o.maxVolumeBytes)},
		{"fsuser_max_volume_files", "Limit of the files and directories of one volume.", float64(o.maxVolumeFiles)},
		{"fsuser_max_volumes", "Limit of fsuser_volumes.", float64(o.maxVolumes)},
		{"fsuser_max_node_bytes", "Limit of fsuser_volume_memory_bytes.", float64(o.maxNodeBytes)},
		{"fsuser_max_watched_objects", "Limit of fsuser_watched_objects.", float64(o.maxWatchedObjects)},
		{"fsuser_pod_share_ratio", "Part of fsuser_max_volumes, fsuser_max_node_bytes and fsuser_max_watched_objects " +
			"that the volumes of one pod may use, from 0 to 1.", float64(o.podShare) / 100},
		{"fsuser_namespace_share_ratio", "Part of fsuser_max_volumes, fsuser_max_node_bytes and " +
			"fsuser_max_watched_objects that the volumes of one namespace may use, from 0 to 1.",
			float64(o.namespaceShare) / 100},
		{"fsuser_max_message_bytes", "Limit of the length of a request of kubelet.", float64(o.maxMessageBytes)},
	} {
		metrics.MustRegister(gauge(g.name, g.help, g.value, nil))
	}
	return metrics
}

// gauge returns a gauge with a constant value.
func gauge(name, help string, value float64, labels prometheus.Labels) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
	g.Set(value)
	return g
}

// buildRevision returns the revision of the source code that Go recorded at the build, or "".
func buildRevision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

// requests counts requests to the API server. Its name and labels are those of Kubernetes' own components. Their code
// (k8s.io/component-base) would add much more than a counter.
type requests struct{ *prometheus.CounterVec }

// Increment implements ResultMetric of client-go.
func (r requests) Increment(_ context.Context, code, method, host string) {
	r.WithLabelValues(code, method, host).Inc()
}

// countRequests registers the metric about the requests of client-go. client-go has one metric for the whole process.
func countRequests(metrics prometheus.Registerer) error {
	r := requests{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rest_client_requests_total",
		Help: "Requests to the API server, by status code (<error> if there was no answer), HTTP method and host.",
	}, []string{"code", "method", "host"})}
	clientmetrics.Register(clientmetrics.RegisterOpts{RequestResult: r})
	return metrics.Register(r)
}
