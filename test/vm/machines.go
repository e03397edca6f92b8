// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// machine is a virtual machine: a kernel of Debian, and the programs that it runs.
type machine struct {
	name        string
	suite, arch string
	kernel      string // the name of the package
	commandLine string
	policy      bool // whether SELinux gets a policy
	programs    []program
	// lacks is a feature that the driver requires and the kernel lacks.
	lacks string
}

func machines() []machine {
	some := programs("pkg/tmpfs", "pkg/confine", "pkg/record", "test/vm/cgroup", "test/demo")
	all := slices.Concat(some, programs("pkg/projector", "test/sanity", "pkg/volume", "cmd/fsuser-csi"))
	const selinux = "security=selinux enforcing=1"
	return []machine{
		{name: "debian-11", suite: "bullseye", arch: "amd64", kernel: "linux-image-cloud-amd64", programs: nil,
			lacks: "mount_setattr(2) (Linux 5.12)"},
		{name: "debian-12", suite: "bookworm", arch: "amd64", kernel: "linux-image-cloud-amd64", programs: all},
		{name: "debian-13", suite: "trixie", arch: "amd64", kernel: "linux-image-cloud-amd64", programs: some},
		{name: "debian-sid", suite: "sid", arch: "amd64", kernel: "linux-image-cloud-amd64", programs: some},
		{name: "selinux", suite: "trixie", arch: "amd64", kernel: "linux-image-cloud-amd64", commandLine: selinux,
			policy: true, programs: programs("test/vm/selinux", "pkg/tmpfs", "test/demo")},
		// This is the state with SELINUX=disabled in /etc/selinux/config.
		{name: "selinux-without-policy", suite: "trixie", arch: "amd64", kernel: "linux-image-cloud-amd64",
			commandLine: selinux, programs: programs("test/demo")},
		{name: "arm64", suite: "bookworm", arch: "arm64", kernel: "linux-image-cloud-arm64", programs: some},
		{name: "arm64-16k", suite: "trixie", arch: "arm64", kernel: "linux-image-arm64-16k", programs: some},
	}
}

// program is a package that runs in the machines: a test binary, or the demo.
type program struct {
	dir string
}

func programs(dirs ...string) (all []program) {
	for _, dir := range dirs {
		all = append(all, program{dir})
	}
	return all
}

func (p program) isTest() bool { return p.dir != "test/demo" }

// binary is the path of the program in the cache of an architecture.
func (p program) binary(cache string) string {
	return filepath.Join(cache, strings.ReplaceAll(p.dir, "/", "-"))
}

// exclusion is a test that does not run in the machines: in all machines, or in the named one.
type exclusion struct{ dir, test, machine, reason string }

func exclusions() []exclusion {
	const speed = "expects answers within seconds, which an emulated machine does not give"
	const labels = "counts inodes exactly, and a tmpfs without context= counts the labels of its files, too"
	return []exclusion{
		{"pkg/tmpfs", "TestGrowKeepsNoSwap", "debian-12", "Linux 6.1 has no noswap"},
		{"pkg/tmpfs", "TestGrowKeepsNoSwap", "arm64", "Linux 6.1 has no noswap"},
		{"pkg/tmpfs", "TestLimitsHold", "selinux", labels},
		{"pkg/tmpfs", "TestInspect", "selinux", labels},
		{"pkg/tmpfs", "TestUsage", "selinux", labels},
		{"cmd/fsuser-csi", "TestANewDriverStartsBesideADyingOne", "", "builds another driver, with a Go toolchain"},
		{"cmd/fsuser-csi", "TestAFloodOfTheHTTPAddress", "", speed},
		{"cmd/fsuser-csi", "TestACrashLeavesNoDump", "", speed},
	}
}

// excluded returns the exclusions of a program in a machine.
func (m machine) excluded(p program) (all []exclusion) {
	for _, e := range exclusions() {
		if e.dir == p.dir && (e.machine == "" || e.machine == m.name) {
			all = append(all, e)
		}
	}
	return all
}

// skipPattern is the value of -test.skip for a package.
func (m machine) skipPattern(p program) string {
	var names []string
	for _, e := range m.excluded(p) {
		names = append(names, e.test)
	}
	if len(names) == 0 {
		return ""
	}
	return "^(" + strings.Join(names, "|") + ")$"
}
