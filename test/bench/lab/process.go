// SPDX-License-Identifier: Apache-2.0

// Package lab has the common code of both benchmarks: processes of their own program, namespaces, and concurrent calls.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"
)

// roleVariable is the environment variable with the role of a process.
const roleVariable = "FSUSER_BENCH_ROLE"

// Role returns the role of this process for the process that has started it with Self. It is empty in the process that
// the user starts.
func Role() string { return os.Getenv(roleVariable) }

// Self returns a command that runs this program in a role. The process dies with this one.
func Self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// RunInNamespaces runs this program again in a role, with the same arguments, in new namespaces (CLONE_NEWNS and so
// on). No mount stays on the machine, whatever happens to the other process. start starts the command. The result is
// the exit code of the other process, which has printed its error.
func RunInNamespaces(role string, namespaces uintptr, start func(*exec.Cmd) error) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("it mounts and changes owners; run it as root")
	}
	// An interrupt is for the other process, which has to clean up.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, unix.SIGINT, unix.SIGTERM)
	cmd := Self(role, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// With a process group of its own, the other process gets an interrupt of the terminal once, from here.
	cmd.SysProcAttr.Unshareflags, cmd.SysProcAttr.Setpgid = namespaces, true
	// PDEATHSIG is tied to the thread that forks.
	runtime.LockOSThread()
	if err := start(cmd); err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w", err)
	}
	go func() {
		for s := range interrupts {
			_ = cmd.Process.Signal(s) // fails only if the process has ended
		}
	}()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}
