// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// row is a line of the table: a measured quantity in one unit.
type row struct {
	what string
	unit unit
	// yardstick is the row to which the p50 is compared; nil if nothing is comparable.
	yardstick *row
	// peers are the rows of other programs for the same work. Their ratios follow that of the yardstick.
	peers []*row
	goal  goal
	// note explains the row.
	note    string
	samples []float64
}

type unit string

const (
	milliseconds unit = "ms"
	mebibytes    unit = "MiB"
	requests     unit = "requests"
)

// goal is the upper limit of a row: of p50 and p99 in the unit of the row, and of the ratios of both to those of the
// yardstick. Zero means no limit.
type goal struct{ p50, p99, ratio, p99Ratio float64 }

// time adds a duration.
func (r *row) time(d time.Duration) { r.add(float64(d) / float64(time.Millisecond)) }

func (r *row) add(v float64) { r.samples = append(r.samples, v) }

// percentile returns the nearest-rank percentile of the samples.
func (r *row) percentile(p float64) float64 {
	if len(r.samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(r.samples))
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}

// result is a printed row, and the element of the output of -json.
type result struct {
	What      string   `json:"what"`
	Unit      unit     `json:"unit"`
	N         int      `json:"n"`
	P50       float64  `json:"p50"`
	P99       float64  `json:"p99"`
	Yardstick string   `json:"yardstick,omitempty"`
	Ratio     *float64 `json:"ratio,omitempty"`
	// Peers are the ratios of the p50 to those of other rows.
	Peers []peerRatio `json:"peers,omitempty"`
	// P99Ratio is set if the row has a goal for it.
	P99Ratio *float64 `json:"p99Ratio,omitempty"`

	GoalP50      float64 `json:"goalP50,omitempty"`
	GoalP99      float64 `json:"goalP99,omitempty"`
	GoalRatio    float64 `json:"goalRatio,omitempty"`
	GoalP99Ratio float64 `json:"goalP99Ratio,omitempty"`
	Met          *bool   `json:"met,omitempty"`
	Note         string  `json:"note,omitempty"`
}

// peerRatio is the ratio to the p50 of a row of another program.
type peerRatio struct {
	What  string   `json:"what"`
	Ratio *float64 `json:"ratio"`
}

func (r *row) result() result {
	res := result{
		What: r.what, Unit: r.unit, N: len(r.samples), P50: r.percentile(50), P99: r.percentile(99),
		GoalP50: r.goal.p50, GoalP99: r.goal.p99, GoalRatio: r.goal.ratio, GoalP99Ratio: r.goal.p99Ratio, Note: r.note,
	}
	if r.yardstick != nil {
		res.Yardstick = r.yardstick.what
		res.Ratio = r.ratio(r.yardstick, 50)
		if r.goal.p99Ratio > 0 {
			res.P99Ratio = r.ratio(r.yardstick, 99)
		}
	}
	for _, p := range r.peers {
		res.Peers = append(res.Peers, peerRatio{p.what, r.ratio(p, 50)})
	}
	if r.goal != (goal{}) {
		met := reached(&res.P50, r.goal.p50) && reached(&res.P99, r.goal.p99) &&
			reached(res.Ratio, r.goal.ratio) && reached(res.P99Ratio, r.goal.p99Ratio)
		res.Met = &met
	}
	return res
}

// ratio returns the ratio of a percentile to that of another row, or nil if the latter is 0 or was not measured.
func (r *row) ratio(to *row, p float64) *float64 {
	y := to.percentile(p)
	if y == 0 || math.IsNaN(y) {
		return nil
	}
	ratio := r.percentile(p) / y
	return &ratio
}

// reached reports whether a value is at most its goal. A goal of zero is always reached.
func reached(value *float64, most float64) bool { return most == 0 || value != nil && *value <= most }

func results(rows []*row) []result {
	var rs []result
	for _, r := range rows {
		rs = append(rs, r.result())
	}
	return rs
}

func printJSON(w io.Writer, rows []*row) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(map[string]any{"machine": lab.Machine(runtime.NumCPU()), "rows": results(rows)})
}

// printTable prints the rows. The column "ratio" refers to yardsticks by their numbers.
func printTable(w io.Writer, rows []*row) error {
	numbers := map[string]int{}
	for _, r := range rows {
		for _, y := range append(r.peers, r.yardstick) {
			if y != nil {
				numbers[y.what] = 0
			}
		}
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\n3 keys, 4 KiB, owner and mode set, unless a row says otherwise. "+
		"\"1.5 of #2\": the p50 is 1.5 times that of yardstick #2.\n\n", lab.Machine(runtime.NumCPU()))
	fmt.Fprintln(table, "what\tn\tp50\tp99\tratio\tgoal\tmet\t")
	last := 0
	for _, r := range results(rows) {
		if _, isYardstick := numbers[r.What]; isYardstick {
			last++
			numbers[r.What] = last
			r.What = fmt.Sprintf("#%d %s", last, r.What)
		}
		p99 := ""
		if r.N > 1 {
			p99 = figure(r.P99, r.Unit)
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", r.What, r.N, figure(r.P50, r.Unit), p99,
			ratio(r, numbers), goalText(r), met(r), r.Note)
	}
	return table.Flush()
}

func figure(v float64, u unit) string {
	switch {
	case u == milliseconds && v < 10:
		return fmt.Sprintf("%.3f ms", v)
	case u == requests:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.1f %s", v, u)
}

func ratio(r result, numbers map[string]int) string {
	var parts []string
	if r.Ratio != nil {
		parts = append(parts, ratioTo(*r.Ratio, numbers[r.Yardstick]))
	}
	if r.P99Ratio != nil {
		parts = append(parts, fmt.Sprintf("p99 %.1f", *r.P99Ratio))
	}
	for _, p := range r.Peers {
		if p.Ratio != nil {
			parts = append(parts, ratioTo(*p.Ratio, numbers[p.What]))
		}
	}
	return strings.Join(parts, ", ")
}

// ratioTo prints a ratio with two significant digits.
func ratioTo(ratio float64, number int) string {
	if ratio < 1 {
		return fmt.Sprintf("%.2f of #%d", ratio, number)
	}
	return fmt.Sprintf("%.1f of #%d", ratio, number)
}

func goalText(r result) string {
	var parts []string
	if r.GoalP50 > 0 {
		parts = append(parts, fmt.Sprintf("%g", r.GoalP50))
	}
	if r.GoalP99 > 0 {
		parts = append(parts, fmt.Sprintf("p99 %g", r.GoalP99))
	}
	if r.GoalRatio > 0 {
		parts = append(parts, fmt.Sprintf("ratio %g", r.GoalRatio))
	}
	if r.GoalP99Ratio > 0 {
		parts = append(parts, fmt.Sprintf("p99 ratio %g", r.GoalP99Ratio))
	}
	return strings.Join(parts, ", ")
}

func met(r result) string {
	switch {
	case r.Met == nil:
		return ""
	case *r.Met:
		return "yes"
	}
	return "no"
}
