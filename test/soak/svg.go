// SPDX-License-Identifier: Apache-2.0

package soak

import (
	_ "embed"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// Event is a single event.
type Event struct {
	Kind EventKind
	At   time.Duration
}

// EventKind is the kind of an event, and the CSS class of its mark.
type EventKind string

const (
	Restart     EventKind = "restart"
	Certificate EventKind = "certificate"
	Token       EventKind = "token"
)

// The layout of the graph, in pixels: panels in columns, each with a plot.
const (
	columns     = 2
	panelWidth  = 480
	panelHeight = 150
	headHeight  = 62
	plotLeft    = 64
	plotRight   = 28
	plotTop     = 30
	plotBottom  = 28
	plotWidth   = panelWidth - plotLeft - plotRight
	plotHeight  = panelHeight - plotTop - plotBottom
)

//go:embed graph.svg.tmpl
var graphTemplate string

// graph is the input of the template.
type graph struct {
	Width, Height           int
	PlotWidth, PlotHeight   int
	Title                   string
	Panels                  []panel
	WarmUp                  float64
	Restarts, Certs, Tokens []float64
	Ticks                   []tick
}

// panel is the plot of one series. X and Y are the plot's upper left corner.
type panel struct {
	X, Y         int
	Title, Range string
	Points       string
	Line         []float64 // x1 y1 x2 y2 of the fitted line
	Ticks        []tick
}

// tick is a mark of an axis.
type tick struct {
	At    float64
	Label string
}

// WriteGraph draws each series in a panel of its own, with its fitted line if it was judged.
func WriteGraph(w io.Writer, r *Run) error {
	t, err := template.New("graph").Parse(graphTemplate)
	if err != nil {
		return err
	}
	rows := (len(r.Series) + columns - 1) / columns
	g := graph{
		Width: columns * panelWidth, Height: headHeight + rows*panelHeight + 8,
		PlotWidth: plotWidth, PlotHeight: plotHeight,
		Title:  fmt.Sprintf("A driver that holds %d volumes, for %v", r.Volumes, short(r.Length)),
		WarmUp: r.x(r.WarmUp), Ticks: r.timeTicks(),
	}
	for _, e := range r.Events {
		switch e.Kind {
		case Restart:
			g.Restarts = append(g.Restarts, r.x(e.At))
		case Certificate:
			g.Certs = append(g.Certs, r.x(e.At))
		case Token:
			g.Tokens = append(g.Tokens, r.x(e.At))
		}
	}
	for i, s := range r.Series {
		p := r.panel(s)
		p.X, p.Y = i%columns*panelWidth+plotLeft, headHeight+i/columns*panelHeight+plotTop
		g.Panels = append(g.Panels, p)
	}
	return t.Execute(w, g)
}

func (r *Run) x(at time.Duration) float64 {
	return math.Round(10*plotWidth*at.Seconds()/r.Length.Seconds()) / 10
}

// timeTicks divides the run into parts of whole minutes, or of whole seconds if the run is short.
func (r *Run) timeTicks() (ticks []tick) {
	step := max(r.Length/6, time.Second)
	unit, name := time.Minute, " min"
	if step < time.Minute {
		unit, name = time.Second, " s"
	}
	step = step.Truncate(unit)
	for at := time.Duration(0); at <= r.Length; at += step {
		ticks = append(ticks, tick{r.x(at), strconv.Itoa(int(at/unit)) + name})
	}
	return ticks
}

func (r *Run) panel(s *Series) panel {
	low, high := s.Range()
	p := panel{Title: s.Name, Range: fmt.Sprintf("min %s, max %s", number(low), number(high))}
	if s.Unit != "" {
		p.Title += ", " + s.Unit
	}
	high = s.usual()
	bottom, step := axis(low, high)
	top := bottom
	for ; top <= high; top += step {
	}
	y := func(value float64) float64 {
		return math.Round(10*plotHeight*(1-(min(max(value, bottom), top)-bottom)/(top-bottom))) / 10
	}
	for at := bottom; at <= top+step/2; at += step {
		p.Ticks = append(p.Ticks, tick{y(at), number(at)})
	}
	var points strings.Builder
	for _, sample := range s.Samples {
		fmt.Fprintf(&points, "%v,%v ", r.x(sample.At), y(sample.Value))
	}
	p.Points = strings.TrimSpace(points.String())
	if v := r.Verdicts[s]; v != nil {
		for _, end := range v.Line {
			p.Line = append(p.Line, r.x(end.At), y(end.Value))
		}
	}
	return p
}

// usual returns the greatest value after removing the greatest hundredth of the values. These may be peaks that would
// flatten the rest of the plot. The plot cuts the peaks off, and its title has their maximum.
func (s *Series) usual() float64 {
	var values []float64
	for _, sample := range s.Samples {
		values = append(values, sample.Value)
	}
	slices.Sort(values)
	return values[len(values)-1-len(values)/100]
}

// axis returns the lowest value of an axis and the distance of its ticks. The axis spans at least a fifth of the
// greatest value, so that noise does not look like change.
func axis(low, high float64) (bottom, step float64) {
	switch {
	case high < 10, low < 0.5*high:
		low = 0
	case low > 0.8*high:
		middle := (low + high) / 2
		low, high = middle-0.1*high, middle+0.1*high
	}
	span := max(high-low, 1e-3)
	step = math.Pow(10, math.Floor(math.Log10(span)))
	for _, part := range []float64{0.2, 0.5, 1, 2, 5} {
		if span/(step*part) <= 4 {
			step *= part
			break
		}
	}
	return step * math.Floor(low/step), step
}

// number writes a value with three digits or, if it is a whole number, with all digits.
func number(value float64) string {
	if value == math.Trunc(value) {
		return strconv.FormatFloat(value, 'f', -1, 64)
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(value)))))
	return strings.TrimRight(strings.TrimRight(strconv.FormatFloat(value, 'f', digits, 64), "0"), ".")
}

// short writes a duration without units that are zero.
func short(d time.Duration) string {
	text := d.Round(time.Second).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if rest, ok := strings.CutSuffix(text, zero); ok {
			text = rest + zero[:1]
		}
	}
	return text
}
