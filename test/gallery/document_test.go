// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package gallery

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// finding is the output of a program in this run.
type finding struct {
	program program
	version string
	said    []string // by attempt
	works   string   // with this driver
}

// incomplete reports whether a part of the program did not run.
func (f finding) incomplete() bool { return f.works == "" || len(f.said) != len(f.program.attempts) }

// document returns docs/gallery.md.
func document(all []finding, kubernetes string) string {
	var needs, others []finding
	for _, f := range all {
		if slices.ContainsFunc(f.program.attempts, func(a attempt) bool { return a.ends == accepts }) {
			others = append(others, f)
		} else {
			needs = append(needs, f)
		}
	}
	var d strings.Builder
	fmt.Fprintf(&d, `# The gallery

<!-- Written by go run ./test/gallery/run from what it has seen. Not to be edited. -->

Real programs of Debian packages run in pods of Kubernetes %s as user 1000. Each script logs in,
connects or decrypts with its key, and is the same for every volume. The messages below are those of
the last run, which fails if a program says or does something else.
[test/gallery](../test/gallery) has the scripts, and `+"`make gallery`"+` (Linux, root) runs
them again. The pod that worked with this driver is the pod of the example, with another image,
script and Secret.

All pods with this driver have an `+"`fsGroup`"+`, too, because a pod often needs one for another volume.
"Refused" means an exit code other than 0. "Stayed old" means that the Secret changed, that kubelet
refreshed the volume, and that the program still got the content of before. Only a script that waits
for a change also has the whole volume in another directory.

`, kubernetes)
	fmt.Fprintf(&d, "## %d programs that no in-tree volume of a Secret suits\n\n", len(needs))
	table(&d, needs)
	d.WriteString(`
## Programs that accept some in-tree volume

An in-tree volume that works gives the key to every user, or to root and the whole group, or is a
` + "`subPath`" + `, which Kubernetes never refreshes. With this driver the key belongs to the user alone, and
is refreshed.

`)
	table(&d, others)
	return d.String()
}

func table(d *strings.Builder, findings []finding) {
	d.WriteString("| program | what it checks | with the in-tree volume | with this driver |\n|---|---|---|---|\n")
	for _, f := range findings {
		var attempts []string
		for i, a := range f.program.attempts {
			attempts = append(attempts, fmt.Sprintf("**%s** with %s: %s", a.ends, a, quote(f.said[i])))
		}
		var pairs []string
		all := podManifest{program: f.program}.Attributes()
		for _, key := range slices.SortedFunc(maps.Keys(all), byPlace) {
			pairs = append(pairs, fmt.Sprintf("%s: %q", key, all[key]))
		}
		version := f.version
		if f.program.suite != "" {
			version += " of " + f.program.suite
		}
		fmt.Fprintf(d, "| %s<br>`%s` %s<br>[example](../examples/%s.yaml) | %s | %s | **worked** with `%s`: %s |\n",
			f.program.name, f.program.packages[0], version, f.program.example.name, f.program.checks,
			strings.Join(attempts, "<br>"), strings.Join(pairs, ", "), quote(f.works))
	}
}

// byPlace orders attributes: first those of the usual order, then the others.
func byPlace(a, b string) int {
	first := []string{"dirMode", "mode", "gid", "uid"}
	return cmp.Or(slices.Index(first, b)-slices.Index(first, a), cmp.Compare(a, b))
}

// quote formats the output of a program as code in a table's cell.
func quote(said string) string {
	said = strings.Join(strings.Fields(said), " ")
	said = strings.NewReplacer("`", "'", "|", "\\|").Replace(said)
	return "`" + said + "`"
}
