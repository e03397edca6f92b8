// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const (
	testLength = time.Hour
	testWarmUp = 6 * time.Minute
)

// synthetic returns a series of an hour with a sample every 5 s.
func synthetic(s Series, value func(at time.Duration) float64) *Series {
	for at := time.Duration(0); at < testLength; at += 5 * time.Second {
		s.Add(at, value(at))
	}
	return &s
}

func judged(t *testing.T, s *Series) Verdict {
	t.Helper()
	v, err := Judge(s, testWarmUp, testLength)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestJudgeTellsALeakFromNoise judges many hours of pure noise, and the same hours with a leak of one item a minute.
// Each source of random numbers has a seed, so that the result is always the same.
func TestJudgeTellsALeakFromNoise(t *testing.T) {
	items := Series{Name: "items", Items: 6}
	const hours = 200
	covered := 0
	for seed := range uint64(hours) {
		noise := func() func(time.Duration) float64 {
			random := rand.New(rand.NewPCG(seed, 1))
			return func(time.Duration) float64 { return math.Round(320 + 4*random.NormFloat64()) }
		}
		if v := judged(t, synthetic(items, noise())); !v.Flat() {
			t.Errorf("seed %d: noise alone is not flat: %+v", seed, v)
		}
		alone := noise()
		v := judged(t, synthetic(items, func(at time.Duration) float64 {
			return alone(at) + math.Floor(at.Minutes())
		}))
		if v.Flat() || math.Abs(v.Growth-60) > 5 {
			t.Errorf("seed %d: a leak of 60 items is judged as %+v", seed, v)
		}
		if v.Low <= 60 && v.High >= 60 {
			covered++
		}
	}
	if covered < hours*93/100 {
		t.Errorf("the confidence interval of 95 %% has the leak in %d of %d hours", covered, hours)
	}
}

// TestJudgeSeesALeakOfMemory judges the heap of a Go program, which grows between collections, with a leak of 300 bytes
// a second: a page every 13 s.
func TestJudgeSeesALeakOfMemory(t *testing.T) {
	memory := Series{Name: "heap", Unit: "MiB", Percent: 4, Memory: true}
	random := rand.New(rand.NewPCG(1, 1))
	heap := func(at time.Duration) float64 { return 12 + 6*math.Mod(at.Seconds(), 67)/67 + 0.2*random.NormFloat64() }
	if v := judged(t, synthetic(memory, heap)); !v.Flat() {
		t.Errorf("a heap without a leak is not flat: %+v", v)
	}
	leaking := func(at time.Duration) float64 { return heap(at) + 300*at.Seconds()/(1<<20) }
	if v := judged(t, synthetic(memory, leaking)); v.Flat() {
		t.Errorf("a leak of 1 MiB in an hour is flat: %+v", v)
	}
}

func TestJudgeIgnoresTheWarmUpAndDisturbances(t *testing.T) {
	s := synthetic(Series{Name: "items"}, func(at time.Duration) float64 {
		switch {
		case at < 5*time.Minute:
			return at.Minutes() * 60
		case at > 40*time.Minute && at < 43*time.Minute, at > 55*time.Minute && at < 57*time.Minute:
			return 9000
		}
		return 300
	})
	if v := judged(t, s); !v.Flat() || v.Growth != 0 || v.Level != 300 {
		t.Errorf("a constant series with disturbances is judged as %+v", v)
	}
}

// TestJudgeIsNotSureOfNoise checks that growth within the bound is not enough if the noise could hide more.
func TestJudgeIsNotSureOfNoise(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 1))
	s := synthetic(Series{Name: "items", Items: 6}, func(time.Duration) float64 {
		return 320 + 100*random.NormFloat64()
	})
	if v := judged(t, s); v.Flat() || v.Growth > v.Bound || v.Low > 0 {
		t.Errorf("noise that could hide growth is judged as %+v", v)
	}
}

func TestJudgeNeedsSamples(t *testing.T) {
	s := synthetic(Series{Name: "items"}, func(time.Duration) float64 { return 1 })
	s.Samples = append(s.Samples[:300], s.Samples[330:]...)
	if v, err := Judge(s, testWarmUp, testLength); err == nil {
		t.Errorf("a series with a hole of 150 s is judged as %+v", v)
	}
	if v, err := Judge(&Series{}, testWarmUp, testLength); err == nil {
		t.Errorf("a series without samples is judged as %+v", v)
	}
}
