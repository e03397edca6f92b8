// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Sample is a value at a time since the start of the run.
type Sample struct {
	At    time.Duration
	Value float64
}

// Series is one quantity over the run. It may grow by Items, and by Percent of its level.
type Series struct {
	Name, Unit     string
	Items, Percent float64
	// Memory means that the minimum of each part of the run counts, because the memory of a Go program grows between
	// collections. A leak raises the minimum, too. For other series, the mean counts.
	Memory  bool
	Samples []Sample
}

// Add adds a sample.
func (s *Series) Add(at time.Duration, value float64) {
	s.Samples = append(s.Samples, Sample{at, value})
}

// Range returns the smallest and the greatest value.
func (s *Series) Range() (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, sample := range s.Samples {
		low, high = min(low, sample.Value), max(high, sample.Value)
	}
	return low, high
}

// Verdict is the result of judging whether a series is flat.
type Verdict struct {
	// Level is the median after the warm-up.
	Level float64
	// Growth is the slope of the series after the warm-up times the length of the run. With a probability of 95 %, the
	// growth is between Low and High.
	Growth, Low, High float64
	// Bound is the growth that the series is allowed to have.
	Bound float64
	// Line is the fitted line: its values at the end of the warm-up and at the end of the run.
	Line [2]Sample
}

// Flat reports whether the series grows by no more than its bound. High decides: noise can't hide growth.
func (v Verdict) Flat() bool { return v.High <= v.Bound }

// blocks is the number of parts into which the time after the warm-up is divided. The slope is computed from the values
// of the parts: consecutive samples depend on each other, and a confidence interval from the samples would be too
// narrow.
const blocks = 36

// Judge estimates the growth of a series by the Theil-Sen estimator: the slope is the median of the slopes between each
// two blocks, so that some blocks with a disturbance, such as a restart of the API server, do not move the slope. The
// confidence interval is Sen's, from the variance of Kendall's tau.
func Judge(s *Series, warmUp, length time.Duration) (Verdict, error) {
	parts, err := divide(s, warmUp, length)
	if err != nil {
		return Verdict{}, fmt.Errorf("judge %s: %w", s.Name, err)
	}
	var slopes, values []float64
	for i, a := range parts {
		values = append(values, a.Value)
		for _, b := range parts[:i] {
			slopes = append(slopes, (a.Value-b.Value)/(a.At-b.At).Seconds())
		}
	}
	slices.Sort(slopes)
	n := float64(blocks)
	margin := 1.96 * math.Sqrt(n*(n-1)*(2*n+5)/18)
	rank := func(r float64) float64 {
		return slopes[min(max(int(math.Round(r)), 0), len(slopes)-1)] * length.Seconds()
	}
	pairs := float64(len(slopes))
	v := Verdict{
		Level: median(values), Growth: median(slopes) * length.Seconds(),
		Low: rank((pairs-margin)/2 - 1), High: rank((pairs + margin) / 2),
	}
	v.Bound = s.Items + s.Percent/100*v.Level
	v.Line = fit(parts, v.Growth/length.Seconds(), warmUp, length)
	return v, nil
}

// divide returns the value of each block, at the middle of the block.
func divide(s *Series, warmUp, length time.Duration) ([]Sample, error) {
	var values [blocks][]float64
	size := (length - warmUp) / blocks
	for _, sample := range s.Samples {
		if sample.At >= warmUp && sample.At <= length {
			block := min(int((sample.At-warmUp)/size), blocks-1)
			values[block] = append(values[block], sample.Value)
		}
	}
	parts := make([]Sample, blocks)
	for i, v := range values {
		begin := warmUp + time.Duration(i)*size
		switch {
		case len(v) == 0:
			return nil, fmt.Errorf("no sample between %v and %v", begin, begin+size)
		case s.Memory:
			parts[i] = Sample{begin + size/2, slices.Min(v)}
		default:
			parts[i] = Sample{begin + size/2, mean(v)}
		}
	}
	return parts, nil
}

// fit returns the line with this slope that has the same number of blocks above as below.
func fit(parts []Sample, slope float64, from, to time.Duration) [2]Sample {
	var rest []float64
	for _, p := range parts {
		rest = append(rest, p.Value-slope*p.At.Seconds())
	}
	at := func(t time.Duration) Sample { return Sample{t, median(rest) + slope*t.Seconds()} }
	return [2]Sample{at(from), at(to)}
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
