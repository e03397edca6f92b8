// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"regexp"
	"slices"
	"strings"
)

// verdict is the result of judging a spec.
type verdict struct {
	spec
	outcome outcome
	volumes int    // the number of volumes that the driver published for running pods
	problem string // empty if the spec has shown its outcome
}

// isMissing matches the driver's message about a pod that waits for an object or a key.
var isMissing = regexp.MustCompile(`code = NotFound desc = |code = FailedPrecondition desc = .* has no key "`)

// judge compares the results of the specs and their pods with the outcome of each spec.
func judge(specs []spec, pods func(spec) []pod) []verdict {
	var verdicts []verdict
	for _, s := range specs {
		v := verdict{spec: s, outcome: outcomeOf(s.name)}
		seen := pods(s)
		for _, p := range seen {
			if p.started {
				v.volumes += len(p.driver)
			}
		}
		v.problem = v.check(seen)
		verdicts = append(verdicts, v)
	}
	return verdicts
}

// check returns the reason why the spec has not shown its outcome.
func (v verdict) check(pods []pod) string {
	switch {
	case v.state != "passed":
		return v.state + ": " + v.failure
	case len(v.namespaces) == 0:
		return "the spec made no namespace, so its pods are not known"
	case v.outcome == noPod && len(pods) > 0:
		return "the spec should have no pod"
	case v.outcome != noPod && len(pods) == 0:
		return "the spec has no pod"
	}
	for _, p := range pods {
		if problem := p.check(v.outcome); problem != "" {
			return "pod " + p.name + ": " + problem
		}
	}
	return ""
}

func (p pod) check(o outcome) string {
	switch {
	case len(p.inTree) > 0:
		return "the pod mounts volumes of Kubernetes itself: " + strings.Join(p.inTree, ", ")
	case len(p.driver) == 0:
		return "the pod mounts no volume of the driver"
	case o == published && !p.started:
		return "the pod never ran; warnings: " + strings.Join(p.warnings, " | ")
	case o == missing && p.started:
		return "the pod ran without the missing object"
	case o == missing && !slices.ContainsFunc(p.warnings, isMissing.MatchString):
		return "the driver does not say what is missing; warnings: " + strings.Join(p.warnings, " | ")
	}
	return ""
}

// complete returns a problem for each group without a spec, and for each name of two specs.
func complete(specs []spec) (problems []string) {
	seen := map[string]bool{}
	for _, s := range specs {
		if seen[s.name] {
			problems = append(problems, "two specs have the name: "+s.name)
		}
		seen[s.name] = true
	}
	for _, group := range append(groups(), externalStorage) {
		if !slices.ContainsFunc(specs, func(s spec) bool { return strings.HasPrefix(s.name, group+" ") }) {
			problems = append(problems, "the group has no spec: "+group)
		}
	}
	return problems
}

// sum returns the number of volumes that the driver published for running pods.
func sum(verdicts []verdict) (volumes int) {
	for _, v := range verdicts {
		volumes += v.volumes
	}
	return volumes
}
