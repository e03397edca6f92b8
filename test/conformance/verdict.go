// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

// verdict is what came of a spec.
type verdict struct {
	spec
	outcome outcome
	reason  string // why the outcome is another than rewritten
	pods    int
	volumes int    // that the driver published for pods that ran
	problem string // empty: as it has to be
}

// judge compares what the specs did, and what was seen of their pods, with what has to come of them.
func judge(specs []spec, pods func(spec) []pod, expectations []expectation) []verdict {
	var verdicts []verdict
	for _, s := range specs {
		v := verdict{spec: s}
		var words string
		for _, e := range expectations {
			if slices.Contains(e.specs, s.name) {
				v.outcome, v.reason, words = e.outcome, e.reason, e.words
			}
		}
		seen := pods(s)
		v.pods = len(seen)
		for _, p := range seen {
			if p.started {
				v.volumes += len(p.driver)
			}
		}
		v.problem = v.wrong(seen, words)
		verdicts = append(verdicts, v)
	}
	return verdicts
}

// wrong says what is not as the outcome demands.
func (v verdict) wrong(pods []pod, words string) string {
	if len(v.namespaces) == 0 {
		return "it made no namespace, so nothing is known of its pods (" + v.state + ": " + v.failure + ")"
	}
	if v.outcome == notRewritten {
		switch {
		case v.state == "passed":
			return "it passes, though its volume should have been left alone: take it from the list in specs.go"
		case v.state != "failed" || !strings.Contains(v.failure, denied):
			return "its pod should have been refused for a volume that is left alone; " + v.state + ": " + v.failure
		case !strings.Contains(v.output, words):
			return fmt.Sprintf("the policy does not warn that it leaves a volume alone with the words %q", words)
		}
		return ""
	}
	if v.state != "passed" {
		return v.state + ": " + v.failure
	}
	if v.outcome == noVolume {
		if len(pods) > 0 {
			return fmt.Sprintf("it has %d pods, and is listed as one without", len(pods))
		}
		return ""
	}
	if len(pods) == 0 {
		return "no pod of it was seen"
	}
	for _, p := range pods {
		if problem := p.wrong(v.outcome, words); problem != "" {
			return "pod " + p.name + ": " + problem
		}
	}
	return ""
}

func (p pod) wrong(o outcome, words string) string {
	switch {
	case len(p.inTree) > 0:
		return "it mounts volumes of Kubernetes itself: " + strings.Join(p.inTree, ", ")
	case len(p.driver) == 0:
		return "it mounts no volume of the driver"
	case o == rewritten && !p.started:
		return "it never ran; warnings: " + strings.Join(p.warnings, " | ")
	case o == refused && p.started:
		return "it ran, and the driver should have refused its volume"
	case o == refused && !slices.ContainsFunc(p.warnings, func(w string) bool { return strings.Contains(w, words) }):
		return fmt.Sprintf("no warning has the words %q; warnings: %s", words, strings.Join(p.warnings, " | "))
	}
	return ""
}

// complete says what is missing in a run of all specs, and what is there twice.
func complete(specs []spec, expectations []expectation) (problems []string) {
	counts := map[string]int{}
	for _, s := range specs {
		counts[s.name]++
		if counts[s.name] == 2 {
			problems = append(problems, "two specs have this name: "+s.name)
		}
	}
	for _, c := range containers {
		if !slices.ContainsFunc(specs, func(s spec) bool { return strings.HasPrefix(s.name, c+" ") }) {
			problems = append(problems, "there is no spec any more in: "+c)
		}
	}
	for _, e := range expectations {
		for _, listed := range e.specs {
			if counts[listed] == 0 {
				problems = append(problems, "specs.go lists a spec that does not exist any more: "+listed)
			}
		}
	}
	return problems
}

// sum returns the volumes that the driver published for pods that ran.
func sum(verdicts []verdict) (volumes int) {
	for _, v := range verdicts {
		volumes += v.volumes
	}
	return volumes
}

// judgeInTree is for a run without the driver: each spec passes.
func judgeInTree(specs []spec) []verdict {
	var verdicts []verdict
	for _, s := range specs {
		v := verdict{spec: s}
		if s.state != "passed" {
			v.problem = s.state + ": " + s.failure
		}
		verdicts = append(verdicts, v)
	}
	return verdicts
}
