// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// spec is the result of a spec.
type spec struct {
	name       string
	labels     []string // Conformance, NodeConformance, ...
	state      string   // passed, failed, ...: ginkgo's
	failure    string
	namespaces []string // the namespaces of the spec
	start, end time.Time
}

// ginkgoReport has the fields of ginkgo's JSON report that readReport reads.
type ginkgoReport struct {
	SpecialSuiteFailureReasons []string
	SpecReports                []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		LeafNodeLabels          []string
		State                   string
		Failure                 struct{ Message string }
		SpecEvents              []struct{ Message string }
		StartTime, EndTime      time.Time
	}
}

// readReport returns the specs that were selected.
func readReport(path string) ([]spec, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read ginkgo's report: %w", err)
	}
	var suites []ginkgoReport
	if err := json.Unmarshal(content, &suites); err != nil {
		return nil, fmt.Errorf("read ginkgo's report: %w", err)
	}
	if len(suites) != 1 {
		return nil, fmt.Errorf("read ginkgo's report: the report has %d suites, want 1", len(suites))
	}
	if reasons := suites[0].SpecialSuiteFailureReasons; len(reasons) > 0 {
		return nil, fmt.Errorf("the suite failed: %s", strings.Join(reasons, "; "))
	}
	var specs []spec
	for _, r := range suites[0].SpecReports {
		if r.LeafNodeType != "It" {
			if r.State != "passed" && r.State != "skipped" {
				return nil, fmt.Errorf("%s %s %s: %s", r.LeafNodeType, r.LeafNodeText, r.State, r.Failure.Message)
			}
			continue
		}
		// A spec that skips itself has a message. A spec that was not selected has none.
		if r.State == "skipped" && r.Failure.Message == "" {
			continue
		}
		s := spec{
			name: name(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText)), labels: r.LeafNodeLabels,
			state: r.State, failure: r.Failure.Message, start: r.StartTime, end: r.EndTime,
		}
		for _, e := range r.SpecEvents {
			if m := destroyed.FindStringSubmatch(e.Message); m != nil {
				s.namespaces = append(s.namespaces, m[1])
			}
		}
		specs = append(specs, s)
	}
	if len(specs) == 0 {
		return nil, errors.New("no spec was selected")
	}
	slices.SortFunc(specs, func(a, b spec) int { return strings.Compare(a.name, b.name) })
	return specs, nil
}

// destroyed matches the last steps of a spec, one for each of its namespaces.
var destroyed = regexp.MustCompile(`^Destroying namespace "([^"]+)" for this suite\.$`)

// tags matches the labels that ginkgo appends to the text of a spec.
var tags = regexp.MustCompile(`( \[[^\]]*\])+$`)

// name returns the text of a spec without the tags at its end.
func name(texts []string) string { return tags.ReplaceAllString(strings.Join(texts, " "), "") }
