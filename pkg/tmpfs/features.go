// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Features are the differences between kernels that matter to this package.
type Features struct {
	// NoSwap means that tmpfs has the option noswap (Linux 6.4, and not in a user namespace).
	NoSwap bool
	// SELinux means that SELinux is enabled and has a policy.
	SELinux bool
}

// Probe tries the system calls of this package on mounts that are not attached, and returns the kernel's features. The
// error names the missing feature and the first kernel that has it. Probe leaves nothing.
func Probe() (Features, error) {
	opts := Options{Limits: Limits{Bytes: 4096, Inodes: 16}, NoSwap: true}
	d, err := Create(opts)
	noSwap := err == nil
	if errors.Is(err, unix.EINVAL) {
		opts.NoSwap = false
		d, err = Create(opts)
	}
	if err != nil {
		return Features{}, missing("fsopen(2), fsmount(2) for tmpfs (Linux 5.2 and CAP_SYS_ADMIN)", err)
	}
	defer d.Close()
	if err := d.Seal(); err != nil {
		return Features{}, missing("mount_setattr(2) (Linux 5.12)", err)
	}
	fd, err := openat2(unix.AT_FDCWD, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return Features{}, missing("openat2(2) (Linux 5.6)", err)
	}
	defer unix.Close(fd)
	// A clone requires a mount in this mount namespace. The mount of the root directory always exists.
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return Features{}, missing("open_tree(2) with OPEN_TREE_CLONE (Linux 5.2 and CAP_SYS_ADMIN)", err)
	}
	defer unix.Close(clone)
	selinux, err := selinuxEnabled()
	if err != nil {
		return Features{}, fmt.Errorf("find out whether SELinux is enabled: %w", err)
	}
	return Features{NoSwap: noSwap, SELinux: selinux}, nil
}

// selinuxEnabled reports whether SELinux is enabled and has a policy. It reads /proc, because a container may not have
// /sys/fs/selinux. The kernel registers selinuxfs only if SELinux is enabled at boot. Without a policy
// (SELINUX=disabled in /etc/selinux/config), the context of every process is "kernel", and a mount with context= fails.
func selinuxEnabled() (bool, error) {
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(filesystems), "\tselinuxfs\n") {
		return false, err
	}
	context, err := os.ReadFile("/proc/self/attr/current")
	return string(bytes.TrimRight(context, "\x00\n")) != "kernel", err
}

func missing(what string, err error) error {
	return fmt.Errorf("this machine lacks %s: %w", what, err)
}
