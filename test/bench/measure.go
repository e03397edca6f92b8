// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// series is an operation that is measured repeatedly. One step may give samples to several rows.
type series struct {
	rows []*row
	// setUp prepares the steps, and returns the step. env.close undoes the preparation.
	setUp func(ctx context.Context, e *env) (step, error)
}

type step func(ctx context.Context) error

// stepTimeout bounds a step. A step that never ends is a failure.
const stepTimeout = 2 * time.Minute

// measure runs all series with a wanted row and returns their rows.
//
// Single operations take turns, a few at a time, so that the machine's noise affects all of them equally. The
// operations on many volumes at once come afterwards, one series after the other, because they would disturb others.
func measure(ctx context.Context, e *env, wanted *regexp.Regexp) ([]*row, error) {
	y := newYardsticks()
	single := append(y.series(), singleVolume(e.size, y)...)
	many := manyVolumes(e.size, y)
	all := slices.Concat(single, many)
	use := choose(all, wanted)
	if !slices.ContainsFunc(all, use) {
		return nil, fmt.Errorf("no row matches %q", wanted)
	}

	var steps []step
	for _, s := range single {
		if !use(s) {
			continue
		}
		progress("set up: %s", s.names())
		step, err := s.setUp(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.names(), err)
		}
		steps = append(steps, func(ctx context.Context) error { return s.run(ctx, step) })
	}
	progress("measure %d operations, %d times each", len(steps), e.size.steps)
	for done := 0; done < e.size.steps; done += e.size.batch {
		for _, step := range steps {
			for range min(e.size.batch, e.size.steps-done) {
				if err := step(ctx); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, s := range many {
		if !use(s) {
			continue
		}
		progress("measure: %s", s.names())
		step, err := s.setUp(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.names(), err)
		}
		if err := s.run(ctx, step); err != nil {
			return nil, err
		}
	}

	var rows []*row
	for _, s := range all {
		for _, r := range s.rows {
			if len(r.samples) == 0 {
				continue
			}
			if !e.size.goals {
				r.goal = goal{}
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// choose returns a function that reports whether a series has a wanted row, or a row with which a wanted row is
// compared.
func choose(all []series, wanted *regexp.Regexp) func(series) bool {
	needed := map[*row]bool{}
	for _, s := range all {
		for _, r := range s.rows {
			if wanted.MatchString(r.what) {
				needed[r] = true
				needed[r.yardstick] = true
				for _, p := range r.peers {
					needed[p] = true
				}
			}
		}
	}
	return func(s series) bool {
		for _, r := range s.rows {
			if needed[r] {
				return true
			}
		}
		return false
	}
}

func (s series) run(ctx context.Context, step step) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("not done after %v", stepTimeout))
	defer cancel()
	if err := step(ctx); err != nil {
		return fmt.Errorf("%s: %w", s.names(), err)
	}
	return nil
}

func (s series) names() string {
	var names []string
	for _, r := range s.rows {
		names = append(names, r.what)
	}
	return strings.Join(names, "; ")
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
