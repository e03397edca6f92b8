// SPDX-License-Identifier: Apache-2.0

// Package confine drops the privileges that the driver does not use, so that an attacker who takes over the driver does
// not have them either.
//
// It affects all threads of the process, and it can't be undone.
package confine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Capabilities returns the capabilities of the driver: SYS_ADMIN for the mount API, CHOWN to set owners, and
// DAC_OVERRIDE and FOWNER to work with files of other users.
func Capabilities() []cap.Value {
	return []cap.Value{cap.CHOWN, cap.DAC_OVERRIDE, cap.FOWNER, cap.SYS_ADMIN}
}

// Process sets umask 077, prevents dumps of the process's memory (a core limit of 0, PR_SET_DUMPABLE 0), drops all
// capabilities except Capabilities, and sets no_new_privs. If filter is true, it also forbids all system calls except
// SystemCalls. Call it before the process opens a file.
//
// A missing capability is no error of Process: without CAP_SYS_ADMIN the first mount fails.
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

// dropCapabilities removes all capabilities except Capabilities from the permitted and effective sets, and empties the
// ambient and inheritable sets.
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
	// The bounding set limits the capabilities of an executed program. The filter forbids executing programs. The bounding
	// set is a protection without the filter.
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
