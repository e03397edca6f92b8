// SPDX-License-Identifier: Apache-2.0

// Package tmpfs makes, fills, attaches, re-opens and removes the mount of a volume, by system calls alone.
//
// The life of a mount:
//
//	Create   a tmpfs that is mounted nowhere: only its descriptor holds it, and a killed process leaks nothing
//	Dir      write files through the descriptor
//	Seal     make the mount read-only, nosuid, nodev, noexec
//	Attach   attach it to a Target, where it appears whole and sealed, or not at all
//	Clone    a private, writable mount of the file system at a Target, for writing the next version
//	Unmount  remove every mount at a Target
//
// Sealing a mount and not the file system makes refresh possible: the attached mount always stays read-only, while a
// clone of it that nobody else can see is writable for a moment. Sealing before attaching is necessary: remounting an
// attached mount would not propagate its flags to the host (mount_namespaces(7)).
//
// The package needs Linux 5.12 (mount_setattr(2)) and CAP_SYS_ADMIN; Probe says what is missing. It knows nothing of
// what is written to a mount. A Target or DetachedMount is not safe for concurrent use.
package tmpfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Source is the source of every mount that Create makes, as the mount table shows it. The driver recognizes its mounts
// by it when their records are lost, so it never changes. It says nothing about pod or object.
const Source = "fsuser.csi.io"

// Options describe a new file system.
type Options struct {
	// Limits on its content.
	Limits
	// NoSwap keeps its pages out of swap. Only where Features.NoSwap says that the kernel knows it.
	NoSwap bool
	// SELinuxContext labels every file, as the mount option context= (mount(8)). Empty: the policy's default.
	SELinuxContext string
}

// Limits bound what a file system may hold.
type Limits struct {
	// Bytes of file content, in whole pages: size= of tmpfs(5). Not 0, which would mean without limit.
	Bytes uint64
	// Inodes are files, directories and links: nr_inodes= of tmpfs(5). Not 0, for the same reason.
	Inodes uint64
}

// Identity names a file system as long as it exists, through whatever mount, mount namespace or path it is seen.
type Identity struct {
	// Device is st_dev.
	Device uint64 `json:"device"`
	// FSID is f_fsid of statfs(2): random for each tmpfs since Linux 5.16 and 0 before. It tells a file system from
	// an earlier one whose device number it got.
	FSID uint64 `json:"fsid"`
}

// Error is a failed step on a mount: what was tried, where, with which options.
type Error struct {
	// Op is the step: "create", "seal", "attach", "clone", "grow", "inspect", "unmount", ...
	Op string
	// Call is the system call that failed.
	Call string
	// Target is the path the step was for; empty for a mount that has none.
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

// Unwrap gives the error number, for errors.Is.
func (e *Error) Unwrap() error { return e.Err }

// retry repeats a system call that a signal interrupted (EINTR), or that lost a race with a rename elsewhere and may
// be repeated (EAGAIN of openat2(2)).
func retry(call func() error) error {
	for range 100 {
		if err := call(); err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
	return unix.EAGAIN
}
