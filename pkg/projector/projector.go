// SPDX-License-Identifier: Apache-2.0

// Package projector writes a payload of files into a directory, in one of three layouts.
//
// Links is the layout of kubelet's AtomicWriter, because programs and config reloaders rely on it:
//
//	..2026_11_23_10_00_00.1234567890/   a generation: all files of one version
//	..data -> ..2026_11_23_10_00_00.1234567890
//	id_rsa -> ..data/id_rsa             user-visible names, one per first path component
//
// Renaming ..data publishes a version: a reader that opens ..data once sees one complete version.
//
// In the layouts Files and InPlace each file is at its path. A new version replaces file by file:
//
//	                                         Links      Files      InPlace
//	a reader sees one file whole             yes        yes        no: old and new bytes may be mixed during the write
//	several files at one version             yes        no         no
//	a changed file keeps its inode           no         no         yes, unless its owner, group or mode changes
//	an open descriptor, or a bind mount of
//	the file (subPath), shows the change     no         no         yes
//	inotify on the file                      IN_ATTRIB  IN_ATTRIB  IN_MODIFY, IN_CLOSE_WRITE
//	inotify on the file's directory          IN_MOVED_TO, of ..data in the root with Links; IN_MODIFY with InPlace
//
// In all layouts, a file that is in both versions always exists, unless one version has a directory at its path. A file
// is never shorter than both versions. Owner, group and mode belong to the content that a reader sees. A file that is
// the same in both versions is not touched, except with Links, which writes all files again.
//
// There are intended differences from AtomicWriter: owner, group and mode are set before a version is visible and are
// part of the comparison with it; directories and links have an owner, too; and the files of a killed writer are
// removed or completed, instead of blocking the next write.
//
// The package knows neither Kubernetes nor mounts. It works on a directory descriptor, and never follows a link that it
// finds inside. It is not safe for concurrent use on one directory: the caller serialises the calls.
package projector

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// ErrBadPayload means that a payload cannot be written: a path leaves the directory, is too long, or clashes with
// another path or with a name of the layout, or a mode has bits beyond 0777. Nothing was written.
var ErrBadPayload = errors.New("these files can't be in one volume")

const (
	dataLink    = "..data"
	dataLinkTmp = "..data_tmp"
	// reservedPrefix is the prefix of the names that belong to the layout. Kubernetes' validation excludes keys and item
	// paths that start with it, so the package may remove all names with this prefix.
	reservedPrefix = ".."
	// The kernel's NAME_MAX and PATH_MAX in bytes, and AtomicWriter's limits.
	maxName = 255
	maxPath = 4096
)

// Layout is the arrangement of the files in the directory. The package comment compares the layouts.
type Layout int

const (
	// Links makes links to the files of one generation, as kubelet does.
	Links Layout = iota
	// Files replaces each changed file by a rename.
	Files
	// InPlace overwrites each changed file.
	InPlace
)

// File is one file of a payload.
type File struct {
	// Path is relative, slash-separated and clean (io/fs.ValidPath); its first component does not start
	// with "..".
	Path string
	Data []byte
	// Mode is the permission bits, 0 to 0777. No setuid, setgid or sticky bit.
	Mode uint32
	UID  uint32
	GID  uint32
}

// Payload is the complete content of a directory.
type Payload struct {
	Layout Layout
	// Files are in any order. An empty list empties the directory.
	Files []File
	// Directories exist in each version even if they have no file. A path that names a file, or lies beneath one, is
	// ignored. A path whose first component is that of a mount point stays with the mount point.
	Directories []string
	// MountPoints are directories that stay in all versions. If a directory were removed, the kernel would detach the
	// mounts on it (rmdir(2) on a mount point of another mount namespace). No file may have the same first path component.
	MountPoints []string
	// DirMode is the permission bits of all directories, including the root, 0 to 0777.
	DirMode uint32
	// UID and GID own directories and links.
	UID uint32
	GID uint32
}

// Write makes p the content of the directory of the descriptor root, which may be an O_PATH descriptor. changed reports
// whether files changed. After an error with changed false, the directory still shows its old content as a whole. After
// an error with changed true, the new version is visible, or the next Write or Finish makes the rest of it visible. The
// next Write removes what is left.
func Write(root int, p Payload) (changed bool, err error) {
	tree, mountPoints, err := newTrees(p)
	if err != nil {
		return false, err
	}
	dir, err := openDir(root, ".")
	if err != nil {
		return false, fmt.Errorf("open volume directory: %w", err)
	}
	defer dir.close()
	if p.Layout == Links {
		return writeLinks(dir, tree, mountPoints, p)
	}
	maps.Copy(tree.children, mountPoints.children)
	return writeFiles(dir, tree, p)
}

