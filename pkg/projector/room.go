// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"os"
	"path"
)

// InodeBytes is what a file, directory or link takes of the kernel's memory besides its content. By /proc/slabinfo of
// Linux 6.18 (x86_64) an inode of a tmpfs takes 752 bytes, its name 192, a name of more than 32 bytes 512 more, and its
// place in a directory up to 250: 0.9 KiB for a file in a directory of many, 1.2 KiB for a directory in a directory,
// 1.7 KiB at most.
const InodeBytes = 3 << 9

// Size is how many bytes the files hold.
func (p Payload) Size() int64 {
	var size int64
	for _, f := range p.Files {
		size += int64(len(f.Data))
	}
	return size
}

// DirectoryCount is how many directories p has besides the root and those of the layout.
func (p Payload) DirectoryCount() int {
	directories, _ := p.layout()
	return len(directories)
}

// Room is what a tmpfs needs for a refresh, in which the old version and the new one are there at once. With the layout
// InPlace, the new one is there twice while it is copied.
func (p Payload) Room() (bytes, inodes uint64) {
	directories, names := p.layout()
	versions := uint64(2)
	if p.Layout == InPlace {
		versions = 3
	}
	// A long link takes a page, and each visible name is a link. The generation is a directory as well.
	links := uint64(len(names))
	perVersion := uint64(len(p.Files)+len(directories)) + 1
	// Beyond two versions: the root, ..data, ..data_tmp, and the links, of which a refresh replaces one by one.
	const spare = 16
	page := uint64(os.Getpagesize())
	return versions*uint64(p.pages()) + (2*links+spare)*page, 2*perVersion + 2*links + spare
}

// Memory is what one version of p takes of the node's memory, in bytes. Of a tmpfs that holds p the kernel tells the
// same: its used bytes, and InodeBytes for each used inode.
func (p Payload) Memory() int64 {
	directories, names := p.layout()
	always := int64(1) // the root
	if p.Layout == Links {
		always = 3 // and ..data, and the generation
	}
	bytes := p.pages() + InodeBytes*(int64(len(p.Files)+len(directories)+len(names))+always)
	for name := range names {
		if len(dataLink+"/"+name) >= 128 { // mm/shmem.c, SHORT_SYMLINK_LEN
			bytes += int64(os.Getpagesize())
		}
	}
	return bytes
}

// layout is what the files of p need besides themselves: the directories, and the names in the root directory that are
// links.
func (p Payload) layout() (directories, names map[string]bool) {
	files := map[string]bool{}
	directories, names = map[string]bool{}, map[string]bool{}
	// add adds a directory and those above, as far as no file is in the way.
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

// pages is what the content of the files takes of a tmpfs, in bytes: whole pages.
func (p Payload) pages() int64 {
	var bytes int64
	for _, f := range p.Files {
		bytes += wholePages(len(f.Data))
	}
	return bytes
}

// FileMemory is what one file of a tmpfs takes of the node's memory, in bytes.
func FileMemory(length int) int64 { return InodeBytes + wholePages(length) }

// wholePages is the length of the pages that hold so many bytes.
func wholePages(length int) int64 {
	page := int64(os.Getpagesize()) // 64 KiB on some arm64 and ppc64le
	return (int64(length) + page - 1) / page * page
}
