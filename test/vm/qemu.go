// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

// hardware is the hardware that QEMU emulates for an architecture of Debian.
type hardware struct {
	program, debian string // QEMU, and its package
	args            []string
	console         string
}

func hardwareOf(arch string) hardware {
	if arch == "arm64" {
		return hardware{"qemu-system-aarch64", "qemu-system-arm", []string{"-machine", "virt", "-cpu", "cortex-a76"},
			"ttyAMA0"}
	}
	return hardware{"qemu-system-x86_64", "qemu-system-x86", nil, "ttyS0"}
}

// kvmTimeout bounds the start of a machine that only powers itself off. With KVM, that takes two seconds.
const kvmTimeout = 30 * time.Second

// boot runs a machine until it powers itself off, passes the lines of its console to line, and writes them to a log.
func boot(ctx context.Context, b built, accelerator []string, log string, line func(string)) (err error) {
	h := hardwareOf(b.arch)
	args := append(h.args[:len(h.args):len(h.args)], accelerator...)
	args = append(args, "-smp", "2", "-m", "3G", "-display", "none", "-monitor", "none", "-serial", "stdio",
		"-nic", "none", "-no-reboot", "-kernel", b.kernel, "-initrd", b.initramfs,
		"-append", fmt.Sprintf("console=%s loglevel=1 panic=-1 %s", h.console, b.commandLine))
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	cmd := exec.CommandContext(ctx, h.program, args...)
	cmd.Stderr = out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(io.TeeReader(console, out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line(strings.TrimSuffix(lines.Text(), "\r"))
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// accelerator returns the options of QEMU for a machine of an architecture: KVM if a test machine starts with it, and
// otherwise emulation. Without a working /dev/kvm, QEMU emulates the machine.
func (r *runner) accelerator(ctx context.Context, b built) ([]string, error) {
	emulation := []string{"-accel", "tcg,thread=multi"}
	if b.arch != runtime.GOARCH {
		return emulation, nil
	}
	if r.works != nil {
		return r.works, nil
	}
	emulation = append(emulation, "-cpu", "max")
	r.works = emulation
	if unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
		return r.works, nil
	}
	idle := b
	idle.initramfs = filepath.Join(r.cache, "idle.cpio")
	if err := r.pack(idle.initramfs, b, guest.Plan{}); err != nil {
		return nil, err
	}
	try, cancel := context.WithTimeout(ctx, kvmTimeout)
	defer cancel()
	kvm := []string{"-accel", "kvm", "-cpu", "host"}
	var done bool
	err := boot(try, idle, kvm, filepath.Join(r.cache, "kvm.log"), func(line string) {
		report, _, _ := guest.Parse(line)
		done = done || report.Done
	})
	if err == nil && done {
		r.works = kvm
	}
	return r.works, ctx.Err()
}
