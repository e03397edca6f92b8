// SPDX-License-Identifier: Apache-2.0

//go:build soak

package torture

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/soak"
)

// samples are the series of a run.
type samples struct {
	rss, anonymous, heap, goroutines, descriptors, connections *soak.Series
	mounts, records, watches, rate, latency, ratio             *soak.Series
	// requests is the number of the driver's requests at the last sample, which was taken at at.
	requests int
	at       time.Time
}

func newSamples() samples {
	memory := func(name string) *soak.Series {
		return &soak.Series{Name: name, Unit: "MiB", Percent: 4, Memory: true}
	}
	return samples{
		rss: memory("resident memory"), anonymous: memory("anonymous memory"),
		heap:        memory("Go heap at the next collection"),
		goroutines:  &soak.Series{Name: "goroutines", Items: 3},
		descriptors: &soak.Series{Name: "open descriptors", Items: 3},
		connections: &soak.Series{Name: "connections to the API server", Items: 3},
		mounts:      &soak.Series{Name: "mounts", Items: 1},
		records:     &soak.Series{Name: "records", Items: 1},
		watches:     &soak.Series{Name: "watches at the API server", Items: 3},
		rate:        &soak.Series{Name: "requests to the API server", Unit: "per second", Percent: 20},
		latency:     &soak.Series{Name: "update until readers see it", Unit: "ms", Items: 2},
		ratio:       &soak.Series{Name: "the same, per duration of the update", Items: 0.2},
	}
}

func (s *samples) series() []*soak.Series {
	return []*soak.Series{
		s.rss, s.anonymous, s.heap, s.goroutines, s.descriptors, s.connections, s.watches, s.rate, s.mounts, s.records,
		s.latency, s.ratio,
	}
}

// sample adds a sample to each series.
func (d *day) sample() {
	s, now := &d.samples, time.Now()
	at := now.Sub(d.started)
	rss, anonymous := d.memory()
	s.rss.Add(at, rss)
	s.anonymous.Add(at, anonymous)
	s.heap.Add(at, d.driver.Metric("go_memstats_next_gc_bytes")/(1<<20))
	s.goroutines.Add(at, d.driver.Metric("go_goroutines"))
	descriptors, err := list(fmt.Sprintf("/proc/%d/fd", d.driver.PID()))
	d.must(err)
	s.descriptors.Add(at, float64(len(descriptors)))
	s.mounts.Add(at, float64(len(testkit.MountsBelow(d.t, filepath.Join(d.driver.Root, "pods")))))
	s.records.Add(at, float64(len(d.driver.Records())))
	d.audit.read(d.t)
	s.watches.Add(at, float64(len(d.audit.open)))
	if since := now.Sub(s.at); since > time.Second {
		s.rate.Add(at, float64(d.audit.requests-s.requests)/since.Seconds())
		s.requests, s.at = d.audit.requests, now
	}
	if n := len(d.refreshes); n > 0 {
		s.latency.Add(at, middle(d.refreshes, refresh.milliseconds))
		s.ratio.Add(at, middle(d.refreshes, refresh.ratio))
		d.refreshes = nil
	}
	connected := d.connected()
	s.connections.Add(at, float64(len(connected)))
	for _, port := range connected {
		d.connections[port] = true
	}
}

// refresh is the duration of an update of an object, and the time until all volumes showed the new version.
type refresh struct{ update, shown time.Duration }

func (r refresh) milliseconds() float64 { return r.shown.Seconds() * 1000 }

// ratio divides by the duration of the update, which also depends on the load of the machine.
func (r refresh) ratio() float64 { return r.shown.Seconds() / r.update.Seconds() }

// middle returns the median of a value of refreshes.
func middle(refreshes []refresh, value func(refresh) float64) float64 {
	var values []float64
	for _, r := range refreshes {
		values = append(values, value(r))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// memory returns the driver's resident memory, and its anonymous part, in MiB.
func (d *day) memory() (rss, anonymous float64) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", d.driver.PID()))
	d.must(err)
	for line := range strings.Lines(string(rollup)) {
		var name string
		var kib float64
		if _, err := fmt.Sscan(line, &name, &kib); err != nil {
			continue // the first line
		}
		switch name {
		case "Rss:":
			rss = kib / 1024
		case "Anonymous:":
			anonymous = kib / 1024
		}
	}
	return rss, anonymous
}
