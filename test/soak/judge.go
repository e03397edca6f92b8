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
	Samples        []Sample
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

// Verdict says whether a series is flat.
type Verdict struct {
	// Level is the median after the warm-up.
	Level float64
	// Growth is the slope of the series after the warm-up times the length of the run. With a probability of 95 %, the
	// growth is between Low and High.
	Growth, Low, High float64
	// Bound is the growth that the series may have.
	Bound float64
	// Line is the fitted line: its values at the end of the warm-up and at the end of the run.
	Line [2]Sample
}

// Flat reports whether the series grows by no more than its bound. High decides: noise can't hide growth.
func (v Verdict) Flat() bool { return v.High <= v.Bound }

// blocks is the number of parts into which the time after the warm-up is divided. The slope is that of the means of the
// parts: samples that follow each other at once depend on each other, and a confidence interval of them would be too
// narrow.
const blocks = 36

// Judge estimates the growth of a series by the Theil-Sen estimator: the slope is the median of the slopes between each
// two blocks, so that some blocks with a disturbance, such as a restart of the API server, do not move the slope. The
// confidence interval is Sen's, from the variance of Kendall's tau.
func Judge(s *Series, warmUp, length time.Duration) (Verdict, error) {
	means, err := blockMeans(s.Samples, warmUp, length)
	if err != nil {
		return Verdict{}, fmt.Errorf("judge %s: %w", s.Name, err)
	}
	var slopes, values []float64
	for i, a := range means {
		values = append(values, a.Value)
		for _, b := range means[:i] {
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
	v.Line = fit(means, v.Growth/length.Seconds(), warmUp, length)
	return v, nil
}

// blockMeans returns the mean of each block, at the middle of the block.
func blockMeans(samples []Sample, warmUp, length time.Duration) ([]Sample, error) {
	var sums, counts [blocks]float64
	size := (length - warmUp) / blocks
	for _, s := range samples {
		if s.At < warmUp || s.At > length {
			continue
		}
		block := min(int((s.At-warmUp)/size), blocks-1)
		sums[block] += s.Value
		counts[block]++
	}
	means := make([]Sample, blocks)
	for i := range means {
		begin := warmUp + time.Duration(i)*size
		if counts[i] == 0 {
			return nil, fmt.Errorf("no sample between %v and %v", begin, begin+size)
		}
		means[i] = Sample{begin + size/2, sums[i] / counts[i]}
	}
	return means, nil
}

// fit returns the line with this slope for which as many blocks are above as below.
func fit(means []Sample, slope float64, from, to time.Duration) [2]Sample {
	var rest []float64
	for _, m := range means {
		rest = append(rest, m.Value-slope*m.At.Seconds())
	}
	at := func(t time.Duration) Sample { return Sample{t, median(rest) + slope*t.Seconds()} }
	return [2]Sample{at(from), at(to)}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
