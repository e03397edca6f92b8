// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// document is docs/conformance.md. It differs between two runs only if something else happened, or they took longer.
func (r result) document() string {
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

Kubernetes tests its own Secret, ConfigMap, downward API and projected volumes by %d specs of its e2e.test; a part of them decides whether a cluster may be called
conformant. Here they ran as they are, from the Go module of Kubernetes %s, in a cluster of that version, **with every volume of theirs
rewritten to this driver** by the policy of [fsUser](fs-user.md), as users install it. The namespaces of the tests were annotated `+"`fsuser.csi.io/fs-user: \"0\"`"+`, so
that files belong to root, as the tests expect.

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
Kubernetes itself (but the one of its service account). Each pod has to have been seen with a volume of the driver, and running; or, where a test waits for a volume that must not
come, with the driver's words why. A spec that fails, is skipped, is new in a group, or passes though it is listed as one that does not apply, fails the run, and nothing is written.
The specs with a user of KEP-5936 (alpha) ran with its feature gate on.

`+"`make conformance`"+` (Linux, root) shows it again, in %s once everything is built. [specs.go](../test/conformance/specs.go) lists the exceptions.

`, minutes(r.took))
	d.WriteString("## What does not apply\n\n| spec | why |\n|---|---|\n")
	for _, v := range r.verdicts {
		if v.outcome == notRewritten {
			fmt.Fprintf(&d, "| %s | %s |\n", cell(v.name), cell(v.reason))
		}
	}
	for _, c := range containers {
		title := strings.TrimPrefix(c, "[sig-storage] ")
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

func minutes(d time.Duration) string {
	n := int(math.Ceil(d.Minutes()))
	if n == 1 {
		return "a minute"
	}
	return fmt.Sprintf("%d minutes", n)
}

// cell is a text as the cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "[", "\\[", "\n", " ").Replace(text)
}
