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

// Errors of a Target. Their text contains the path.
var (
	// ErrSymlink means that a component of a path is a symbolic link. A pod can't have made one there, and the driver
	// follows none (CVE-2021-25741).
	ErrSymlink = errors.New("symbolic link in path")
	// ErrNotDirectory means that the target is no directory.
	ErrNotDirectory = errors.New("not a directory")
	// ErrNotEmpty means that the directory is not empty. A mount would hide its content, and the directory could not be
	// removed afterwards.
	ErrNotEmpty = errors.New("directory not empty")
	// ErrNotMounted means that nothing is mounted at the target.
	ErrNotMounted = errors.New("not a mount point")
)

// Target is the place of a mount: a name in an open directory, so that later changes of the path have no effect.
type Target struct {
	parent int
	leaf   string
	path   string
}

// OpenTarget opens the parent directory of path, which must be absolute and clean. It follows no symbolic link. If the
// parent does not exist, the error is fs.ErrNotExist. The target itself need not exist.
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

// Close closes the parent directory.
func (p *Target) Close() error { return unix.Close(p.parent) }

// Mkdir creates the directory of the mount. Its owner is root and its mode 0750, as in kubelet. An existing empty
// directory stays as it is.
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

// Remove removes the directory if it exists. It must be empty and no mount point.
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

// Clone opens a private mount of the file system at p. The clone is writable although the attached mount is not, and no
// other process can see or reach it. want is the expected file system. If another one is mounted at p, Clone returns an
// error and changes nothing.
func (p *Target) Clone(want Identity) (*DetachedMount, error) {
	root, err := p.open()
	if err != nil {
		return nil, &Error{Op: "clone", Call: "openat2", Target: p.path, Err: err}
	}
	defer unix.Close(root)
	// The check and the clone use the same descriptor, so that the checked file system is cloned.
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
	// The caller must close the clone: an open clone keeps the secret in memory after the unmount.
	clone := &DetachedMount{fd: fd}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(&Error{Op: "clone", Call: "mount_setattr", Target: p.path, Options: "rw", Err: err},
			clone.Close())
	}
	return clone, nil
}

// Unmount removes all mounts at p: mounts stack, and a remaining one would keep the pod in Terminating, because kubelet
// waits for the mount table. It detaches a busy mount, which ends with its last user. A target that does not exist or
// has no mount is no error.
func (p *Target) Unmount() error {
	// The path begins at the open parent, so that no component is looked up again. A link at the last component is not
	// followed.
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
			continue // There may be another mount below.
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			// The target is no mount point, or does not exist. EINVAL could also mean wrong flags, but these are correct.
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

// open opens the directory at the target, or the root of the mount on it.
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
