// SPDX-License-Identifier: Apache-2.0

// Package soak judges and describes a long run of the driver: it judges whether each quantity is flat, draws a graph,
// and writes the page docs/soak.md. TestDay of test/torture makes the run.
package soak

import (
	_ "embed"
	"fmt"
	"io"
	"strings"
	"text/template"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
)

// Shortest is the duration of the shortest run whose series are judged. Memory takes minutes to reach its level.
const Shortest = 30 * time.Minute

// Run is the data of a run.
type Run struct {
	reliability.Machine
	Volumes        int
	Length, WarmUp time.Duration
	Series         []*Series
	// Verdicts are the results of Judge. A series with too few samples has none.
	Verdicts map[*Series]*Verdict `json:"-"`
	Events   []Event
	Counts   []Count
}

// Count is the number of times of an activity. Day describes the number in a day, and may be empty.
type Count struct {
	What string
	N    int
	Day  string
}

// Judge judges each series, and returns an error for each series that is not flat.
func (r *Run) Judge() (problems []error) {
	r.Verdicts = map[*Series]*Verdict{}
	for _, s := range r.Series {
		v, err := Judge(s, r.WarmUp, r.Length)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		r.Verdicts[s] = &v
		if !v.Flat() {
			problems = append(problems, fmt.Errorf(
				"%s: the level is %s, and the growth is %s (95 %%: %s to %s); the bound of the growth is %s",
				s.Name, number(v.Level), number(v.Growth), number(v.Low), number(v.High), number(v.Bound)))
		}
	}
	return problems
}

//go:embed page.md.tmpl
var pageTemplate string

// WritePage writes the page.
func (r *Run) WritePage(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{"number": number, "short": short}).Parse(pageTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, r)
}

// Blocks returns the number of parts from which the slope is computed.
func (r *Run) Blocks() int { return blocks }

// Quantity returns the name of a series with its unit.
func (s *Series) Quantity() string {
	if s.Unit == "" {
		return s.Name
	}
	return s.Name + ", " + s.Unit
}

// Allowed returns the bound of a series in words.
func (s *Series) Allowed() string {
	var parts []string
	if s.Percent > 0 {
		parts = append(parts, number(s.Percent)+" %")
	}
	if s.Items > 0 {
		parts = append(parts, strings.TrimSpace(number(s.Items)+" "+s.Unit))
	}
	return strings.Join(parts, " + ")
}
