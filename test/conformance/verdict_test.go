// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"slices"
	"strings"
	"testing"
)

// The specs of goodRun, by index.
const (
	files = iota
	absent
	immutable
	inline
)

// goodRun returns a run without a problem: a spec of each outcome, and one of the external-storage suite.
func goodRun() (specs []spec, pods map[string][]pod) {
	specs = []spec{
		{name: groups()[0] + " files", labels: []string{"NodeConformance", "Conformance"}},
		{name: groups()[1] + " Should fail non-optional pod creation"},
		{name: groups()[2] + " should be immutable"},
		{name: externalStorage + " inline"},
	}
	for i := range specs {
		specs[i].state, specs[i].namespaces = "passed", []string{specs[i].name}
	}
	const warning = `rpc error: code = FailedPrecondition desc = missing: Secret "a" has no key "data-4"`
	return specs, map[string][]pod{
		specs[files].name: {
			{name: "a", driver: []string{"one", "two"}, started: true},
			{name: "b", driver: []string{"three"}, started: true, warnings: []string{"why"}},
		},
		specs[absent].name: {{name: "a", driver: []string{"one"}, warnings: []string{"kubelet waits", warning}}},
		specs[inline].name: {{name: "a", driver: []string{"one"}, started: true}},
	}
}

func judgeAll(specs []spec, pods map[string][]pod) []verdict {
	return judge(specs, func(s spec) (all []pod) {
		for _, n := range s.namespaces {
			all = append(all, pods[n]...)
		}
		return all
	})
}

func TestJudge(t *testing.T) {
	verdicts := judgeAll(goodRun())
	for i, want := range []outcome{published, missing, noPod, published} {
		if v := verdicts[i]; v.outcome != want || v.problem != "" {
			t.Errorf("%s: outcome %q, problem %q, want %q without a problem", v.name, v.outcome, v.problem, want)
		}
	}
	if got := sum(verdicts); got != 4 {
		t.Errorf("%d volumes, want the 4 of the pods that ran", got)
	}
}

func TestJudgeFindsProblems(t *testing.T) {
	for _, test := range []struct {
		name   string
		at     int
		change func(s *spec, pods []pod)
		want   string
	}{
		{"fails", files, func(s *spec, _ []pod) { s.state, s.failure = "failed", "expected x" }, "failed: expected x"},
		{"skips itself", files, func(s *spec, _ []pod) { s.state, s.failure = "skipped", "why" }, "skipped: why"},
		{"fails, and its pod waits", absent, func(s *spec, _ []pod) { s.state = "failed" }, "failed"},
		{"no namespace", immutable, func(s *spec, _ []pod) { s.namespaces = nil }, "no namespace"},
		{"no pod", files, func(s *spec, _ []pod) { s.namespaces = []string{"empty"} }, "has no pod"},
		{"no pod with an inline volume", inline, func(s *spec, _ []pod) { s.namespaces = []string{"empty"} }, "has no pod"},
		{"a pod where none should be", immutable, func(s *spec, _ []pod) { s.namespaces = []string{"other"} },
			"should have no pod"},
		{"a volume of Kubernetes, too", files, func(_ *spec, p []pod) { p[1].inTree = []string{"x"} },
			"Kubernetes itself: x"},
		{"a missing volume of Kubernetes", absent, func(_ *spec, p []pod) { p[0].inTree = []string{"x"} },
			"Kubernetes itself: x"},
		{"no volume of the driver", files, func(_ *spec, p []pod) { p[1].driver = nil }, "no volume of the driver"},
		{"a pod that never ran", files, func(_ *spec, p []pod) { p[1].started = false }, "never ran; warnings: why"},
		{"a pod that ran without an object", absent, func(_ *spec, p []pod) { p[0].started = true }, "ran without"},
		{"a pod that waits for another reason", absent, func(_ *spec, p []pod) { p[0].warnings = []string{"forbidden"} },
			"does not say what is missing; warnings: forbidden"},
	} {
		t.Run(test.name, func(t *testing.T) {
			specs, pods := goodRun()
			pods["other"] = []pod{{name: "other"}}
			name := specs[test.at].name
			test.change(&specs[test.at], pods[name])
			for i, v := range judgeAll(specs, pods) {
				if i == test.at && !strings.Contains(v.problem, test.want) || i != test.at && v.problem != "" {
					t.Errorf("%s: problem %q, want %q of %s alone", v.name, v.problem, test.want, name)
				}
			}
		})
	}
}

func TestComplete(t *testing.T) {
	var specs []spec
	for _, group := range append(groups(), externalStorage) {
		specs = append(specs, spec{name: group + " should work"})
	}
	if got := complete(specs); got != nil {
		t.Errorf("problems %q, want none", got)
	}
	for name, test := range map[string]struct {
		specs []spec
		want  string
	}{
		"group without specs":       {specs[1:], "no spec: " + groups()[0]},
		"no external-storage suite": {specs[:len(specs)-1], "no spec: " + externalStorage},
		"two specs with one name":   {append(slices.Clone(specs), specs[3]), "two specs have the name: " + specs[3].name},
	} {
		t.Run(name, func(t *testing.T) {
			if got := complete(test.specs); len(got) != 1 || !strings.Contains(got[0], test.want) {
				t.Errorf("problems %q, want one with %q", got, test.want)
			}
		})
	}
}

func TestCompareFindsProblems(t *testing.T) {
	if got := compare(counts{published: 2}, counts{published: 5}, 3); got != nil {
		t.Errorf("problems %q, want none", got)
	}
	for want, after := range map[string]counts{
		"published 2 volumes, and the pods that ran had 3": {published: 4},
		"holds 1 volumes": {published: 5, held: 1},
	} {
		if got := compare(counts{published: 2}, after, 3); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("problems %q, want one with %q", got, want)
		}
	}
}

func TestDocument(t *testing.T) {
	r := result{verdicts: judgeAll(goodRun()), server: "v1.2.3", took: 61e9}
	d := r.document()
	for _, want := range []string{
		"v1.2.3", "| 2 | 1 | **pass", "| 1 | 0 | pass, and have no pod", "| 3 | 1 | in all",
		"published 4 volumes", "up to 5 minutes",
		"\n## Secrets\n", "| files | yes | passed | 3 |",
		"| Should fail non-optional pod creation |  | passed; the driver reports what is missing | 0 |",
		"\n## External Storage [Driver: fsuser.csi.io]\n", "| inline |  | passed | 1 |",
	} {
		if !strings.Contains(d, want) {
			t.Errorf("the document lacks %q:\n%s", want, d)
		}
	}
	if again := r.document(); again != d {
		t.Error("the document differs the second time")
	}
}
