// SPDX-License-Identifier: Apache-2.0

// Package projector makes a payload of files the content of a directory, in one of three layouts.
//
// Links is the layout of kubelet's AtomicWriter, because programs and config reloaders rely on it:
//
//	..2026_11_23_10_00_00.1234567890/   a generation: all files of one version
//	..data -> ..2026_11_23_10_00_00.1234567890
//	id_rsa -> ..data/id_rsa             user-visible names, one per first path component
//
// Renaming ..data is what publishes a version: a reader that opens ..data once sees one version whole.
//
// In the layouts Files and InPlace each file lies at its path. A new version replaces file by file:
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
// In all layouts, a file that both versions have is there at each instant, unless one of them has a directory at its
// path; a file is never shorter than both versions; owner, group and mode are those of the content that a reader
// sees; and a file that is the same in both versions is not touched, but for Links, which makes all files anew.
//
// What differs from AtomicWriter, on purpose: owner, group and mode are set before a version is visible and
// are part of the comparison with it; directories and links are owned too; and what a killed writer left
// is removed, or completed, instead of blocking the next write.
//
// The package knows nothing of Kubernetes and nothing of mounts: it works on a directory descriptor, and never
// follows a link that it finds inside. It is not safe for concurrent use on one directory: the caller
// serialises.
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

// ErrBadPayload says that a payload cannot be a generation: a path leaves the directory, is too long,
// clashes with another or with the names the layout needs, or a mode has bits beyond 0777. Nothing was written.
var ErrBadPayload = errors.New("these files can't be in one volume")

const (
	dataLink    = "..data"
	dataLinkTmp = "..data_tmp"
	// reservedPrefix marks the names that belong to the layout. Keys and item paths can't start with it
	// (Kubernetes' validation of both), so everything that does is ours to clean.
	reservedPrefix = ".."
	// The kernel's NAME_MAX and PATH_MAX in bytes, and AtomicWriter's limits.
	maxName = 255
	maxPath = 4096
)

// Layout is how the files of a payload lie in the directory. The package comment compares the layouts.
type Layout int

const (
	// Links to the files of one generation, as kubelet makes them.
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

// Payload is everything that a directory is to hold.
type Payload struct {
	Layout Layout
	// Files in any order. An empty list empties the directory.
	Files []File
	// Directories exist in each version even if no file lies in them. A path that names a file, or lies beneath one, is
	// passed over. A path with the first component of a mount point stays with the mount point.
	Directories []string
	// MountPoints are directories that stay while versions come and go: the kernel would detach what is mounted on a
	// directory that is removed (rmdir(2) on a mount point of another mount namespace). No file may have the same first
	// path component.
	MountPoints []string
	// DirMode is the permission bits of every directory, the root among them, 0 to 0777.
	DirMode uint32
	// UID and GID own directories and links.
	UID uint32
	GID uint32
}

// Write makes p the content of the directory that root is a descriptor of, and reports whether files changed. An O_PATH
// descriptor will do. On an error with changed false the directory still shows what it showed before, whole; with
// changed true the new version is visible, or the next Write or Finish makes the rest of it visible, and the next Write
// removes what is left.
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
//  1. Remove ..data_tmp, then find the current generation: what ..data names, if that is a name this package gives. In
//     this order, because a killed process whose rename of ..data_tmp waits for the directory's lock can still complete
//     it.
//  2. Remove every other ".." name: only a killed writer leaves one.
//  3. Compare the current generation with the payload: names, owners, modes, bytes. If equal, go to 6.
//  4. Write a new generation; each file gets owner, then mode, before the generation has a visible name.
//  5. Rename a new ..data over the old one: from here on readers see the new version.
//  6. Own the root directory. Make the visible links and mount points that are missing or wrong, and remove links whose
//     file is gone.
//  7. Remove the old generation.
func writeLinks(dir directory, tree, mountPoints *node, p Payload) (changed bool, err error) {
	// (1), (2)
	if _, err := dir.lstat(dataLinkTmp); err == nil { // on a read-only mount an unlink fails even if nothing is there
		_ = removeTree(dir, dataLinkTmp) // clean reports the error
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
// visible are the names in it that are not reserved.
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

// publish points ..data at generation by a rename, the one step that readers can see.
func publish(dir directory, generation string, p Payload) error {
	if err := dir.symlink(generation, dataLinkTmp, p.UID, p.GID); err != nil {
		return err
	}
	if err := failpoint.Error("projector-data-tmp-made"); err != nil {
		return err
	}
	return dir.rename(dataLinkTmp, dataLink)
}

// currentGeneration returns the name of the generation that ..data names, or "" if there is none that this
// package could have made. The link's text is not trusted: whoever could write to the volume could have
// pointed it anywhere (CVE-2017-1002102), so only a name of our own form that is a real directory counts.
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

// newGenerationName gives kubelet's form: a time for people who look, and a random part that makes it unique.
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
