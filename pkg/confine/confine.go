// SPDX-License-Identifier: Apache-2.0

// Package confine takes from the process what the driver does not need, so that whoever takes over the driver has no more.
//
// It is for the whole process, with all its threads, and there is no way back.
package confine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Capabilities are what the driver works with: SYS_ADMIN for the mount API, CHOWN to give files away, and DAC_OVERRIDE and FOWNER to
// work with them once they belong to others.
func Capabilities() []cap.Value {
	return []cap.Value{cap.CHOWN, cap.DAC_OVERRIDE, cap.FOWNER, cap.SYS_ADMIN}
}

// Process leaves the process with files that only root can read (umask 077), no dumps of its memory (a core limit of 0, PR_SET_DUMPABLE
// 0), no capabilities but Capabilities, no_new_privs, and, if filter is true, no system calls but SystemCalls. Call it before anything is
// opened.
//
// What is already missing is no error: where CAP_SYS_ADMIN is not there, the first mount says so.
func Process(filter bool) error {
	unix.Umask(0o077)
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("set core limit to 0: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make process undumpable: %w", err)
	}
	if _, err := cap.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if !filter {
		return nil
	}
	if err := filterSystemCalls(); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}

// dropCapabilities leaves in each set only what is in it already and the driver needs; in the ambient and inheritable sets nothing.
func dropCapabilities() error {
	needed := map[cap.Value]bool{}
	for _, c := range Capabilities() {
		needed[c] = true
	}
	have := cap.GetProc()
	keep := cap.NewSet()
	for _, c := range Capabilities() {
		permitted, err := have.GetFlag(cap.Permitted, c)
		if err != nil {
			return err
		}
		if !permitted {
			continue
		}
		if err := errors.Join(keep.SetFlag(cap.Permitted, true, c), keep.SetFlag(cap.Effective, true, c)); err != nil {
			return err
		}
	}
	// The bounding set decides what a program would get that this one executed; it can't, but then nothing is left to get.
	canDrop, err := have.GetFlag(cap.Effective, cap.SETPCAP)
	if err != nil {
		return err
	}
	if canDrop {
		for c := range cap.MaxBits() {
			if needed[c] {
				continue
			}
			if err := cap.DropBound(c); err != nil {
				return fmt.Errorf("%v: %w", c, err)
			}
		}
	}
	return keep.SetProc()
}
