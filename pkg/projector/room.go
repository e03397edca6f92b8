// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"os"
	"path"
)

// InodeBytes is the kernel memory of a file, directory or link without its content. According to /proc/slabinfo of
// Linux 6.18 (x86_64), an inode of a tmpfs takes 752 bytes, its name 192, a name of more than 32 bytes 512 more, and
// its entry in a directory up to 250: 0.9 KiB for a file in a directory of many, 1.2 KiB for a directory in a
// directory, 1.7 KiB at most.
const InodeBytes = 3 << 9

// Size returns the number of bytes in the files.
func (p Payload) Size() int64 {
	var size int64
	for _, f := range p.Files {
		size += int64(len(f.Data))
	}
	return size
}

// DirectoryCount returns the number of directories of p without the root and those of the layout.
func (p Payload) DirectoryCount() int {
	directories, _ := p.layout()
	return len(directories)
}

// Room returns the size and the inodes that a tmpfs requires for a refresh, in which the old version and the new one
// exist at the same time. With the layout InPlace, the new one exists twice during the copy.
func (p Payload) Room() (bytes, inodes uint64) {
	directories, names := p.layout()
	versions := uint64(2)
	if p.Layout == InPlace {
		versions = 3
	}
	// A long link takes a page, and each visible name is a link. The generation is a directory as well.
	links := uint64(len(names))
	perVersion := uint64(len(p.Files)+len(directories)) + 1
	// spare is for the inodes besides the two versions: the root, ..data, ..data_tmp, and a link, because a refresh
	// replaces the links one by one.
	const spare = 16
	page := uint64(os.Getpagesize())
	return versions*uint64(p.pages()) + (2*links+spare)*page, 2*perVersion + 2*links + spare
}

// Memory returns the memory of the node that one version of p takes, in bytes. It agrees with the kernel's numbers for
// a tmpfs with p: the used bytes, and InodeBytes for each used inode.
func (p Payload) Memory() int64 {
	directories, names := p.layout()
	always := int64(1) // the root
	if p.Layout == Links {
		always = 3 // the root, ..data, and the generation
	}
	bytes := p.pages() + InodeBytes*(int64(len(p.Files)+len(directories)+len(names))+always)
	for name := range names {
		if len(dataLink+"/"+name) >= 128 { // mm/shmem.c, SHORT_SYMLINK_LEN
			bytes += int64(os.Getpagesize())
		}
	}
	return bytes
}

// layout returns the directories of the files of p, and those names in the root directory that are links.
func (p Payload) layout() (directories, names map[string]bool) {
	files := map[string]bool{}
	directories, names = map[string]bool{}, map[string]bool{}
	// add adds a directory and its parents, except those where a file is in the way.
	add := func(path string) {
		for i := range len(path) + 1 {
			if i < len(path) && path[i] != '/' {
				continue
			}
			if files[path[:i]] {
				return
			}
			directories[path[:i]] = true
		}
	}
	for _, f := range p.Files {
		files[f.Path], names[first(f.Path)] = true, true
	}
	for _, f := range p.Files {
		if dir := path.Dir(f.Path); dir != "." {
			add(dir)
		}
	}
	for _, path := range p.Directories {
		add(path)
		names[first(path)] = true
	}
	for _, path := range p.MountPoints {
		add(path)
		delete(names, first(path))
	}
	if p.Layout != Links {
		clear(names)
	}
	return directories, names
}

// pages returns the size of the content of the files in whole pages of a tmpfs, in bytes.
func (p Payload) pages() int64 {
	var bytes int64
	for _, f := range p.Files {
		bytes += wholePages(len(f.Data))
	}
	return bytes
}

// FileMemory returns the memory of the node that one file of a tmpfs takes, in bytes.
func FileMemory(length int) int64 { return InodeBytes + wholePages(length) }

// wholePages returns length rounded up to whole pages.
func wholePages(length int) int64 {
	page := int64(os.Getpagesize()) // 64 KiB on some arm64 and ppc64le
	return (int64(length) + page - 1) / page * page
}
