// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/template"
	"time"
)

//go:embed scale.md.tmpl
var pageTemplate string

// writePage writes docs/scale.md.
func (r *results) writePage(path string) error {
	var page strings.Builder
	if err := r.page(&page); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(page.String()), 0o644)
}

func (r *results) page(w io.Writer) error {
	t, err := template.New("scale.md").Parse(pageTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, pageData{r})
}

// pageData has the figures in the template.
type pageData struct{ r *results }

// Machine, Took and Size describe the run.
func (p pageData) Machine() string { return p.r.machine }
func (p pageData) Took() string    { return fmt.Sprintf("%.0f minutes", p.r.took.Minutes()) }
func (p pageData) Nodes() int      { return p.r.size.nodes }
func (p pageData) Watches() int    { return p.r.size.watches }
func (p pageData) Count() int      { return p.r.size.count() }
func (p pageData) Sample() int     { return p.r.size.sample }
func (p pageData) Outage() string  { return inSeconds(p.r.size.outage) }
func (p pageData) Hold() string    { return inSeconds(p.r.size.hold) }
func (p pageData) Window() string  { return inSeconds(p.r.size.window) }
func (p pageData) Noise() string   { return fmt.Sprintf("%.0f %%", noise*100) }
func (p pageData) Limit() int      { return maxUnderWay }
func (p pageData) Renewal() string {
	return fmt.Sprintf("%.0f to %s", (renewal / 2).Seconds(), inSeconds(renewal))
}

func inSeconds(d time.Duration) string { return fmt.Sprintf("%.0f s", d.Seconds()) }

// Tables returns the tables in Markdown.
func (p pageData) Tables() string {
	var text strings.Builder
	for _, t := range p.r.tables() {
		fmt.Fprintf(&text, "### %s\n\n", t.title)
		text.WriteString("| | driver | kubelet | ratio | at most kubelet's |\n|---|---:|---:|---:|---|\n")
		for _, row := range t.rows {
			l := p.r.line(row)
			fmt.Fprintf(&text, "| %s | %s | %s | %s | %s |\n", l.What, l.Driver, l.Kubelet, l.Ratio, l.Verdict)
		}
		text.WriteString("\n")
	}
	return strings.TrimRight(text.String(), "\n")
}

// Verdict returns whether a row is worse than kubelet's, in words.
func (p pageData) Verdict() string {
	if err := p.r.verdict(); err != nil {
		return "Worse than kubelet's are:\n\n- " + strings.ReplaceAll(err.Error(), "\n", "\n- ")
	}
	return "No row of the driver is worse than kubelet's, beyond the noise of the run."
}

// model is a size of a cluster, with the cost of its watches according to the measured figures.
type model struct {
	Nodes, PerNode, Watches             int
	Memory, Renewals, Starts, Bookmarks string
	UnderWay                            int
	Recovery                            string
	Heartbeats                          int
}

// The assumptions of the model.
const (
	leaseInterval    = 10 * time.Second // kubelet's default
	bookmarkInterval = time.Minute
	consentLifetime  = 7*time.Minute + 30*time.Second // access namespaces and cluster: 5 to 10 minutes
	garbage          = 2                              // garbage between two collections doubles the heap (GOGC=100)
)

// Model returns the rows of the model.
func (p pageData) Model() (rows []model) {
	for _, nodes := range []int{1000, 5000} {
		for _, perNode := range []int{30, 100} {
			rows = append(rows, p.model(nodes, perNode))
		}
	}
	return rows
}

func (p pageData) model(nodes, perNode int) model {
	watches := nodes * perNode
	n := float64(watches)
	lifetime := p.r.of(lifetimeMinutes, driverName) * 60
	return model{
		Nodes: nodes, PerNode: perNode, Watches: watches,
		Memory:     figure(n*p.r.of(liveKiB, driverName)/(1<<20), "GiB"),
		Renewals:   figure(n*p.r.of(renewRequests, driverName)/lifetime, ""),
		Starts:     figure(n*p.r.of(renewRequests, driverName)/consentLifetime.Seconds(), ""),
		Bookmarks:  figure(n/bookmarkInterval.Seconds(), ""),
		UnderWay:   nodes * min(perNode, maxUnderWay),
		Recovery:   figure(n*p.r.of(startMillis, driverName)/1000, "s"),
		Heartbeats: int(float64(nodes) / leaseInterval.Seconds()),
	}
}

// PerGiB returns the number of watches in a GiB of memory of an API server, if half of the memory is garbage.
func (p pageData) PerGiB() int {
	per := math.Floor((1 << 20) / (p.r.of(liveKiB, driverName) * garbage) / 100)
	return int(per) * 100
}

// Figure returns a measured figure of the driver, and KubeletFigure one of kubelet.
func (p pageData) Figure(m, unit string) string {
	return figure(p.r.of(measurement(m), driverName), unit)
}

func (p pageData) KubeletFigure(m, unit string) string {
	return figure(p.r.of(measurement(m), kubeletName), unit)
}
