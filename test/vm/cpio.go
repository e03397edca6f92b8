// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// initramfs writes the root file system of a machine, as a cpio archive in the format "newc", which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst). All files belong to root.
type initramfs struct {
	w    *bufio.Writer
	err  error // of the first failed write; later writes do nothing
	dirs map[string]bool
	next int // inode number
}

func newInitramfs(w io.Writer) *initramfs {
	return &initramfs{w: bufio.NewWriter(w), dirs: map[string]bool{".": true}}
}

// file adds a file of the host.
func (i *initramfs) file(name, source string, perm uint32) {
	f, err := os.Open(source)
	if err != nil {
		i.fail(err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		i.fail(err)
		return
	}
	i.entry(name, 0o100000|perm, st.Size(), f)
}

func (i *initramfs) bytes(name string, content []byte, perm uint32) {
	i.entry(name, 0o100000|perm, int64(len(content)), strings.NewReader(string(content)))
}

func (i *initramfs) link(name, target string) {
	i.entry(name, 0o120777, int64(len(target)), strings.NewReader(target))
}

func (i *initramfs) dir(name string) {
	name = path.Clean(strings.TrimPrefix(name, "/"))
	if !i.dirs[name] {
		i.dirs[name] = true
		i.entry(name, 0o040755, 0, strings.NewReader(""))
	}
}

// tree adds the regular files of a directory of the host. A missing directory counts as empty.
func (i *initramfs) tree(name, source string) {
	if _, err := os.Stat(source); err != nil {
		return
	}
	err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(source, p)
		i.file(filepath.Join(name, relative), p, 0o644)
		return err
	})
	i.fail(err)
}

// close ends the archive and returns the first error.
func (i *initramfs) close() error {
	i.entry("TRAILER!!!", 0, 0, strings.NewReader(""))
	i.fail(i.w.Flush())
	return i.err
}

func (i *initramfs) fail(err error) {
	if i.err == nil {
		i.err = err
	}
}

// entry adds an entry, after its parent directories. mode has the bits of stat(2).
func (i *initramfs) entry(name string, mode uint32, size int64, content io.Reader) {
	name = strings.TrimPrefix(name, "/")
	if above := path.Dir(name); !i.dirs[above] {
		i.dir(above)
	}
	if i.err != nil {
		return
	}
	i.next++
	// magic, inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), length of the name, checksum
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		i.next, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	_, err := io.WriteString(i.w, pad(header))
	i.fail(err)
	copied, err := io.Copy(i.w, content)
	i.fail(err)
	if err == nil && copied != size {
		i.fail(fmt.Errorf("%s changed while it was packed", name))
	}
	_, err = io.WriteString(i.w, strings.Repeat("\x00", int(-size&3)))
	i.fail(err)
}

// pad fills s to a multiple of four bytes.
func pad(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
