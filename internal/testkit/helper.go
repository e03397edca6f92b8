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

// RunHelper is what TestMain calls first in a package whose tests need a second process: one to kill, or one in another mount
// namespace. In a process that Helper started it runs the named function and does not return; in any other it does nothing.
func RunHelper(helpers map[string]func(args []string) error) {
	name := os.Getenv(helperName)
	if name == "" {
		return
	}
	run := helpers[name]
	if run == nil {
		fmt.Fprintf(os.Stderr, "no helper %q\n", name)
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Helper returns a command that runs the helper called name in a process of its own. With newNamespace it gets a copy of the
// mount namespace, in which what is shared here is shared with here: not what SysProcAttr.Unshareflags gives, which makes all of
// it private. It is killed when t ends.
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

// withoutExitSleep is for the environment of a process: a race detector sleeps for a second at exit unless told otherwise.
func withoutExitSleep() string { return "GORACE=atexit_sleep_ms=0 " + os.Getenv("GORACE") }
