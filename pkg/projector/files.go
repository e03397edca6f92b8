// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// pendingDir holds the changed files of a version, at their paths, until each of them is moved to its place. Once a
// version has a pendingDir, it will be completed, even if the process is killed.
const pendingDir = "..pending"

// roomFile reserves the memory by which overwritten files grow. It exists until the first file is overwritten.
const roomFile = "..room"

// maxWrite is the largest number of bytes that one system call writes to an overwritten file. A larger file takes
// several calls, so that its content is not in memory twice.
const maxWrite = 1 << 20

// writeFiles is Write for the layouts Files and InPlace. The steps, marked by number in the code:
//
//  1. Complete the version that a killed writer left in ..pending.
//  2. Remove every ".." name: only a killed writer leaves one.
//  3. Write missing and different files into a new directory; each file gets its owner, then its mode.
//  4. InPlace: reserve memory for the files that grow.
//  5. Rename the directory to ..pending.
//  6. Take each file from ..pending to its path.
//  7. Set owner and mode of the directories, and remove files that are not in the payload.
func writeFiles(dir directory, tree *node, p Payload) (changed bool, err error) {
	names, err := dir.names()
	if err != nil {
		return false, fmt.Errorf("list: %w", err)
	}
	// (1)
	if slices.Contains(names, pendingDir) {
		if err := finish(dir, p.Layout); err != nil {
			return true, fmt.Errorf("complete the version of an earlier writer: %w", err)
		}
	}
	// (2)
	for _, name := range names {
		if strings.HasPrefix(name, reservedPrefix) {
			if err := removeTree(dir, name); err != nil {
				return false, fmt.Errorf("remove what an earlier writer left: %w", err)
			}
		}
	}
	if difference := missing(dir, tree, p); difference != nil {
		// (3), (4), (5)
		if err := stage(dir, difference, p); err != nil {
			return false, fmt.Errorf("write new version: %w", err)
		}
		failpoint.Hit("projector-pending")
		// (6)
		if err := finish(dir, p.Layout); err != nil {
			return true, fmt.Errorf("show new version: %w", err)
		}
		changed = true
	}
	// (7)
	pruned, err := prune(dir, ".", tree, p)
	if err != nil {
		err = fmt.Errorf("remove files of the old version: %w", err)
	}
	return changed || pruned, err
}

// Finish completes the version that a killed writer left half visible in the directory of the descriptor root. It takes
// no payload. With the layout Links there is no such version, because a single rename makes a version visible.
func Finish(root int, layout Layout) error {
	if layout == Links {
		return nil
	}
	dir, err := openDir(root, ".")
	if err != nil {
		return fmt.Errorf("open volume directory: %w", err)
	}
	defer dir.close()
	return finish(dir, layout)
}

// missing returns the part of the tree that dir does not have, or has with another owner, mode or content; nil if there
// is none.
func missing(dir directory, n *node, p Payload) *node {
	difference := newDirectory()
	for name, child := range n.children {
		if child.file != nil {
			if !sameFile(dir, name, child.file) {
				difference.children[name] = child
			}
			continue
		}
		sub, err := openDir(dir.fd(), name)
		if err != nil {
			difference.children[name] = child
			continue
		}
		if below := missing(sub, child, p); below != nil {
			difference.children[name] = below
		}
		sub.close()
	}
	if len(difference.children) == 0 {
		return nil
	}
	return difference
}

// stage writes a tree below ..pending. If it fails, it removes what it has written.
func stage(dir directory, tree *node, p Payload) error {
	name, err := writeGeneration(dir, tree, p)
	if err != nil {
		return err
	}
	err = reserve(dir, name, p.Layout)
	if err == nil {
		err = failpoint.Error("projector-staged")
	}
	if err == nil {
		err = dir.rename(name, pendingDir)
	}
	if err != nil {
		return errors.Join(err, removeTree(dir, roomFile), removeTree(dir, name))
	}
	return nil
}

// finish moves all files out of ..pending, if it exists. It also completes the work of a killed process.
func finish(dir directory, layout Layout) error {
	if err := removeTree(dir, roomFile); err != nil {
		return err
	}
	err := merge(dir, pendingDir, dir, func(f staged) error {
		failpoint.Hit("projector-file-taken")
		switch {
		case f.overwrites(layout):
			return f.overwrite()
		case f.current != nil && isDirectory(f.current) != isDirectory(f.next):
			if err := removeTree(f.to, f.name); err != nil {
				return err
			}
		}
		return unix.Renameat(f.from.fd(), f.name, f.to.fd(), f.name)
	})
	if err != nil {
		return err
	}
	return removeTree(dir, pendingDir)
}

