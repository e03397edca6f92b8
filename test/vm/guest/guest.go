// SPDX-License-Identifier: Apache-2.0

// Package guest defines the communication between make vm and its virtual machines: the plan that a machine gets in its
// initramfs, and the reports that the machine writes to its console, between the output of the programs.
package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Paths in the machine.
const (
	PlanFile   = "/plan.json"
	PolicyFile = "/policy" // for SELinux; exists only if the plan has it
	Driver     = "/bin/fsuser-csi"
)

// Plan is the work of a machine before it powers itself off.
type Plan struct {
	// Modules are kernel modules in the order in which they are loaded, by path.
	Modules []string
	// SELinux means that the machine loads the policy in PolicyFile.
	SELinux  bool
	Programs []Program
}

// Program is a program that the machine runs.
type Program struct {
	Name    string
	Dir     string
	Args    []string // including the program's path
	Timeout time.Duration
}

// Report is a line that the machine writes. It has exactly one of these fields.
type Report struct {
	// Facts is the first report.
	Facts *Facts `json:",omitempty"`
	// Started and Ended are the reports before and after the output of a program.
	Started string `json:",omitempty"`
	Ended   *Ended `json:",omitempty"`
	// Seen is an observation of a test, for the page.
	Seen string `json:",omitempty"`
	// Failed is the reason why the machine could not complete its plan.
	Failed string `json:",omitempty"`
	// Done is the last report.
	Done bool `json:",omitempty"`
}

// Facts are the features of the kernel of the machine.
type Facts struct {
	Kernel   string // uname -r
	Machine  string // uname -m
	PageSize int
	// Missing is the feature that the driver requires and the kernel lacks; empty if there is none.
	Missing string
	NoSwap  bool
	// SELinux and Enforcing are the mode of SELinux: without a policy, SELinux is off.
	SELinux, Enforcing bool
	// CgroupV2 means that /sys/fs/cgroup is the unified hierarchy, with the memory controller.
	CgroupV2 bool
}

// Ended is the end of a program.
type Ended struct {
	Name string
	// Error is empty if the exit code is 0.
	Error string
	Took  time.Duration
}

// mark is the beginning of the lines of reports.
const mark = "@vm "

// Write writes a report as a line of its own.
func Write(w io.Writer, r Report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "\n%s%s\n", mark, b)
	return err
}

// Parse returns the report in a line; ok is false if the line has none.
func Parse(line string) (r Report, ok bool, err error) {
	text, ok := strings.CutPrefix(line, mark)
	if !ok {
		return Report{}, false, nil
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return Report{}, true, fmt.Errorf("the report %q: %w", line, err)
	}
	return r, true, nil
}
