// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

// result is the report of a machine. It is kept in the cache, so that a run of a few machines completes the page.
type result struct {
	Version string // the version of the kernel's package
	KVM     bool
	Took    time.Duration
	Facts   guest.Facts
	Ran     map[string]counts // by program
	Seen    []string

	machine  machine
	running  string // the program whose output is on the console now
	done     bool
	problems []error
}

// counts has the numbers of the tests of a package, without subtests. The demo has none.
type counts struct {
	Passed int
	Took   time.Duration
}

// line handles a line of the console.
func (r *result) line(line string) {
	report, ok, err := guest.Parse(line)
	switch {
	case err != nil:
		r.problem("%w", err)
	case !ok:
		r.output(line)
	case report.Facts != nil:
		r.Facts = *report.Facts
	case report.Started != "":
		r.running = report.Started
	case report.Ended != nil:
		r.ended(*report.Ended)
	case report.Seen != "":
		r.Seen = append(r.Seen, report.Seen)
	case report.Failed != "":
		r.problem("%s", report.Failed)
	case report.Done:
		r.done = true
	}
}

// output handles a line of a program. Package testing reports the end of a test in a line that is not indented.
func (r *result) output(line string) {
	verdict, rest, ok := strings.Cut(strings.TrimPrefix(line, "--- "), ": ")
	if !ok || !strings.HasPrefix(line, "--- ") {
		return
	}
	test, _, _ := strings.Cut(rest, " ")
	switch verdict {
	case "PASS":
		c := r.Ran[r.running]
		c.Passed++
		r.Ran[r.running] = c
	default:
		r.problem("%s: %s: %s", r.running, test, strings.ToLower(verdict))
	}
}

func (r *result) ended(e guest.Ended) {
	c := r.Ran[e.Name]
	c.Took = e.Took
	r.Ran[e.Name] = c
	if e.Error != "" {
		r.problem("%s: %s", e.Name, e.Error)
	}
	r.running = ""
}

func (r *result) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf(format, args...))
}

// check returns an error if the result of a machine that has ended is wrong.
func (r *result) check() error {
	if !r.done {
		r.problem("the machine ended before it had done all")
	}
	if !strings.Contains(r.Facts.Missing, r.machine.lacks) || r.machine.lacks == "" && r.Facts.Missing != "" {
		r.problem("the driver lacks %q on this kernel, want %q", r.Facts.Missing, r.machine.lacks)
	}
	if !r.Facts.CgroupV2 || r.Facts.Enforcing != r.machine.policy || r.Facts.SELinux != r.machine.policy {
		r.problem("the kernel is not as the machine is described: %+v", r.Facts)
	}
	for _, p := range r.machine.programs {
		c, ran := r.Ran[p.dir]
		switch {
		case !ran:
			r.problem("%s did not run", p.dir)
		case p.isTest() && c.Passed == 0:
			r.problem("%s: no test passed", p.dir)
		}
	}
	return errors.Join(r.problems...)
}

func (r *result) summary() string {
	var passed int
	for _, c := range r.Ran {
		passed += c.Passed
	}
	return fmt.Sprintf("kernel %s, %d tests passed, %d problems", r.Facts.Kernel, passed, len(r.problems))
}
