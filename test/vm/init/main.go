// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command init is the first process of the virtual machines of make vm. It mounts the file systems of a node, runs the
// programs of the plan one after another, and powers the machine off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/test/loopback"
	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

func main() {
	// Process 1 collects the exit statuses of orphans. Another process runs the programs, because os/exec must not lose
	// the exit statuses of its own.
	if os.Getpid() == 1 {
		reap()
		unix.Sync()
		panic(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)) // it returns only with an error
	}
	if err := run(); err != nil {
		_ = guest.Write(os.Stdout, guest.Report{Failed: err.Error()})
	}
	printKernelLog()
}

// reap starts this program once more and collects the exit status of every process until the new one has ended.
func reap() {
	child, err := os.StartProcess("/init", os.Args, &os.ProcAttr{Env: []string{"PATH=/bin", "HOME=/tmp"},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		_ = guest.Write(os.Stdout, guest.Report{Failed: err.Error()})
		return
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == child.Pid || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func run() error {
	if err := mountAll(); err != nil {
		return err
	}
	plan, err := readPlan()
	if err != nil {
		return err
	}
	for _, module := range plan.Modules {
		if err := loadModule(module); err != nil {
			return fmt.Errorf("load %s: %w", module, err)
		}
	}
	if err := loopback.Up(); err != nil {
		return err
	}
	if plan.SELinux {
		if err := loadPolicy(); err != nil {
			return fmt.Errorf("load the SELinux policy: %w", err)
		}
	}
	facts, err := facts()
	if err != nil {
		return err
	}
	if err := guest.Write(os.Stdout, guest.Report{Facts: &facts}); err != nil {
		return err
	}
	for _, p := range plan.Programs {
		if err := runProgram(p); err != nil {
			return err
		}
	}
	return guest.Write(os.Stdout, guest.Report{Done: true})
}

func mountAll() error {
	for _, m := range []struct{ fsType, target, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fsType, m.target, m.fsType, 0, m.data); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.fsType, m.target, err)
		}
	}
	return os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0)
}

func readPlan() (plan guest.Plan, err error) {
	b, err := os.ReadFile(guest.PlanFile)
	if err == nil {
		err = json.Unmarshal(b, &plan)
	}
	return plan, err
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// loadPolicy loads the policy as systemd does at its start. The kernel command line has enforcing=1.
func loadPolicy() error {
	policy, err := os.ReadFile(guest.PolicyFile)
	if err != nil {
		return err
	}
	if err := unix.Mount("selinuxfs", "/sys/fs/selinux", "selinuxfs", 0, ""); err != nil {
		return err
	}
	return os.WriteFile("/sys/fs/selinux/load", policy, 0)
}

func facts() (guest.Facts, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return guest.Facts{}, err
	}
	f := guest.Facts{
		Kernel: unix.ByteSliceToString(name.Release[:]), Machine: unix.ByteSliceToString(name.Machine[:]),
		PageSize: os.Getpagesize(),
	}
	features, err := tmpfs.Probe()
	if err != nil {
		f.Missing = err.Error()
	}
	f.NoSwap, f.SELinux = features.NoSwap, features.SELinux
	if enforce, err := os.ReadFile("/sys/fs/selinux/enforce"); err == nil {
		f.Enforcing = string(enforce) == "1"
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	f.CgroupV2 = err == nil && strings.TrimSpace(string(controllers)) == "memory"
	return f, nil
}

func runProgram(p guest.Program) error {
	if err := guest.Write(os.Stdout, guest.Report{Started: p.Name}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	start := time.Now()
	cmd := exec.CommandContext(ctx, p.Args[0], p.Args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.Dir, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "FSUSER_TEST_DRIVER="+guest.Driver)
	ended := guest.Ended{Name: p.Name}
	if err := cmd.Run(); err != nil {
		ended.Error = err.Error()
	}
	if ctx.Err() != nil {
		ended.Error = fmt.Sprintf("it took longer than %v", p.Timeout)
	}
	ended.Took = time.Since(start)
	return guest.Write(os.Stdout, guest.Report{Ended: &ended})
}

// printKernelLog prints the kernel's log to the console, which otherwise shows only urgent messages.
func printKernelLog() {
	b := make([]byte, 256<<10)
	if n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b); err == nil {
		fmt.Printf("\nThe log of the kernel:\n%s\n", b[:n])
	}
}
