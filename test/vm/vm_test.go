// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

func TestAResultIsGoodOnlyIfEveryProgramRanAndNoTestFailedOrWasSkipped(t *testing.T) {
	good := []string{
		`@vm {"Facts":{"Kernel":"6.1","CgroupV2":true}}`,
		`@vm {"Started":"pkg/tmpfs"}`, "--- PASS: TestA (0.00s)", "    --- PASS: TestA/a (0.00s)",
		`@vm {"Ended":{"Name":"pkg/tmpfs"}}`,
		`@vm {"Started":"test/demo"}`, "hello", `@vm {"Ended":{"Name":"test/demo"}}`,
		`@vm {"Done":true}`,
	}
	replace := func(old, new string) []string {
		lines := slices.Clone(good)
		lines[slices.Index(lines, old)] = new
		return lines
	}
	for name, test := range map[string]struct {
		lines []string
		want  string // in the error
	}{
		"all is well":       {good, ""},
		"a test fails":      {replace("--- PASS: TestA (0.00s)", "--- FAIL: TestA (0.00s)"), "pkg/tmpfs: TestA: fail"},
		"a test is skipped": {replace("--- PASS: TestA (0.00s)", "--- SKIP: TestA (0.00s)"), "pkg/tmpfs: TestA: skip"},
		"no test":           {replace("--- PASS: TestA (0.00s)", ""), "pkg/tmpfs: no test passed"},
		"an exit code": {
			replace(good[7], `@vm {"Ended":{"Name":"test/demo","Error":"exit status 1"}}`), "test/demo: exit status 1",
		},
		"a program is missing":    {slices.Delete(slices.Clone(good), 5, 8), "test/demo did not run"},
		"the machine ends early":  {good[:8], "before it had done all"},
		"a kernel with cgroup v1": {replace(good[0], `@vm {"Facts":{"Kernel":"6.1"}}`), "not as the machine is described"},
		"a kernel that lacks a call": {
			replace(good[0], `@vm {"Facts":{"Kernel":"6.1","CgroupV2":true,"Missing":"openat2"}}`), `lacks "openat2"`,
		},
		"a report that is cut off": {replace(good[0], `@vm {"Fa`), "the report"},
	} {
		r := &result{machine: machine{programs: programs("pkg/tmpfs", "test/demo")}, Ran: map[string]counts{}}
		for _, line := range test.lines {
			r.line(line)
		}
		err := r.check()
		switch {
		case test.want == "" && (err != nil || r.Ran["pkg/tmpfs"].Passed != 1):
			t.Errorf("%s: %v, %+v", name, err, r.Ran)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

func TestReportsAreLines(t *testing.T) {
	var b bytes.Buffer
	if err := guest.Write(&b, guest.Report{Seen: "a\nb"}); err != nil {
		t.Fatal(err)
	}
	r, ok, err := guest.Parse(strings.Trim(b.String(), "\n"))
	if !ok || err != nil || r.Seen != "a\nb" {
		t.Errorf("%+v, %t, %v", r, ok, err)
	}
}

// The machines would run a renamed test again, and the page would name a test that does not exist.
func TestEveryExclusionIsATest(t *testing.T) {
	for _, e := range exclusions() {
		files, err := filepath.Glob(filepath.Join("../..", e.dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := slices.ContainsFunc(files, func(file string) bool {
			b, err := os.ReadFile(file)
			return err == nil && bytes.Contains(b, []byte("\nfunc "+e.test+"("))
		})
		if !found {
			t.Errorf("%s has no %s", e.dir, e.test)
		}
	}
}
