// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/confine"
)

// asDriver gives this process the capabilities that the driver keeps.
func asDriver() error {
	set := cap.NewSet()
	return errors.Join(set.SetFlag(cap.Permitted, true, confine.Capabilities()...),
		set.SetFlag(cap.Effective, true, confine.Capabilities()...), set.SetProc())
}

// pry is a process with the driver's capabilities. It tries to read the process in its argument, and prints the ways
// that succeed.
func pry(args []string) error {
	if err := asDriver(); err != nil {
		return err
	}
	// For both files the kernel checks the right to trace the process (ptrace(2)). It does not for environ and maps: since
	// Linux 6.16, CAP_SYS_ADMIN is enough to read them.
	proc := filepath.Join("/proc", args[0])
	if f, err := os.Open(filepath.Join(proc, "mem")); err == nil {
		f.Close()
		fmt.Println("mem")
	}
	if _, err := os.Readlink(filepath.Join(proc, "fd/0")); err == nil {
		fmt.Println("fd")
	}
	return nil
}

// idle is a process with the driver's capabilities that does nothing until the end of its input.
func idle([]string) error {
	if err := asDriver(); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// Root with the driver's capabilities may trace a process with the same capabilities and read its memory, unless that
// process is not dumpable.
func TestProcessesWithTheSamePowerCanNotLookInside(t *testing.T) {
	testkit.NothingLeft(t)
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+t.TempDir())
	look := func(pid int) string {
		t.Helper()
		out, err := testkit.Helper(t, false, "pry", fmt.Sprint(pid)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	if open := look(d.PID()); open != "" {
		t.Errorf("open to a process with the same power: %s", open)
	}

	// The same process can read another process that is dumpable.
	plain := testkit.Helper(t, false, "idle")
	stdin, err := plain.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := plain.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if open := look(plain.Process.Pid); open != "mem fd" {
		t.Errorf("of a process that is dumpable %q is open: this test shows nothing", open)
	}
	if err := errors.Join(stdin.Close(), plain.Wait()); err != nil {
		t.Error(err)
	}
}

// With Go's GOTRACEBACK=crash, a crashing program requests a dump from the kernel. The limits here permit the dump.
func TestACrashLeavesNoDump(t *testing.T) {
	testkit.NothingLeft(t)
	binary := testkit.BuildDriver(t)
	t.Setenv("GOTRACEBACK", "crash")
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE,
		&unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_CORE, &before)
	t.Chdir(t.TempDir()) // The kernel writes a dump here by default.
	dumped := func() (files []string) {
		t.Helper()
		entries, err := os.ReadDir(".")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			files = append(files, e.Name())
		}
		return files
	}

	for _, signal := range []unix.Signal{unix.SIGABRT, unix.SIGSEGV} {
		d := testkit.StartDriver(t, binary, "--manifests="+t.TempDir())
		status := d.Crash(signal)
		if !status.Signaled() || status.CoreDump() || len(dumped()) > 0 {
			t.Errorf("%v: the driver ended with %#x, dumped %t, files %q", signal, status, status.CoreDump(), dumped())
		}
	}

	control := exec.Command("sleep", "60")
	if err := control.Start(); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(control.Process.Signal(unix.SIGABRT), control.Wait())
	if control.ProcessState == nil {
		t.Fatal(err)
	}
	if !control.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
		t.Log("this kernel dumps no process (/proc/sys/kernel/core_pattern): that it did not dump the driver shows little")
	}
}
