// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"
)

// anHour returns a judged run with a flat series and one that is not flat.
func anHour(t *testing.T) *Run {
	t.Helper()
	flat := synthetic(Series{Name: "a & b", Unit: "MiB", Percent: 2}, func(at time.Duration) float64 {
		return 30 + float64(int(at.Seconds())%7)/10
	})
	leaking := synthetic(Series{Name: "leaking", Items: 3}, func(at time.Duration) float64 { return at.Minutes() })
	r := &Run{Volumes: 300, Length: testLength, WarmUp: testWarmUp, Series: []*Series{flat, leaking},
		Counts: []Count{{"restarts", 3, "one in 8 hours"}},
		Events: []Event{{Restart, 3 * time.Minute}, {Certificate, 20 * time.Minute}, {Token, 2 * time.Minute}}}
	problems := r.Judge()
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "leaking: the level is 33, and the growth is 60") {
		t.Errorf("the problems are %v, want one of the leaking series", problems)
	}
	return r
}

func TestPage(t *testing.T) {
	var page bytes.Buffer
	if err := anHour(t).WritePage(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| restarts | 3 | one in 8 hours |\n\n", "1h. 300 volumes",
		"| leaking | 33 | 60 | 60 to 60 | 3 | no |\n", "| 2 % | yes |\n",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page does not have %q:\n%s", want, &page)
		}
	}
}

// TestPageOfAShortRun checks that a series with too few samples is not judged, and so not called flat.
func TestPageOfAShortRun(t *testing.T) {
	s := &Series{Name: "short"}
	s.Add(0, 1)
	r := &Run{Length: time.Minute, Series: []*Series{s}}
	if problems := r.Judge(); len(problems) != 1 {
		t.Errorf("the problems are %v, want one", problems)
	}
	var page bytes.Buffer
	if err := r.WritePage(&page); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), "| short |") {
		t.Errorf("the page judges a series with one sample:\n%s", &page)
	}
}

// TestGraph reads the graph as XML, and searches it for the required elements of each series.
func TestGraph(t *testing.T) {
	r := anHour(t)
	var svg bytes.Buffer
	if err := WriteGraph(&svg, r); err != nil {
		t.Fatal(err)
	}
	classes := map[string]int{}
	var texts []string
	for decoder := xml.NewDecoder(&svg); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.CharData:
			texts = append(texts, string(token))
		case xml.StartElement:
			attributes := map[string]string{}
			for _, a := range token.Attr {
				attributes[a.Name.Local] = a.Value
			}
			classes[token.Name.Local+" "+attributes["class"]]++
			if points, ok := attributes["points"]; ok {
				checkPoints(t, points, len(r.Series[0].Samples))
			}
		}
	}
	// The legend contains one more of each, except for the samples, for which it has a line and no polyline.
	for class, want := range map[string]int{
		"polyline samples": 2, "line fit": 3, "line restart": 3, "line certificate": 3, "line token": 3, "rect warm": 3,
	} {
		if classes[class] != want {
			t.Errorf("the graph has %q %d times, not %d times", class, classes[class], want)
		}
	}
	for _, want := range []string{"a & b, MiB", "min 30, max 30.6", "leaking", "min 0, max 59.9", "60 min"} {
		if !strings.Contains(strings.Join(texts, "\n"), want) {
			t.Errorf("the graph does not have the text %q: %q", want, texts)
		}
	}
}

// checkPoints checks that a line has this many points, all of them inside the plot, from left to right.
func checkPoints(t *testing.T, points string, want int) {
	t.Helper()
	fields := strings.Fields(points)
	if len(fields) != want {
		t.Errorf("the line has %d points, not %d", len(fields), want)
	}
	last := -1.0
	for _, field := range fields {
		x, y, _ := strings.Cut(field, ",")
		px, errX := strconv.ParseFloat(x, 64)
		py, errY := strconv.ParseFloat(y, 64)
		if err := errors.Join(errX, errY); err != nil || px < last || px > plotWidth || py < 0 || py > plotHeight {
			t.Fatalf("the point %s is outside of the plot, or left of %v: %v", field, last, err)
		}
		last = px
	}
}

func TestAxis(t *testing.T) {
	for _, test := range []struct{ low, high, bottom, step float64 }{
		{300, 300, 260, 20}, // A constant series is a line in the middle.
		{305, 305, 260, 20},
		{49, 52, 45, 5},
		{0, 60, 0, 20},
		{0.2, 2.6, 0, 1},
		{4, 4, 0, 1},
		{0, 0, 0, 0.0005},
	} {
		if bottom, step := axis(test.low, test.high); bottom != test.bottom || step != test.step {
			t.Errorf("the axis of %v to %v begins at %v with steps of %v, not at %v with %v",
				test.low, test.high, bottom, step, test.bottom, test.step)
		}
	}
}

func TestNumber(t *testing.T) {
	for value, want := range map[float64]string{
		0: "0", 12345: "12345", 123.46: "123", 12.345: "12.3", 1.5: "1.5", 0.012345: "0.0123", -0.5: "-0.5",
		99.99: "100",
	} {
		if got := number(value); got != want {
			t.Errorf("%v is written as %s, not as %s", value, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for _, d := range []string{"1h", "6m", "1h30m", "20s", "2m30s", "10m", "20m"} {
		parsed, err := time.ParseDuration(d)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(short(parsed)); got != d {
			t.Errorf("%s is written as %s", d, got)
		}
	}
}
