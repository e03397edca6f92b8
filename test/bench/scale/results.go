// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// The names of the fleets.
const (
	driverName  = "driver"
	kubeletName = "kubelet"
)

// measurement names a quantity that is measured for both fleets.
type measurement string

const (
	liveKiB         measurement = "live"
	heapKiB         measurement = "heap"
	stacksKiB       measurement = "stacks"
	residentKiB     measurement = "resident"
	holdMillis      measurement = "hold CPU"
	holdBytes       measurement = "hold bytes"
	startSeconds    measurement = "start seconds"
	startRequests   measurement = "start requests"
	startMillis     measurement = "start CPU"
	lifetimeMinutes measurement = "lifetime"

	renewRequests  measurement = "renew requests"
	renewBytes     measurement = "renew bytes"
	renewPerSecond measurement = "renew requests per second"
	bytesPerHour   measurement = "bytes per hour"

	sharedMillis    measurement = "shared"
	sharedByMany    measurement = "shared by many"
	sharedCPUMillis measurement = "shared CPU"

	outageAttempts measurement = "outage attempts"
)

// The events for all clients, and the quantities. The name of a measurement is an event and a quantity, in this order.
const (
	storm   measurement = "storm"
	restart measurement = "restart"
	rolling measurement = "rolling restart"

	seconds  measurement = ": seconds"
	requests measurement = ": requests"
	failed   measurement = ": failed"
	rejected measurement = ": rejected"
	millis   measurement = ": CPU"
	peakNode measurement = ": peak of a node"
	peakAll  measurement = ": peak of all"
	waiting  measurement = ": waiting"
	lease    measurement = ": Lease"
	status   measurement = ": status"
	longest  measurement = ", longest"
)

// results are the samples of a run.
type results struct {
	size    size
	machine string
	took    time.Duration
	samples map[measurement]map[string][]float64
	// exceeded is the largest number of watches that a driver started at the same time, if it is above the driver's limit.
	exceeded int
}

func (r *results) add(m measurement, fleet string, value float64) {
	if r.samples == nil {
		r.samples = map[measurement]map[string][]float64{}
	}
	if r.samples[m] == nil {
		r.samples[m] = map[string][]float64{}
	}
	r.samples[m][fleet] = append(r.samples[m][fleet], value)
}

// of returns the median of the samples.
func (r *results) of(m measurement, fleet string) float64 { return percentile(r.samples[m][fleet], 50) }

// row is a line of a table: the same measurement of both fleets. Less is better.
type row struct {
	what string
	of   measurement
	unit string
	// slack is a difference without significance: the resolution of the measurement.
	slack float64
	// limit is a figure up to which the row is good, regardless of kubelet's figure.
	limit float64
	// info means that the row is not compared, because kubelet works in another way, or because another row compares the
	// same.
	info bool
}

// table is a part of the page.
type table struct {
	title string
	rows  []row
}

// noise is the relative difference below which a row with a single sample counts as equal. Repeated runs on the same
// machine differ by this much.
const noise = 0.10

// line is a row with its figures.
type line struct {
	What, Driver, Kubelet, Ratio, Verdict string
}

// line compares the two fleets.
func (r *results) line(w row) line {
	driver, kubelet := r.of(w.of, driverName), r.of(w.of, kubeletName)
	l := line{What: w.what, Driver: figure(driver, w.unit), Kubelet: figure(kubelet, w.unit), Ratio: "-"}
	if kubelet > 0 {
		l.Ratio = strconv.FormatFloat(driver/kubelet, 'f', 2, 64)
	}
	switch {
	case w.info, r.samples[w.of] == nil:
		l.Verdict = "-"
	case driver <= kubelet:
		l.Verdict = "yes"
	case r.worse(w):
		l.Verdict = "**no**"
	case driver <= w.limit:
		l.Verdict = "within its limit"
	default:
		l.Verdict = "yes, within noise"
	}
	return l
}

// worse reports whether the driver's figure is above kubelet's by more than the noise.
func (r *results) worse(w row) bool {
	if w.info || r.samples[w.of] == nil { // With -phase, some rows are not measured.
		return false
	}
	driver, kubelet := r.of(w.of, driverName), r.of(w.of, kubeletName)
	return !(driver <= max(w.limit, kubelet*(1+r.noise(w.of))+w.slack))
}

// noise returns half of the relative range of the middle half of the samples, but at least the noise of a single
// sample.
func (r *results) noise(m measurement) float64 {
	most := noise
	for _, samples := range r.samples[m] {
		if middle := percentile(samples, 50); middle > 0 {
			most = max(most, (percentile(samples, 75)-percentile(samples, 25))/2/middle)
		}
	}
	return most
}

func figure(v float64, unit string) string {
	digits := 0
	switch {
	case math.IsNaN(v):
		return "-"
	case v == math.Trunc(v):
	case math.Abs(v) < 10:
		digits = 2
	case math.Abs(v) < 100:
		digits = 1
	}
	return strings.TrimSpace(strconv.FormatFloat(v, 'f', digits, 64) + " " + unit)
}

