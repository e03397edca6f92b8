// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// writePage writes docs/kernels.md if each machine has a result.
func (r *runner) writePage() error {
	var results []*result
	for _, m := range machines() {
		text, err := os.ReadFile(r.kept(m))
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Printf("docs/kernels.md stays as it is: there is no result of %s\n", m.name)
			return nil
		}
		result := &result{machine: m}
		if err == nil {
			err = json.Unmarshal(text, result)
		}
		if err != nil {
			return err
		}
		results = append(results, result)
	}
	return os.WriteFile(filepath.Join(r.repository, "docs/kernels.md"), []byte(page(results)), 0o644)
}

const introduction = `# Kernels

<!-- Written by go run ./test/vm from what the machines reported. Do not edit. -->

` + "`make vm`" + ` (Linux, root) starts virtual machines with kernels of Debian packages, and runs the tests of
the driver's kernel parts, the driver, and the demo in them. QEMU emulates a machine if KVM does not
work or the architecture is another one. The run fails, and this page stays as it was, if a test
fails, is skipped or is missing. The tests that are excluded are [listed](#excluded-tests). The
consoles are in ` + "`.cache/vm`" + `.

`

func page(results []*result) string {
	var d strings.Builder
	d.WriteString(introduction)
	d.WriteString("| machine | kernel | page | `noswap` | SELinux | passed tests, without subtests |\n")
	d.WriteString("|---|---|---:|---|---|---|\n")
	for _, r := range results {
		fmt.Fprintf(&d, "| %s | %s, %s (Debian %s) | %d KiB | %s | %s | %s |\n", r.machine.name, r.Facts.Kernel,
			r.Facts.Machine, r.Version, r.Facts.PageSize>>10, yesNo(r.Facts.NoSwap), r.selinux(), r.outcome())
	}
	d.WriteString("\n" + oldest(results) + "\n")
	writeSeen(&d, results)
	writeExclusions(&d)
	return d.String()
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

func (r *result) selinux() string {
	switch {
	case r.Facts.Enforcing:
		return "enforcing"
	case r.machine.commandLine != "":
		return "enabled at boot, without a policy"
	}
	return "off"
}

// outcome returns the number of passed tests, by program.
func (r *result) outcome() string {
	if r.machine.lacks != "" {
		return "the driver's self-test fails: " + r.Facts.Missing
	}
	var passed []string
	for _, p := range r.machine.programs {
		if p.isTest() {
			passed = append(passed, fmt.Sprintf("`%s` %d", p.dir, r.Ran[p.dir].Passed))
		} else {
			passed = append(passed, "the demo")
		}
	}
	return strings.Join(passed, ", ")
}

// oldest describes the oldest kernel on which the driver works.
func oldest(results []*result) string {
	works, refused, kvm := "", "", 0
	for _, r := range results {
		if r.KVM {
			kvm++
		}
		switch {
		case r.machine.lacks != "":
			refused = r.Facts.Kernel
		case works == "":
			works = r.Facts.Kernel
		}
	}
	return fmt.Sprintf(`The oldest kernel with which the tests passed is %s. With %s
the self-test with which the driver starts fails. The driver needs the system calls of Linux 5.12; no
kernel between these two was tested. All machines had cgroup v2 with the memory controller. KVM ran
%d of the %d machines; the others were emulated.
`, works, refused, kvm, len(results))
}

// writeSeen lists the observations of the tests.
func writeSeen(d *strings.Builder, results []*result) {
	d.WriteString("## What the tests saw\n\n")
	for _, r := range results {
		for _, seen := range r.Seen {
			fmt.Fprintf(d, "- %s: %s.\n", r.machine.name, seen)
		}
	}
}

func writeExclusions(d *strings.Builder) {
	d.WriteString("\n## Excluded tests\n\n| test | machine | reason |\n|---|---|---|\n")
	for _, e := range exclusions() {
		fmt.Fprintf(d, "| `%s` of `%s` | %s | %s |\n", e.test, e.dir, cmp.Or(e.machine, "all"), e.reason)
	}
	d.WriteString(`
The tests in ` + "`test/integration`" + ` do not run in the machines: they start an API server,
which needs more than an emulated machine gives.
`)
}
