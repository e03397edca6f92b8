// SPDX-License-Identifier: Apache-2.0

// Package tmpfs creates, fills, attaches, clones and removes the mount of a volume, with system calls only.
//
// The life of a mount:
//
//	Create   a tmpfs that is mounted nowhere: only its descriptor holds it, and a killed process leaks nothing
//	Dir      write files through the descriptor
//	Seal     make the mount read-only, nosuid, nodev, noexec
//	Attach   attach it to a Target, where it appears complete and sealed, or not at all
//	Clone    a private, writable mount of the file system at a Target, for writing the next version
//	Unmount  remove every mount at a Target
//
// A refresh is possible because the mount is sealed, and not the file system: the attached mount always stays
// read-only, while a clone of it that no other process can see is writable for a moment. A mount must be sealed before
// it is attached, because remounting an attached mount would not propagate its flags to the host (mount_namespaces(7)).
//
// The package requires Linux 5.12 (mount_setattr(2)) and CAP_SYS_ADMIN. Probe returns an error that names the missing
// feature. The package does not know what is written to a mount. A Target or DetachedMount is not safe for concurrent
// use.
package tmpfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Source is the source of each mount that Create makes, as the mount table shows it. The driver recognizes its mounts
// by it when their records are lost, so it never changes. It has no information about pod or object.
const Source = "fsuser.csi.io"

// Options describe a new file system.
type Options struct {
	// Limits are the limits of the content.
	Limits
	// NoSwap keeps the pages of the content out of swap. It requires Features.NoSwap.
	NoSwap bool
	// SELinuxContext labels every file, as the mount option context= (mount(8)). If it is empty, the policy's default
	// applies.
	SELinuxContext string
}

// Limits bound the content of a file system.
type Limits struct {
	// Bytes is the limit of file content in whole pages: size= of tmpfs(5). It must not be 0, which means no limit.
	Bytes uint64
	// Inodes is the limit of files, directories and links: nr_inodes= of tmpfs(5). It must not be 0, which means no limit.
	Inodes uint64
}

// Identity identifies a file system while it exists, independent of the mount, mount namespace or path.
type Identity struct {
	// Device is st_dev.
	Device uint64 `json:"device"`
	// FSID is f_fsid of statfs(2): random for each tmpfs since Linux 5.16, and 0 before. It distinguishes a file system
	// from an earlier one with the same device number.
	FSID uint64 `json:"fsid"`
}

// Error is a failed step on a mount, with the call, its target and its options.
type Error struct {
	// Op is the step: "create", "seal", "attach", "clone", "grow", "inspect", "unmount", ...
	Op string
	// Call is the system call that failed.
	Call string
	// Target is the path of the step; empty for a mount without a path.
	Target string
	// Options are the mount options or flags of the call, if it has any.
	Options string
	// Err is the error number.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Op + " tmpfs"
	if e.Target != "" {
		s += " at " + e.Target
	}
	s += ": " + e.Call
	if e.Options != "" {
		s += "(" + e.Options + ")"
	}
	return fmt.Sprintf("%s: %v", s, e.Err)
}

// Unwrap returns the error number, for errors.Is.
func (e *Error) Unwrap() error { return e.Err }

// retry repeats a system call that a signal interrupted (EINTR), or that lost a race with a rename and may be repeated
// (EAGAIN of openat2(2)).
func retry(call func() error) error {
	for range 100 {
		if err := call(); err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
	return unix.EAGAIN
}