// derive computes further figures from the measured ones.
func (r *results) derive() {
	for _, fleet := range []string{driverName, kubeletName} {
		perHour := 60 / r.of(lifetimeMinutes, fleet)
		r.add(renewPerSecond, fleet, r.of(renewRequests, fleet)*perHour/3600*float64(r.size.count()))
		r.add(bytesPerHour, fleet, (r.of(holdBytes, fleet)+r.of(renewBytes, fleet)*perHour)/1024)
	}
}

func (r *results) tables() []table {
	n := r.size.count()
	event := func(of measurement) []row {
		return []row{
			{what: "seconds until all watches are current", of: of + seconds, unit: "s", slack: 1},
			{what: "requests per watch", of: of + requests, slack: 0.01},
			{what: "requests that failed, without 429", of: of + failed},
			{what: "requests that were rejected (429)", of: of + rejected},
			{what: "API server CPU per watch", of: of + millis, unit: "ms"},
			{what: "watch requests under way at once, one node", of: of + peakNode, limit: maxUnderWay},
			{what: "watch requests under way at once, all nodes", of: of + peakAll, limit: float64(maxUnderWay * r.size.nodes)},
			{what: "of these, waiting in the queues", of: of + waiting, info: true},
			{what: "a Lease update waits, median", of: of + lease, unit: "ms", slack: 10},
			{what: "a Lease update waits, longest", of: of + lease + longest, unit: "ms", slack: 250},
			{what: "a pod status waits, median", of: of + status, unit: "ms", slack: 10},
			{what: "a pod status waits, longest", of: of + status + longest, unit: "ms", slack: 250},
		}
	}
	return []table{
		{fmt.Sprintf("%d watches begin, and nothing happens", n), []row{
			{what: "API server memory per watch, heap and stacks", of: liveKiB, unit: "KiB"},
			{what: "of this the heap", of: heapKiB, unit: "KiB", info: true},
			{what: "of this the stacks", of: stacksKiB, unit: "KiB", info: true},
			{what: "API server resident memory per watch", of: residentKiB, unit: "KiB", slack: 16},
			{what: "API server CPU per watch and hour", of: holdMillis, unit: "ms", slack: 4},
			{what: "requests per watch to begin", of: startRequests, slack: 0.01},
			{what: "API server CPU per watch to begin", of: startMillis, unit: "ms"},
			{what: "seconds until all have begun", of: startSeconds, unit: "s", slack: 1},
		}},
		{"Watches end in order and are renewed", []row{
			{what: "mean duration of a watch", of: lifetimeMinutes, unit: "min", info: true},
			{what: "requests per renewal", of: renewRequests, slack: 0.01},
			{what: "bytes per renewal, both directions", of: renewBytes, info: true},
			{what: fmt.Sprintf("requests per second to hold %d watches (computed)", n), of: renewPerSecond, unit: "/s"},
			{what: "traffic per watch and hour, with bookmarks and renewals (computed)", of: bytesPerHour, unit: "KiB",
				slack: 0.5},
		}},
		{"The API server is killed and away for " + inSeconds(r.size.outage), append([]row{
			{what: "refused connections per node and second", of: outageAttempts, unit: "/s"},
		}, event(storm)...)},
		{"A Secret that a pod on each node shows is updated", []row{
			{what: "update sent until the last node has it, in files (driver) or in memory (kubelet)",
				of: sharedMillis, unit: "ms", info: true},
			{what: "API server CPU of an update", of: sharedCPUMillis, unit: "ms", slack: 2},
			{what: fmt.Sprintf("%d volumes show it: update sent until the last has it", r.size.nodes*r.size.sharedVolumes),
				of: sharedByMany, unit: "ms", info: true},
		}},
		{"All clients restart at once", event(restart)},
		{"A tenth of the clients restart at once, then the next tenth", event(rolling)},
	}
}

// print writes the tables as text.
func (r *results) print(w io.Writer) error {
	took := r.took.Round(time.Second)
	fmt.Fprintf(w, "%s\n%d nodes with %d watches each, in %v\n", r.machine, r.size.nodes, r.size.watches, took)
	for _, t := range r.tables() {
		fmt.Fprintf(w, "\n%s\n", t.title)
		out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(out, "what\tdriver\tkubelet\tratio\tat most kubelet's")
		for _, row := range t.rows {
			l := r.line(row)
			fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\n", l.What, l.Driver, l.Kubelet, l.Ratio, strings.Trim(l.Verdict, "*"))
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// verdict returns an error if a row of the driver is worse than kubelet's.
func (r *results) verdict() error {
	var errs []error
	for _, t := range r.tables() {
		for _, row := range t.rows {
			if r.worse(row) {
				l := r.line(row)
				errs = append(errs, fmt.Errorf("%s: %s: %s, and kubelet's %s", t.title, l.What, l.Driver, l.Kubelet))
			}
		}
	}
	return errors.Join(append(errs, r.checkLimit())...)
}

// checkLimit returns an error if a driver started more watches at the same time than its limit.
func (r *results) checkLimit() error {
	if r.exceeded == 0 {
		return nil
	}
	return fmt.Errorf("a driver started %d watches at once, and its limit is %d", r.exceeded, maxUnderWay)
}
