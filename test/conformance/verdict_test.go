// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"slices"
	"strings"
	"testing"
)

// A run in which all is as it has to be: a spec of each outcome.
func goodRun() (specs []spec, pods map[string][]pod, expected []expectation) {
	in := func(s spec) spec { s.namespaces = []string{"ns-" + s.name}; return s }
	specs = []spec{
		in(spec{name: "files", state: "passed"}),
		in(spec{name: "missing", state: "passed"}),
		in(spec{name: "api only", state: "passed"}),
		in(spec{name: "left", state: "failed", failure: "forbidden: " + denied + "podinfo", output: "left as they are: it has a limit"}),
	}
	pods = map[string][]pod{
		"ns-files":   {{name: "a", driver: []string{"one", "two"}, started: true}, {name: "b", driver: []string{"three"}, started: true}},
		"ns-missing": {{name: "a", driver: []string{"one"}, warnings: []string{"kubelet waits", "the driver: not found"}}},
	}
	expected = []expectation{
		{refused, "not found", "r", []string{"missing"}},
		{noVolume, "", "r", []string{"api only"}},
		{notRewritten, "a limit", "r", []string{"left"}},
	}
	return specs, pods, expected
}

func judgeAll(specs []spec, pods map[string][]pod, expected []expectation) []verdict {
	return judge(specs, func(s spec) (all []pod) {
		for _, n := range s.namespaces {
			all = append(all, pods[n]...)
		}
		return all
	}, expected)
}

func TestJudge(t *testing.T) {
	verdicts := judgeAll(goodRun())
	for _, v := range verdicts {
		if v.problem != "" {
			t.Errorf("%s: problem %q, want none", v.name, v.problem)
		}
	}
	if got := sum(verdicts); got != 3 {
		t.Errorf("%d volumes, want the 3 of the pods that ran", got)
	}
}

func TestJudgeFindsWhatIsWrong(t *testing.T) {
	const files, missing, apiOnly, left = 0, 1, 2, 3
	for _, test := range []struct {
		name   string
		change func(specs []spec, pods map[string][]pod)
		at     int
		want   string
	}{
		{"fails", func(s []spec, _ map[string][]pod) { s[files].state, s[files].failure = "failed", "expected x" }, files, "failed: expected x"},
		{"skips itself", func(s []spec, _ map[string][]pod) { s[files].state, s[files].failure = "skipped", "needs y" }, files, "skipped: needs y"},
		{"no namespace", func(s []spec, _ map[string][]pod) { s[files].namespaces = nil }, files, "no namespace"},
		{"no pod", func(_ []spec, p map[string][]pod) { delete(p, "ns-files") }, files, "no pod of it was seen"},
		{"in-tree volume beside ours", func(_ []spec, p map[string][]pod) { p["ns-files"][1].inTree = []string{"x"} }, files, "volumes of Kubernetes itself: x"},
		{"in-tree volume where one is refused", func(_ []spec, p map[string][]pod) { p["ns-missing"][0].inTree = []string{"x"} }, missing, "volumes of Kubernetes itself: x"},
		{"no volume of ours", func(_ []spec, p map[string][]pod) { p["ns-files"][1].driver = nil }, files, "mounts no volume of the driver"},
		{"pod that never ran", func(_ []spec, p map[string][]pod) {
			p["ns-files"][1].started, p["ns-files"][1].warnings = false, []string{"why"}
		}, files, "never ran; warnings: why"},
		{"volume that should be refused is not", func(_ []spec, p map[string][]pod) { p["ns-missing"][0].started = true }, missing, "should have refused"},
		{"refused for another reason", func(_ []spec, p map[string][]pod) { p["ns-missing"][0].warnings = []string{"forbidden"} }, missing, `"not found"; warnings: forbidden`},
		{"refused, and the spec fails", func(s []spec, _ map[string][]pod) { s[missing].state = "failed" }, missing, "failed"},
		{"a pod where none was", func(_ []spec, p map[string][]pod) { p["ns-api only"] = []pod{{}} }, apiOnly, "has 1 pods"},
		{"passes though listed", func(s []spec, _ map[string][]pod) { s[left].state = "passed" }, left, "take it from the list"},
		{"listed and fails otherwise", func(s []spec, _ map[string][]pod) { s[left].failure = "timed out" }, left, "failed: timed out"},
		{"listed and skipped", func(s []spec, _ map[string][]pod) { s[left].state = "skipped" }, left, "skipped"},
		{"left alone for another reason", func(s []spec, _ map[string][]pod) { s[left].output = "a token" }, left, `words "a limit"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			specs, pods, expected := goodRun()
			test.change(specs, pods)
			for i, v := range judgeAll(specs, pods, expected) {
				if i == test.at && !strings.Contains(v.problem, test.want) || i != test.at && v.problem != "" {
					t.Errorf("%s: problem %q, want %q of spec %d alone", v.name, v.problem, test.want, test.at)
				}
			}
		})
	}
}

func TestComplete(t *testing.T) {
	var specs []spec
	for _, c := range containers {
		specs = append(specs, spec{name: c + " should work"})
	}
	expected := []expectation{{specs: []string{containers[0] + " should work"}}}
	if got := complete(specs, expected); got != nil {
		t.Errorf("problems %q, want none", got)
	}
	for name, test := range map[string]struct {
		specs    []spec
		expected []expectation
		want     string
	}{
		"group without specs": {specs[1:], nil, containers[0]},
		"twice the same":      {append(slices.Clone(specs), specs[3]), nil, "two specs have this name"},
		"listed and gone":     {specs, []expectation{{specs: []string{"gone"}}}, "does not exist any more: gone"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := complete(test.specs, test.expected); len(got) != 1 || !strings.Contains(got[0], test.want) {
				t.Errorf("problems %q, want one with %q", got, test.want)
			}
		})
	}
}

func TestExpectationsAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range expectations {
		if e.outcome == rewritten || e.reason == "" || (e.words == "") != (e.outcome == noVolume) {
			t.Errorf("%+v: an outcome other than rewritten, a reason and, where something is refused, words are wanted", e)
		}
		for _, listed := range e.specs {
			if seen[listed] {
				t.Errorf("%s is listed twice", listed)
			}
			seen[listed] = true
		}
	}
}

func TestDocumentIsOfWhatHappened(t *testing.T) {
	specs, pods, expected := goodRun()
	for i := range specs {
		specs[i].name = containers[i] + " " + specs[i].name
	}
	for i := range expected {
		expected[i].specs[0] = containers[i+1] + " " + expected[i].specs[0]
	}
	specs[0].labels = []string{"NodeConformance", "Conformance"}
	r := result{verdicts: judgeAll(specs, pods, expected), server: "v1.2.3", took: 61e9}
	d := r.document(expected)
	for _, want := range []string{
		"4 specs", "v1.2.3", "| 2 | 1 | **pass", "| 1 | 0 | pass, and mount nothing", "| 1 | 0 | do not apply", "| 4 | 1 | in all", "published 3 volumes",
		"within 5 minutes", "| files | yes | passed | 3 |", "| left |  | does not apply | 0 |", "## Secrets\n", "\nr\n\n- " + strings.TrimPrefix(specs[3].name, sig) + "\n",
	} {
		if !strings.Contains(d, want) {
			t.Errorf("the document lacks %q:\n%s", want, d)
		}
	}
	if again := r.document(expected); again != d {
		t.Error("the document differs the second time")
	}
}
