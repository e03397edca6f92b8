// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// sig begins every spec's name.
const sig = "[sig-storage] "

// document is docs/conformance.md. It differs between two runs only if something else happened, or they took much longer.
func (r result) document(expectations []expectation) string {
	counts := map[outcome]int{}
	conformance := map[outcome]int{}
	for _, v := range r.verdicts {
		counts[v.outcome]++
		if slices.Contains(v.labels, "Conformance") {
			conformance[v.outcome]++
		}
	}
	passed, all := counts[rewritten]+counts[refused], len(r.verdicts)
	var d strings.Builder
	fmt.Fprintf(&d, `# Conformance

<!-- Written by go run ./test/conformance from what it has seen. Not to be edited. -->

Kubernetes tests its own Secret, ConfigMap, downward API and projected volumes by %d specs of its e2e.test; those that it calls [Conformance] decide whether a
cluster may be called conformant. Here they ran as they are, built from the Go module of Kubernetes %s, in a cluster of that version, with their volumes
**rewritten to this driver** by the policy of [fsUser](fs-user.md), as users install it. The namespaces of the tests were annotated
`+"`fsuser.csi.io/fs-user: \"0\"`"+`, so that files belong to root, as the tests expect.

| specs | of these [Conformance] | |
|---:|---:|---|
| %d | %d | **pass with volumes of this driver alone** |
| %d | %d | pass, and mount nothing |
| %d | %d | do not apply: the policy leaves their volume to Kubernetes, for the reason below |
| %d | %d | in all |

The driver published %d volumes for the pods that ran, by its own count too, and held none when they were gone.

`, all, r.server, passed, conformance[rewritten]+conformance[refused], counts[noVolume], conformance[noVolume], counts[notRewritten], conformance[notRewritten],
		all, conformance[rewritten]+conformance[refused]+conformance[noVolume]+conformance[notRewritten], sum(r.verdicts))
	fmt.Fprintf(&d, `What keeps this from being hollow: a policy of the run refuses each pod of the tests that mounts a Secret, ConfigMap, downward API or projected volume of
Kubernetes itself, but the one of its service account. Each pod has to be seen with a volume of the driver, and running; or, where a test waits for a volume that must
not come, with the driver's words why. The run fails, and writes nothing, if a spec fails or is skipped, passes though it is listed as one that does not apply, or is
listed and does not exist any more. Specs with a user of KEP-5936 (alpha) ran with its feature gate on.

`+"`make conformance`"+` (Linux, root) shows it again, within %d minutes once everything is built. [specs.go](../test/conformance/specs.go) lists the exceptions.
`, 5*int(math.Ceil(r.took.Minutes()/5)))
	d.WriteString("\n## What does not apply\n")
	for _, e := range expectations {
		if e.outcome == notRewritten {
			fmt.Fprintf(&d, "\n%s\n\n", e.reason)
			for _, listed := range e.specs {
				fmt.Fprintf(&d, "- %s\n", strings.TrimPrefix(listed, sig))
			}
		}
	}
	for _, c := range containers {
		title := strings.TrimPrefix(c, sig)
		fmt.Fprintf(&d, "\n## %s\n\n| spec | [Conformance] | outcome | volumes of the driver |\n|---|---|---|---:|\n", title)
		for _, v := range r.verdicts {
			if spec, ok := strings.CutPrefix(v.name, c+" "); ok {
				fmt.Fprintf(&d, "| %s | %s | %s | %d |\n", cell(spec), yes(slices.Contains(v.labels, "Conformance")), cell(v.says()), v.volumes)
			}
		}
	}
	return d.String()
}

// says is the verdict in words.
func (v verdict) says() string {
	switch v.outcome {
	case refused:
		return "passed: " + v.reason
	case noVolume:
		return "passed; " + v.reason
	case notRewritten:
		return "does not apply"
	}
	return "passed"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// cell is a text as the cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "[", "\\[", "\n", " ").Replace(text)
}
