// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// writeGeneration writes the tree below a new generation directory and returns the name of the directory. If it fails,
// it removes what it has written.
func writeGeneration(dir directory, tree *node, p Payload) (name string, err error) {
	for {
		name = newGenerationName()
		err = unix.Mkdirat(dir.fd(), name, 0o700)
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	if err := writeDir(dir, name, tree, p, p.Layout == Links); err != nil {
		return "", errors.Join(err, removeTree(dir, name))
	}
	return name, nil
}

// writeDir fills the existing directory called name, which no other process may enter yet. If shown is true, the
// directory then gets its owner and mode.
func writeDir(parent directory, name string, n *node, p Payload, shown bool) error {
	dir, err := openDir(parent.fd(), name)
	if err != nil {
		return fmt.Errorf("open directory %q: %w", name, err)
	}
	defer dir.close()
	for childName, child := range n.children {
		if child.file != nil {
			if err := writeFile(dir, childName, child.file); err != nil {
				return fmt.Errorf("file %.200q: %w", child.file.Path, err)
			}
			continue
		}
		if err := unix.Mkdirat(dir.fd(), childName, 0o700); err != nil {
			return fmt.Errorf("make directory %q: %w", childName, err)
		}
		if err := writeDir(dir, childName, child, p, true); err != nil {
			return err
		}
	}
	if !shown {
		return nil
	}
	if _, err := dir.own(p.UID, p.GID, p.DirMode); err != nil {
		return fmt.Errorf("directory %q: %w", name, err)
	}
	return nil
}

func writeFile(dir directory, name string, f *File) error {
	fd, err := openat(dir.fd(), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer unix.Close(fd)
	if err := failpoint.Error("projector-file-made"); err != nil {
		return err
	}
	for rest := f.Data; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		rest = rest[n:]
	}
	return own(fd, f.UID, f.GID, f.Mode)
}

// link makes the visible names agree with the tree: name -> ..data/name for each first path component. visible are the
// existing names.
func link(dir directory, visible []string, tree, mountPoints *node, p Payload) error {
	right := make(map[string]bool, len(visible))
	var stale []string
	for _, name := range visible {
		switch {
		case mountPoints.children[name] != nil:
		case tree.children[name] == nil:
			stale = append(stale, name)
		default:
			right[name] = isLink(dir, name, p)
		}
	}
	for name := range tree.children {
		if right[name] {
			continue
		}
		if err := replaceLink(dir, name, p); err != nil {
			return err
		}
	}
	for _, name := range stale {
		if err := removeTree(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// replaceLink makes the link of one visible name. It renames a temporary name, so that a wrong link is replaced without
// a gap.
func replaceLink(dir directory, name string, p Payload) error {
	if err := dir.symlink(dataLink+"/"+name, dataLinkTmp, p.UID, p.GID); err != nil {
		return errors.Join(err, removeTree(dir, dataLinkTmp))
	}
	failpoint.Hit("projector-link-tmp-made")
	err := dir.rename(dataLinkTmp, name)
	if errors.Is(err, unix.EISDIR) {
		// The name belongs to a file that is no link and that this package did not make.
		err = errors.Join(removeTree(dir, name), dir.rename(dataLinkTmp, name))
	}
	if err != nil {
		return errors.Join(err, removeTree(dir, dataLinkTmp))
	}
	return nil
}

// makeDirectories makes the missing directories of a tree, with owner and mode. It replaces files that are no
// directory.
func makeDirectories(dir directory, tree *node, p Payload) error {
	for name, child := range tree.children {
		err := unix.Mkdirat(dir.fd(), name, 0o700)
		if st, statErr := dir.lstat(name); errors.Is(err, unix.EEXIST) && statErr == nil {
			err = nil
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				err = errors.Join(removeTree(dir, name), unix.Mkdirat(dir.fd(), name, 0o700))
			}
		}
		if err != nil {
			return fmt.Errorf("make directory %q: %w", name, err)
		}
		sub, err := openDir(dir.fd(), name)
		if err != nil {
			return fmt.Errorf("open directory %q: %w", name, err)
		}
		_, err = sub.own(p.UID, p.GID, p.DirMode)
		err = errors.Join(err, makeDirectories(sub, child, p))
		sub.close()
		if err != nil {
			return fmt.Errorf("directory %q: %w", name, err)
		}
	}
	return nil
}

func isLink(dir directory, name string, p Payload) bool {
	st, err := dir.lstat(name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Uid != p.UID || st.Gid != p.GID {
		return false
	}
	target, err := dir.readlink(name)
	return err == nil && target == dataLink+"/"+name
}
