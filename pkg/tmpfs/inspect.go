// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

// State is the result of Inspect.
type State struct {
	// Exists means that there is a directory, or the root of a mount.
	Exists bool
	// Mounted means that there is a mount.
	Mounted bool
	// Tmpfs means that the file system is a tmpfs.
	Tmpfs bool
	// Identity is the identity of the file system.
	Identity Identity
	// UID is the owner of the directory.
	UID uint32
	// MountID identifies the mount in this mount namespace (statx(2), STATX_MNT_ID).
	MountID uint64
	// Usage is the usage of a mounted tmpfs.
	Usage Usage
}

// Usage is the usage of a tmpfs: bytes of file content in whole pages, and the number of files, directories and links.
type Usage struct {
	BytesTotal, BytesUsed, BytesFree    uint64
	InodesTotal, InodesUsed, InodesFree uint64
}

// Inspect returns the state of p. A file that is no directory is an error.
func (p *Target) Inspect() (State, error) {
	fd, err := p.open()
	if errors.Is(err, unix.ENOENT) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("inspect %s: %w", p.path, err)
	}
	defer unix.Close(fd)
	var stx unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_UID|unix.STATX_MNT_ID, &stx)
	// The server or the device of another file system is gone (FUSE, NFS, a disk). A tmpfs has neither. Linux 7.2 returns
	// ECONNREFUSED for a FUSE server that died before its first answer.
	if mount.IsCorruptedMnt(err) || errors.Is(err, unix.ECONNREFUSED) {
		return State{Exists: true, Mounted: true}, nil
	}
	if err != nil {
		return State{}, &Error{Op: "inspect", Call: "statx", Target: p.path, Err: err}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return State{}, &Error{Op: "inspect", Call: "fstatfs", Target: p.path, Err: err}
	}
	state := State{
		Exists: true,
		// STATX_ATTR_MOUNT_ROOT (Linux 5.8) also detects bind mounts. A comparison of st_dev does not.
		Mounted:  stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Tmpfs:    int64(st.Type) == unix.TMPFS_MAGIC,
		Identity: Identity{Device: unix.Mkdev(stx.Dev_major, stx.Dev_minor), FSID: fsid(&st)},
		UID:      stx.Uid,
		MountID:  stx.Mnt_id,
	}
	if state.Mounted && state.Tmpfs {
		size := uint64(st.Bsize)
		state.Usage = Usage{
			BytesTotal: st.Blocks * size, BytesUsed: (st.Blocks - st.Bfree) * size, BytesFree: st.Bavail * size,
			InodesTotal: st.Files, InodesUsed: st.Files - st.Ffree, InodesFree: st.Ffree,
		}
	}
	return state, nil
}

func identify(fd int) (Identity, error) {
	fail := func(call string, err error) (Identity, error) {
		return Identity{}, &Error{Op: "inspect", Call: call, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail("fstat", err)
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return fail("fstatfs", err)
	}
	return Identity{Device: st.Dev, FSID: fsid(&sfs)}, nil
}

func fsid(st *unix.Statfs_t) uint64 {
	return uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32
}

// Ours reports whether Create made the file system of the mount, in this process or an earlier one.
func (s State) Ours() (bool, error) {
	if !s.Mounted || !s.Tmpfs {
		return false, nil
	}
	m, err := mountWithID(s.MountID)
	return m.source == Source, err
}

// IsShared reports whether mounts below path reach the other mount namespaces of the machine: whether the mount at path
// has shared propagation (mount_namespaces(7)).
func IsShared(path string) (bool, error) {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &stx); err != nil {
		return false, &Error{Op: "inspect", Call: "statx", Target: path, Err: err}
	}
	m, err := mountWithID(stx.Mnt_id)
	return m.shared, err
}

// mountInfo is a line of the mount table.
type mountInfo struct {
	source string
	shared bool
}

// mountWithID finds a mount by its id. A path is not enough: other mounts can hide a mount, and the order of the table
// is not the order of the stack. The result is zero if the mount does not exist any more.
//
// mountWithID does not parse the lines of other mounts. mount.ParseMountInfo of k8s.io/mount-utils fails if any line of
// the table has an empty source, and any program on the node can mount a file system with an empty source.
func mountWithID(id uint64) (mountInfo, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, fmt.Errorf("read mount table: %w", err)
	}
	want := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, want) {
			return parseMountInfo(line)
		}
	}
	return mountInfo{}, nil
}

// parseMountInfo parses a line of proc_pid_mountinfo(5): six fields, optional fields, a dash, the type, the source and
// the options of the file system. A field may be empty. The kernel escapes a space in a field.
func parseMountInfo(line string) (mountInfo, error) {
	const optional = 6
	fields := strings.Split(line, " ")
	dash := slices.Index(fields, "-")
	if dash < optional || len(fields) < dash+3 {
		return mountInfo{}, fmt.Errorf("the mount table has an unreadable line: %q", line)
	}
	shared := slices.ContainsFunc(fields[optional:dash], func(f string) bool { return strings.HasPrefix(f, "shared:") })
	return mountInfo{source: fields[dash+2], shared: shared}, nil
}