// reserve allocates the memory by which files grow when the files below the directory called name overwrite them, so
// that memory does not run out while a part of the version is visible. It does not allocate the memory in the files
// themselves, because opening them for writing before their content is written would cause inotify events.
func reserve(dir directory, name string, layout Layout) error {
	if layout != InPlace {
		return nil
	}
	var growth int64
	err := merge(dir, name, dir, func(f staged) error {
		if f.overwrites(layout) {
			growth += max(0, wholePages(int(f.next.Size))-wholePages(int(f.current.Size)))
		}
		return nil
	})
	if err != nil || growth == 0 {
		return err
	}
	fd, err := openat(dir.fd(), roomFile, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("reserve memory: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, 0, 0, growth); err != nil {
		return fmt.Errorf("reserve %d bytes: %w", growth, err)
	}
	return nil
}

// staged is a new file or a new directory before it is moved to its place.
type staged struct {
	name string
	// from is the directory that contains it, and to is the directory of its place.
	from, to directory
	// next describes it, and current describes the file in its place; nil if there is none.
	next, current *unix.Stat_t
}

// merge calls visit for each file below the directory called name, and for each directory that does not exist in to.
func merge(parent directory, name string, to directory, visit func(staged) error) error {
	from, err := openDir(parent.fd(), name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // The directory does not exist, or this package did not make it.
	}
	if err != nil {
		return err
	}
	defer from.close()
	names, err := from.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := mergeOne(from, name, to, visit); err != nil {
			return fmt.Errorf("%.200q: %w", name, err)
		}
	}
	return nil
}

func mergeOne(from directory, name string, to directory, visit func(staged) error) error {
	next, err := from.lstat(name)
	if err != nil {
		return err
	}
	current, err := to.lstat(name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return visit(staged{name, from, to, &next, nil})
	case err != nil:
		return err
	case !isDirectory(&next) || !isDirectory(&current):
		return visit(staged{name, from, to, &next, &current})
	}
	sub, err := openDir(to.fd(), name)
	if err != nil {
		return err
	}
	defer sub.close()
	return merge(from, name, sub, visit)
}

func isDirectory(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// overwrites reports whether the file in the place keeps its inode. A process with a descriptor of the old file must
// not see new content that it may not open, so a file whose owner, group or mode changes is replaced.
func (f staged) overwrites(layout Layout) bool {
	return layout == InPlace && f.current != nil && f.next.Mode&unix.S_IFMT == unix.S_IFREG && f.current.Nlink == 1 &&
		f.current.Mode == f.next.Mode && f.current.Uid == f.next.Uid && f.current.Gid == f.next.Gid
}

// overwrite copies the staged file over the file in its place. That file is never shorter than both versions.
func (f staged) overwrite() error {
	source, err := openat(f.from.fd(), f.name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	target, err := openat(f.to.fd(), f.name, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := copyTo(target, source, f.next.Size); err != nil {
		return err
	}
	if f.current.Size <= f.next.Size {
		return nil
	}
	return unix.Ftruncate(target, f.next.Size)
}

func copyTo(fd, source int, length int64) error {
	buf := make([]byte, min(length, maxWrite))
	for at := int64(0); at < length; {
		n, err := unix.Pread(source, buf, at)
		if err != nil || n == 0 {
			return fmt.Errorf("read at %d of %d bytes: %w", at, length, cmp.Or(err, io.ErrUnexpectedEOF))
		}
		if n, err = unix.Pwrite(fd, buf[:n], at); err != nil {
			return fmt.Errorf("write at %d: %w", at, err)
		}
		at += int64(n)
		failpoint.Hit("projector-half-overwritten")
	}
	return nil
}

// prune sets the owner and mode of the directory called name and of those below it, and removes everything in them that
// is not in the tree. changed reports whether there was anything to do.
func prune(parent directory, name string, n *node, p Payload) (changed bool, err error) {
	dir, err := openDir(parent.fd(), name)
	if err != nil {
		return false, err
	}
	defer dir.close()
	if changed, err = dir.own(p.UID, p.GID, p.DirMode); err != nil {
		return changed, err
	}
	names, err := dir.names()
	if err != nil {
		return changed, err
	}
	for _, name := range names {
		child, below := n.children[name], false
		switch {
		case child == nil:
			below, err = true, removeTree(dir, name)
		case child.file == nil:
			below, err = prune(dir, name, child, p)
		}
		changed = changed || below
		if err != nil {
			return changed, fmt.Errorf("%.200q: %w", name, err)
		}
	}
	return changed, nil
}
