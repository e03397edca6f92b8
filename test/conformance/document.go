// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// sig is the first word of the names of Kubernetes' specs for its own volumes.
const sig = "[sig-storage] "

// document returns docs/conformance.md. Two runs differ only if the specs differ, or if one took much longer.
func (r result) document() string {
	var d strings.Builder
	fmt.Fprintf(&d, `# Conformance

<!-- Written by go run ./test/conformance from its results. Do not edit. -->

Kubernetes has end-to-end tests ("specs") of its own Secret, ConfigMap, downward API and projected
volumes. A cluster has to pass those labelled [Conformance] to be called conformant. The specs ran
unchanged, built from the Go module of Kubernetes %s, in a cluster of that version, with **every
volume moved behind a volume of this driver** by the [fs-user policy](fs-user.md), as users install
the policy. The namespaces had the annotation `+"`fsuser.csi.io/fs-user: \"0\"`"+`, because the specs expect
files of root.

`, r.server)
	d.WriteString(r.counts())
	fmt.Fprintf(&d, `
Kubernetes' external-storage suite for CSI drivers ran in the same cluster with inline volumes that
show a ConfigMap of the test's namespace ([definition](../%s)).

The driver published %d volumes for the pods that ran, by its own metrics too, and held none when the
pods were gone.

The run fails, and this page stays as it was, if a spec fails or is skipped, if a pod mounts a Secret,
ConfigMap, downward API or projected volume of Kubernetes itself (other than the service account's), if
a pod has no volume of the driver, or if a pod does not run. Where a spec tests that a pod waits for a
missing object or key, the driver has to report what is missing. The specs of KEP-5936 (alpha) ran with
its feature gate on.

`+"`make conformance`"+` (Linux, root) repeats the run. The specs take up to %d minutes.
`, testDriver, sum(r.verdicts), 5*int(math.Ceil(r.took.Minutes()/5)))
	for _, group := range append(groups(), externalStorage) {
		fmt.Fprintf(&d, "\n## %s\n", strings.TrimPrefix(group, sig))
		if group == externalStorage {
			d.WriteString("\nWithout the specs that write to the volume or resize a PersistentVolumeClaim.\n")
		}
		d.WriteString("\n| spec | [Conformance] | outcome | volumes of the driver |\n|---|---|---|---:|\n")
		for _, v := range r.verdicts {
			if spec, ok := strings.CutPrefix(v.name, group+" "); ok {
				fmt.Fprintf(&d, "| %s | %s | %s | %d |\n", cell(spec), v.conformance(), v.outcome, v.volumes)
			}
		}
	}
	return d.String()
}

// counts returns the table of the specs for Kubernetes' own volumes.
func (r result) counts() string {
	var all, conformance [noPod + 1]int
	for _, v := range r.verdicts {
		if strings.HasPrefix(v.name, externalStorage) {
			continue
		}
		all[v.outcome]++
		if v.conformance() != "" {
			conformance[v.outcome]++
		}
	}
	passed, passedConformance := all[published]+all[missing], conformance[published]+conformance[missing]
	return fmt.Sprintf(`| specs | of these [Conformance] | |
|---:|---:|---|
| %d | %d | **pass with volumes of this driver alone** |
| %d | %d | pass, and have no pod |
| %d | %d | in all |
`, passed, passedConformance, all[noPod], conformance[noPod], passed+all[noPod], passedConformance+conformance[noPod])
}

func (o outcome) String() string {
	switch o {
	case missing:
		return "passed; the driver reports what is missing"
	case noPod:
		return "passed; a test of the API alone"
	}
	return "passed"
}

func (v verdict) conformance() string {
	if slices.Contains(v.labels, "Conformance") {
		return "yes"
	}
	return ""
}

// cell returns text in the form of a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "[", "\\[", "\n", " ").Replace(text)
}
