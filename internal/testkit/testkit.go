// SPDX-License-Identifier: Apache-2.0

// Package testkit has helpers for the tests of several packages: a private mount namespace, checks for leaked mounts
// and file descriptors, and bounded waits that report what they waited for. Only _test.go files and test/ import it.
package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const inNamespace = "FSUSER_TEST_IN_NAMESPACE"

// RunInMountNamespace runs the tests of a package in a private mount namespace and exits. TestMain calls it. The
// tests can't leave a mount on the machine, and two runs can run at the same time. Without root it fails, because a
// skipped test would count as passed. m is the *testing.M, or a wrapper that sets up what all tests of the package
// share.
func RunInMountNamespace(m interface{ Run() int }) {
	RunHelper(nil)
	if os.Getenv(inNamespace) != "" {
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "FAIL: these tests mount and chown; run them as root: sudo make test")
		os.Exit(1)
	}
	// A namespace belongs to a thread and a Go program has many: a new process has it from its first instruction on.
	// PDEATHSIG is tied to the thread that forks.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "FAIL: start the tests in a mount namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// NothingLeft fails t if there are more mounts or file descriptors after the test and its cleanups than now. Call it
// first in a test.
func NothingLeft(t testing.TB) {
	t.Helper()
	mounts, fds := MountTable(t), descriptors(t)
	t.Cleanup(func() {
		if now := MountTable(t); now != mounts {
			t.Errorf("the mount table is not as before the test.\nbefore:\n%s\nafter:\n%s", mounts, now)
		}
		// A goroutine that is about to end may still have one open.
		if !within(5*time.Second, func() bool { return len(descriptors(t)) <= len(fds) }) {
			t.Errorf("more file descriptors than before the test.\nbefore: %q\nafter: %q", fds, descriptors(t))
		}
	})
}

// MountTable returns /proc/self/mountinfo.
func MountTable(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// MountsBelow returns the lines of the mount table whose mount point is path or below it.
func MountsBelow(t testing.TB, path string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(MountTable(t)) {
		point := strings.Fields(line)[4]
		if point == path || strings.HasPrefix(point, path+"/") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func descriptors(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var fds []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds = append(fds, e.Name()+" -> "+target)
		}
	}
	return fds
}

// Eventually checks ok every millisecond until it returns true. If ok stays false within the bound, Eventually fails
// t with a message that contains waitedFor.
func Eventually(t testing.TB, bound time.Duration, waitedFor string, ok func() bool) {
	t.Helper()
	if !within(bound, ok) {
		t.Fatalf("waited %v in vain for %s", bound, waitedFor)
	}
}

func within(bound time.Duration, ok func() bool) bool {
	deadline := time.Now().Add(bound)
	for !ok() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// SharedDir returns a new directory on a mount with shared propagation, like kubelet's root directory. It is
// unmounted and removed when t ends.
func SharedDir(t testing.TB) string {
	t.Helper()
	// Not t.TempDir: a unix socket below it needs a short path.
	dir, err := os.MkdirTemp("", "fsuser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s on itself: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatalf("make %s shared: %v", dir, err)
	}
	return dir
}
