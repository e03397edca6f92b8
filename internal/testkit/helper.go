// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

const helperName = "FSUSER_TEST_HELPER"

// RunHelper runs a helper process, for packages whose tests kill a second process or run one in another mount
// namespace. TestMain calls it first. In a process that Helper or StartStall started, it runs the named function and
// does not return. In any other process, it does nothing.
func RunHelper(helpers map[string]func(args []string) error) {
	name := os.Getenv(helperName)
	if name == "" {
		return
	}
	run := helpers[name]
	if name == stallHelper {
		run = stall
	}
	if run == nil {
		fmt.Fprintf(os.Stderr, "no helper %q\n", name)
		os.Exit(2)
	}
	err := os.Unsetenv(helperName)
	if err == nil {
		err = run(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Helper returns a command that runs the named helper in a process of its own. With newNamespace, the process has a
// copy of the mount namespace, in which shared mounts stay shared with this one. (SysProcAttr.Unshareflags would make
// all mounts private.) The process is killed when t ends.
func Helper(t testing.TB, newNamespace bool, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperName+"="+name, withoutExitSleep())
	cmd.SysProcAttr = &unix.SysProcAttr{}
	if newNamespace {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	return cmd
}

// withoutExitSleep returns a setting for the environment of a process. By default, the race detector sleeps for a
// second at exit.
func withoutExitSleep() string { return "GORACE=atexit_sleep_ms=0 " + os.Getenv("GORACE") }
