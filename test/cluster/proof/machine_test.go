// SPDX-License-Identifier: Apache-2.0

//go:build cluster && linux

package proof

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
)

// machine returns the state of the machine that a cluster could change, by name: files in the usual folders of its
// programs, interfaces, and sysctls.
func machine(t *testing.T) map[string]string {
	t.Helper()
	state := make(map[string]string)
	for _, pattern := range []string{
		"/etc/*", "/opt/*", "/run/*", "/var/*", "/var/lib/*", "/var/log/*", "/usr/libexec/*", "/root/.kube",
		"/root/.cache/helm", "/root/.config/helm", "/sys/class/net/*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			state[path] = "there"
		}
	}
	for _, path := range []string{
		"/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
		"/proc/sys/net/ipv4/ip_forward",
	} {
		value, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		state[path] = string(value)
	}
	return state
}

// leftOf describes what is left of a cluster. It returns "" if nothing is left.
func leftOf(t *testing.T, runDir string, before map[string]string) string {
	t.Helper()
	var left []string
	for name, value := range machine(t) {
		if before[name] != value {
			left = append(left, fmt.Sprintf("%s is %q, was %q", name, value, before[name]))
		}
	}
	left = append(left, processes(t, runDir)...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, runDir) {
			left = append(left, "mount "+line)
		}
	}
	for _, pattern := range []string{
		filepath.Join("/sys/fs/cgroup", supervisor.Paths(runDir).Cgroup()),
		filepath.Join("/sys/fs/cgroup/*", supervisor.Paths(runDir).Cgroup()),
		filepath.Join(runDir, "*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if base := filepath.Base(path); base != "logs" && base != "lock" {
				left = append(left, path)
			}
		}
	}
	return strings.Join(left, "\n")
}

// processes returns the processes of the cluster: those in its cgroup, and those with its folder in their arguments.
func processes(t *testing.T, runDir string) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, dir := range dirs {
		arguments, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // The process may have ended.
		cgroups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if strings.Contains(string(arguments), runDir) ||
			strings.Contains(string(cgroups), supervisor.Paths(runDir).Cgroup()) {
			found = append(found, fmt.Sprintf("process %s: %s", filepath.Base(dir),
				strings.ReplaceAll(string(arguments), "\x00", " ")))
		}
	}
	return found
}

// waitNothingLeft waits until nothing is left of a cluster.
func waitNothingLeft(t *testing.T, runDir string, before map[string]string) {
	t.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(eachTimeout); ; <-ticker.C {
		left := leftOf(t, runDir, before)
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s later there is left:\n%s", eachTimeout, left)
		}
	}
}
