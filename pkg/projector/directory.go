// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// directory is an open directory. Its methods take a name in the directory, which is a single component, and follow no
// link that a container may have made in a volume. It is a bare descriptor, because an os.File would make two more
// system calls, for Go's network poller.
type directory int

// openDir opens the directory called name below the directory descriptor at.
func openDir(at int, name string) (directory, error) {
	fd, err := openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	return directory(fd), err
}

func (d directory) fd() int { return int(d) }

func (d directory) close() { unix.Close(d.fd()) }

// names lists the directory in no particular order. It can be called once after the directory was opened.
func (d directory) names() (names []string, err error) {
	entries := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(d.fd(), entries)
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(entries[:n], -1, names)
	}
}

func (d directory) lstat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func (d directory) readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd(), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// symlink makes a link with an owner. The name must not exist.
func (d directory) symlink(target, name string, uid, gid uint32) error {
	if err := unix.Symlinkat(target, d.fd(), name); err != nil {
		return fmt.Errorf("symlink %q: %w", name, err)
	}
	if err := unix.Fchownat(d.fd(), name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown link %q to %d:%d: %w", name, uid, gid, err)
	}
	return nil
}

func (d directory) rename(from, to string) error {
	if err := unix.Renameat(d.fd(), from, d.fd(), to); err != nil {
		return fmt.Errorf("rename %q to %q: %w", from, to, err)
	}
	return nil
}

// own sets the owner and mode of the directory itself. changed reports whether they were different.
func (d directory) own(uid, gid, mode uint32) (changed bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err == nil && owned(&st, uid, gid, mode) {
		return false, nil
	}
	return true, own(d.fd(), uid, gid, mode)
}

// own sets owner and group, then the mode, and checks the result. The order matters: chown clears bits of the mode, and
// a mode that is set first would apply to the old owner for a moment. The check matters because chown(2) ignores the id
// 2^32-1 without an error.
func own(fd int, uid, gid, mode uint32) error {
	if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
		return fmt.Errorf("chown to %d:%d: %w", uid, gid, err)
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("chmod to %#o: %w", mode, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if !owned(&st, uid, gid, mode) {
		return fmt.Errorf("chown and chmod to %d:%d %#o had no effect: it is %d:%d %#o",
			uid, gid, mode, st.Uid, st.Gid, st.Mode&0o7777)
	}
	return nil
}

func owned(st *unix.Stat_t, uid, gid, mode uint32) bool {
	return st.Uid == uid && st.Gid == gid && st.Mode&0o7777 == mode
}

// openat opens a file. It never follows a link, never waits for a FIFO, and never leaks the descriptor to a child
// process.
func openat(at int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