// writeLinks is Write for the layout Links. The steps, marked by number in the code:
//
//  1. Remove ..data_tmp, then find the current generation: the target of ..data, if its name has the form of this
//     package. The order matters, because a killed process whose rename of ..data_tmp waits for the directory's lock
//     can still complete the rename.
//  2. Remove every other ".." name: only a killed writer leaves one.
//  3. Compare the current generation with the payload: names, owners, modes, bytes. If equal, go to 6.
//  4. Write a new generation; each file gets its owner, then its mode, before the generation has a visible name.
//  5. Rename a new ..data over the old one: from here on readers see the new version.
//  6. Set owner and mode of the root directory. Make missing and wrong visible links and mount points, and remove links
//     without a file.
//  7. Remove the old generation.
func writeLinks(dir directory, tree, mountPoints *node, p Payload) (changed bool, err error) {
	// (1), (2)
	// On a read-only mount, unlink fails even if the name does not exist.
	if _, err := dir.lstat(dataLinkTmp); err == nil {
		_ = removeTree(dir, dataLinkTmp) // clean reports the error.
	}
	current := currentGeneration(dir)
	visible, err := clean(dir, current)
	if err != nil {
		return false, fmt.Errorf("remove what an earlier writer left: %w", err)
	}

	// (3)
	if current != "" && sameGeneration(dir, current, tree, p) {
		return false, show(dir, visible, tree, mountPoints, p) // (6)
	}

	// (4)
	next, err := writeGeneration(dir, tree, p)
	if err != nil {
		return false, fmt.Errorf("write new generation: %w", err)
	}

	// (5)
	failpoint.Hit("projector-generation-written")
	if err := publish(dir, next, p); err != nil {
		return false, errors.Join(fmt.Errorf("publish new generation: %w", err),
			removeTree(dir, dataLinkTmp), removeTree(dir, next))
	}

	failpoint.Hit("projector-data-renamed")
	// (6)
	if err := show(dir, visible, tree, mountPoints, p); err != nil {
		return true, err
	}
	failpoint.Hit("projector-links-made")
	// (7)
	if current != "" {
		if err := removeTree(dir, current); err != nil {
			return true, fmt.Errorf("remove old generation: %w", err)
		}
	}
	return true, nil
}

// show makes the root directory agree with the payload: its owner and mode, the visible links and the mount points.
// visible are the names in the directory that are not reserved.
func show(dir directory, visible []string, tree, mountPoints *node, p Payload) error {
	if _, err := dir.own(p.UID, p.GID, p.DirMode); err != nil {
		return fmt.Errorf("set owner and mode of volume directory: %w", err)
	}
	if err := link(dir, visible, tree, mountPoints, p); err != nil {
		return fmt.Errorf("make visible links: %w", err)
	}
	if err := makeDirectories(dir, mountPoints, p); err != nil {
		return fmt.Errorf("make mount points: %w", err)
	}
	return nil
}

// publish points ..data at generation with a rename, which is the only step that readers can see.
func publish(dir directory, generation string, p Payload) error {
	if err := dir.symlink(generation, dataLinkTmp, p.UID, p.GID); err != nil {
		return err
	}
	if err := failpoint.Error("projector-data-tmp-made"); err != nil {
		return err
	}
	return dir.rename(dataLinkTmp, dataLink)
}

// currentGeneration returns the name of the generation that ..data names, or "" if this package can't have made it. The
// text of the link is not trusted, because a process with write access to the volume could have pointed the link
// anywhere (CVE-2017-1002102). Only a real directory with a name in the form of this package counts.
func currentGeneration(dir directory) string {
	name, err := dir.readlink(dataLink)
	if err != nil || !isGeneration(name) {
		return ""
	}
	st, err := dir.lstat(name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return ""
	}
	return name
}

const generationTime = "..2006_01_02_15_04_05"

// newGenerationName returns a name in kubelet's form: a time for people, and a random part that makes the name unique.
func newGenerationName() string {
	return fmt.Sprintf("%s.%d", time.Now().UTC().Format(generationTime), rand.Uint32())
}

func isGeneration(name string) bool {
	if len(name) < len(generationTime)+2 || name[len(generationTime)] != '.' {
		return false
	}
	if _, err := time.Parse(generationTime, name[:len(generationTime)]); err != nil {
		return false
	}
	random := name[len(generationTime)+1:]
	return len(random) <= 10 && strings.Trim(random, "0123456789") == ""
}
