// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// Errors of a Point, each with the path in its text.
var (
	// ErrSymlink says that a component of a path is a symbolic link. A pod can't have made one there; whoever
	// did is not followed (CVE-2021-25741).
	ErrSymlink = errors.New("symbolic link in path")
	// ErrNotDirectory says that something else than a directory is where a mount should go.
	ErrNotDirectory = errors.New("not a directory")
	// ErrNotEmpty says that the directory has content of its own, which a mount would hide and which would keep the
	// directory from being removed afterwards.
	ErrNotEmpty = errors.New("directory not empty")
	// ErrNotMounted says that nothing is mounted at the target.
	ErrNotMounted = errors.New("not a mount point")
)

// Target is a place for a mount: a name in a directory that is held open, so that nothing that happens
// to the path meanwhile leads elsewhere.
type Target struct {
	parent int
	leaf   string
	path   string
}

// OpenTarget opens the parent directory of path, which must be absolute and clean, without following any symbolic
// link. If the parent is not there the error is fs.ErrNotExist. The leaf need not exist.
func OpenTarget(path string) (*Target, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return nil, fmt.Errorf("open %q: not an absolute clean path", path)
	}
	dir, leaf := filepath.Split(path)
	fd, err := openat2(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("open %s: %w", dir, ErrSymlink)
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("open %s: %w", dir, ErrNotDirectory)
	case err != nil:
		return nil, &os.PathError{Op: "openat2", Path: dir, Err: err}
	}
	return &Target{parent: fd, leaf: leaf, path: path}, nil
}

// Close lets go of the parent directory.
func (p *Target) Close() error { return unix.Close(p.parent) }

// Mkdir makes the directory that a mount needs, root-owned and with mode 0750 as kubelet's own. A directory that is there
// and empty will do.
func (p *Target) Mkdir() error {
	err := unix.Mkdirat(p.parent, p.leaf, 0o750)
	if err == nil {
		failpoint.Hit("tmpfs-directory-made")
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: p.path, Err: err}
	}
	fd, err := p.open()
	if err != nil {
		return fmt.Errorf("open %s: %w", p.path, err)
	}
	defer unix.Close(fd)
	empty, err := isEmpty(fd)
	if err != nil {
		return &os.PathError{Op: "list", Path: p.path, Err: err}
	}
	if !empty {
		return fmt.Errorf("%s: %w", p.path, ErrNotEmpty)
	}
	return nil
}

// Remove removes the directory, if it is there. It must be empty and no mount point.
func (p *Target) Remove() error {
	if err := failpoint.Error("tmpfs-rmdir"); err != nil {
		return err
	}
	err := unix.Unlinkat(p.parent, p.leaf, unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: p.path, Err: err}
	}
	failpoint.Hit("tmpfs-directory-removed")
	return nil
}

// Clone opens a private mount of the file system at p, writable although the attached one is not. Nobody else can
// see or reach it. want tells which file system it must be; another one is an error, and untouched.
func (p *Target) Clone(want Identity) (*DetachedMount, error) {
	root, err := p.open()
	if err != nil {
		return nil, &Error{Op: "clone", Call: "openat2", Target: p.path, Err: err}
	}
	defer unix.Close(root)
	// The look and the clone go through one descriptor: what was looked at is what is cloned.
	got, err := identify(root)
	if err != nil {
		return nil, err
	}
	if got != want {
		return nil, fmt.Errorf("clone tmpfs at %s: %w: found file system %+v, not %+v", p.path, ErrNotMounted, got, want)
	}
	fd, err := unix.OpenTree(root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, &Error{Op: "clone", Call: "open_tree", Target: p.path, Options: "clone", Err: err}
	}
	// An open file in a clone would outlive an unmount and with it the secret: the clone is the caller's to close.
	clone := &DetachedMount{fd: fd}
	failpoint.Hit("tmpfs-cloned")
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(&Error{Op: "clone", Call: "mount_setattr", Target: p.path, Options: "rw", Err: err}, clone.Close())
	}
	return clone, nil
}

// Unmount takes away every mount at p: mounts stack, and one left behind keeps the pod from going (kubelet looks at the
// mount table and waits). A mount that is busy is detached: it goes when its last user does. Nothing
// mounted, or nothing there, is no error.
func (p *Target) Unmount() error {
	// A name below the open parent, so that no component is looked up again; the leaf is not followed if a link.
	name := fmt.Sprintf("/proc/self/fd/%d/%s", p.parent, p.leaf)
	if err := failpoint.Error("tmpfs-unmount"); err != nil {
		return err
	}
	for {
		err := retryUnmount(name, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = retryUnmount(name, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case err == nil:
			failpoint.Hit("tmpfs-unmounted")
			continue // what lies below, if anything
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			// Not a mount point, or not there. EINVAL could also mean bad flags: these are known to be good.
		default:
			return &Error{Op: "unmount", Call: "umount2", Target: p.path, Err: err}
		}
		state, err := p.Inspect()
		if err != nil {
			return err
		}
		if state.Mounted {
			return &Error{Op: "unmount", Call: "umount2", Target: p.path, Err: unix.EBUSY}
		}
		return nil
	}
}

func retryUnmount(name string, flags int) error {
	return retry(func() error { return unix.Unmount(name, flags) })
}

// open opens what is at the target: the directory, or the root of the mount on it.
func (p *Target) open() (int, error) {
	fd, err := openat2(p.parent, p.leaf, unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ELOOP):
		return -1, ErrSymlink
	case errors.Is(err, unix.ENOTDIR):
		return -1, ErrNotDirectory
	}
	return fd, err
}

// openat2 opens without following a symbolic link in any component.
func openat2(at int, path string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	err = retry(func() error {
		fd, err = unix.Openat2(at, path, &how)
		return err
	})
	return fd, err
}

func isEmpty(dir int) (bool, error) {
	fd, err := openat2(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}
