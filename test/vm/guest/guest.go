// SPDX-License-Identifier: Apache-2.0

// Package guest is the language between make vm and its virtual machines: the plan that a machine gets in its
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
	PolicyFile = "/policy" // SELinux; only if the plan has it
	Driver     = "/bin/fsuser-csi"
)

// Plan says what a machine does before it powers itself off.
type Plan struct {
	// Modules are kernel modules in the order in which they are loaded, by path.
	Modules []string
	// SELinux loads the policy in PolicyFile.
	SELinux  bool
	Programs []Program
}

// Program is a program that the machine runs.
type Program struct {
	Name    string
	Dir     string
	Args    []string // with the program's path
	Timeout time.Duration
}

// Report is a line that the machine writes. It has one of these parts.
type Report struct {
	// Facts are written first.
	Facts *Facts `json:",omitempty"`
	// Started and Ended surround the output of a program.
	Started string `json:",omitempty"`
	Ended   *Ended `json:",omitempty"`
	// Seen is something that a test saw, for the page.
	Seen string `json:",omitempty"`
	// Failed says why the machine could not do its plan.
	Failed string `json:",omitempty"`
	// Done is the last report.
	Done bool `json:",omitempty"`
}

// Facts are what the kernel of the machine has.
type Facts struct {
	Kernel   string // uname -r
	Machine  string // uname -m
	PageSize int
	// Missing says what the driver needs and the kernel lacks; empty if the kernel lacks nothing.
	Missing string
	NoSwap  bool
	// SELinux and Enforcing are the mode of SELinux: without a policy, SELinux is off.
	SELinux, Enforcing bool
	// CgroupV2: /sys/fs/cgroup is the unified hierarchy, with the memory controller.
	CgroupV2 bool
}

// Ended is the end of a program.
type Ended struct {
	Name string
	// Error is empty if the exit code is 0.
	Error string
	Took  time.Duration
}

// mark begins the lines of reports.
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
