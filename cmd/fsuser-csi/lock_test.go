// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// patience is the longest wait for an event that takes a few milliseconds.
const patience = time.Minute

// lockAndStick locks the directory args[0] and prints a line. At the end of standard input, it creates a directory in
// args[1].
func lockAndStick(args []string) error {
	if _, err := lockDir(args[0]); err != nil {
		return err
	}
	fmt.Println("locked")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return unix.Mkdir(filepath.Join(args[1], "new"), 0o700)
}

// hasThread reports whether a process has a thread in a state of the kernel (T is stopped, D can't be killed), and in
// one of these system calls if there are any.
func hasThread(t *testing.T, pid int, state string, calls ...int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(threads, func(thread string) bool {
		// An error is ignored, because the thread may have ended. It has no state then.
		stat, _ := os.ReadFile(filepath.Join(thread, "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		syscall, _ := os.ReadFile(filepath.Join(thread, "syscall"))
		number, _, _ := strings.Cut(string(syscall), " ")
		inCall := func(call int) bool { return number == strconv.Itoa(call) }
		return strings.HasPrefix(rest, state) && (len(calls) == 0 || slices.ContainsFunc(calls, inCall))
	})
}

func TestTheLockEndsWithSIGKILLAlthoughAThreadDoesNot(t *testing.T) {
	testkit.NothingLeft(t)
	state, stalled := t.TempDir(), t.TempDir()
	holder := testkit.Helper(t, false, "lockAndStick", state, stalled)
	holder.Stderr = os.Stderr
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	release := testkit.Stall(t, stalled)
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	pid := holder.Process.Pid
	t.Cleanup(func() {
		release()
		holder.Process.Kill()
		holder.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the helper says %q, %v", line, err)
	}
	isLocked := func(when string) {
		t.Helper()
		unlock, err := lockDir(state)
		if err == nil {
			unlock()
			t.Errorf("two processes have the lock when the first one %s", when)
		} else if !errors.Is(err, unix.EWOULDBLOCK) || !strings.Contains(err.Error(), state) {
			t.Error(err)
		}
	}
	if err := holder.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the first process to be stopped", func() bool { return hasThread(t, pid, "T") })
	isLocked("is stopped")
	if err := errors.Join(holder.Process.Signal(unix.SIGCONT), stdin.Close()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the mkdir in state D", func() bool {
		return hasThread(t, pid, "D", unix.SYS_MKDIRAT)
	})
	isLocked("runs")

	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var unlock func()
	testkit.Eventually(t, patience, "the lock of a killed process", func() bool {
		unlock, err = lockDir(state)
		return err == nil
	})
	defer unlock()
	if !hasThread(t, pid, "D", unix.SYS_MKDIRAT) {
		t.Error("the thread was not stuck to the end, so that this test shows nothing")
	}
}

func TestTheLockCanBeReleasedAndTakenAgain(t *testing.T) {
	testkit.NothingLeft(t)
	dir := t.TempDir()
	for range 100 {
		unlock, err := lockDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lockDir(dir); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatalf("a second lock: %v", err)
		}
		unlock()
	}
}

// pauseAt makes the next driver that reaches a failpoint stop there. reached waits for that, and goOn ends the pause.
func pauseAt(t *testing.T, armed, point string) (reached func() (goOn func())) {
	t.Helper()
	path := filepath.Join(armed, point)
	if err := os.WriteFile(path, []byte("pause"), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() func() {
		t.Helper()
		testkit.Eventually(t, patience, "the driver at "+point, func() bool {
			_, err := os.Lstat(path + ".paused")
			return err == nil
		})
		return func() {
			t.Helper()
			if err := os.Remove(path + ".paused"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// When the driver is killed, the rename that shows version 2 of the volume "stuck" waits for the directory's lock. The
// next driver must show version 3.
func TestANewDriverStartsBesideADyingOne(t *testing.T) {
	testkit.NothingLeft(t)
	armed, manifests := t.TempDir(), t.TempDir()
	t.Setenv("FSUSER_FAILPOINTS", armed)
	set := func(secret, version string) {
		t.Helper()
		text := "apiVersion: v1\nkind: Secret\n" +
			"metadata: {name: " + secret + ", namespace: team}\nstringData: {k: " + version + "}\n"
		tmp := filepath.Join(t.TempDir(), secret)
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(manifests, secret+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	set("stuck", "version-1")
	set("other", "version-1")
	binary := testkit.BuildDriverWithoutRace(t, "failpoints")
	first := testkit.StartDriver(t, binary, "--manifests="+manifests)
	publish := func(secret string) (file string) {
		t.Helper()
		p := kubelet.Pod{Namespace: "team", Name: secret, UID: secret + "-0001"}
		target, err := first.Publish(t.Context(), p, kubelet.Volume{
			Name: "v", Attributes: map[string]string{"secretName": secret, "uid": "1000"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(target, "k")
	}
	stuck, other := publish("stuck"), publish("other")
	holds := func(file, want string) {
		t.Helper()
		testkit.Eventually(t, patience, fmt.Sprintf("%q in %s", want, file), func() bool {
			b, err := os.ReadFile(file)
			return err == nil && string(b) == want
		})
	}

	beforeRename := pauseAt(t, armed, "projector-data-tmp-made")
	set("stuck", "version-2")
	goOn := beforeRename()
	dying := first.PID()
	first.Stalled = true
	t.Cleanup(first.AwaitKilled)
	release := testkit.Stall(t, filepath.Dir(stuck))
	goOn()
	testkit.Eventually(t, patience, "the rename in state D", func() bool {
		return hasThread(t, dying, "D", unix.SYS_RENAMEAT)
	})
	if err := unix.Kill(dying, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	first.Bury()

	set("stuck", "version-3")
	second := testkit.StartDriverAt(t, first.Root, binary, "--manifests="+manifests, "--state-dir="+first.State)
	set("other", "version-2")
	holds(other, "version-2")
	testkit.Eventually(t, patience, "the new driver's refresh in state D", func() bool {
		return hasThread(t, second.PID(), "D", unix.SYS_GETDENTS64, unix.SYS_UNLINKAT)
	})
	if !hasThread(t, dying, "D", unix.SYS_RENAMEAT) {
		t.Error("the killed driver has ended too early, so that this test shows nothing")
	}
	// The late rename happens before the new driver writes. The new driver has already found version 1 in the volume.
	beforeNextRename := pauseAt(t, armed, "projector-generation-written")
	release()
	goOn = beforeNextRename()
	if b, err := os.ReadFile(stuck); err != nil || string(b) != "version-1" && string(b) != "version-2" {
		t.Errorf("before version 3, the volume shows %q, %v", b, err)
	}
	goOn()
	holds(stuck, "version-3")
	reliability.Shown(t, "F-45", "a rename is stuck; the next driver refreshes others, and then this volume")
}
