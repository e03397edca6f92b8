// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package gallery

import (
	"fmt"
	"slices"
	"strings"
)

// finding is what a run has seen of a program.
type finding struct {
	program program
	version string
	said    []string // by attempt
	works   string   // with this driver
}

// incomplete tells that a part of the program was not run.
func (f finding) incomplete() bool { return f.works == "" || len(f.said) != len(f.program.attempts) }

// document is docs/gallery.md.
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

Real programs of Debian packages, in pods of Kubernetes %s that run as user 1000. The same script uses the key each time: it logs in, connects, decrypts; only
the volume differs. What stands below was said in the last run, which fails if a program says or does anything else. [programs.go](../test/gallery/programs.go) has the scripts, and
`+"`go run ./test/gallery/run`"+` (Linux, root) shows it again, in a minute and a half once its cluster is built.

All pods with this driver have an `+"`fsGroup`"+`, too, since a pod often needs one for another volume. "Refused" is an exit code other than 0.

`, kubernetes)
	fmt.Fprintf(&d, "## %d programs that are content with no in-tree volume of a Secret\n\n", len(needs))
	table(&d, needs)
	d.WriteString(`
## Programs that are content with some in-tree volume

What works gives the key to all, or to root and the whole group, or is a ` + "`subPath`" + `, which Kubernetes never refreshes. With this driver the key is the
user's alone, and is refreshed.

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
		var attributes []string
		for _, key := range []string{"uid", "gid", "mode", "dirMode"} {
			value := f.program.attributes[key]
			if key == "uid" && value == "" {
				value = fmt.Sprint(user)
			}
			if value != "" {
				attributes = append(attributes, fmt.Sprintf("%s: %q", key, value))
			}
		}
		fmt.Fprintf(d, "| %s<br>`%s` %s | %s | %s | **worked** with `%s`: %s |\n", f.program.name, f.program.packages[0], f.version, f.program.checks,
			strings.Join(attempts, "<br>"), strings.Join(attributes, ", "), quote(f.works))
	}
}

// quote makes a program's words code of a table's cell.
func quote(said string) string {
	said = strings.Join(strings.Fields(said), " ")
	said = strings.NewReplacer("`", "'", "|", "\\|").Replace(said)
	return "`" + said + "`"
}
