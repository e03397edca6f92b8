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
	rss, anonymous, heap, goroutines, descriptors, mounts, records, watches, rate, latency *soak.Series
	// requests is the number of the driver's requests at the last sample, which was at at.
	requests int
	at       time.Time
}

func newSamples() samples {
	return samples{
		rss:         &soak.Series{Name: "resident memory", Unit: "MiB", Percent: 3},
		anonymous:   &soak.Series{Name: "anonymous memory", Unit: "MiB", Percent: 3},
		heap:        &soak.Series{Name: "Go heap at the next collection", Unit: "MiB", Percent: 3},
		goroutines:  &soak.Series{Name: "goroutines", Items: 3},
		descriptors: &soak.Series{Name: "open descriptors", Items: 2},
		mounts:      &soak.Series{Name: "mounts", Items: 1},
		records:     &soak.Series{Name: "records", Items: 1},
		watches:     &soak.Series{Name: "watches at the API server", Items: 3},
		rate:        &soak.Series{Name: "requests to the API server", Unit: "per second", Percent: 10},
		latency:     &soak.Series{Name: "update until readers see it, median", Unit: "ms", Items: 1},
	}
}

func (s *samples) series() []*soak.Series {
	return []*soak.Series{
		s.rss, s.anonymous, s.heap, s.goroutines, s.descriptors, s.watches, s.mounts, s.records, s.rate, s.latency,
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
	if n := len(d.latencies); n > 0 {
		slices.Sort(d.latencies)
		s.latency.Add(at, d.latencies[n/2].Seconds()*1000)
		d.latencies = nil
	}
	for _, port := range d.connected() {
		d.connections[port] = true
	}
}

// memory returns the driver's resident memory, and how much of it is anonymous, in MiB.
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
