// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// sameGeneration reports whether the generation called name holds exactly the tree, with the owners, modes and bytes of
// the payload. If it can't read a file, it returns false: writing a new generation is always correct, but keeping an
// unknown one is not.
func sameGeneration(dir directory, name string, tree *node, p Payload) bool {
	link, err := dir.lstat(dataLink)
	if err != nil || link.Uid != p.UID || link.Gid != p.GID {
		return false
	}
	return sameDir(dir, name, tree, p)
}

func sameDir(parent directory, name string, n *node, p Payload) bool {
	dir, err := openDir(parent.fd(), name)
	if err != nil {
		return false
	}
	defer dir.close()
	var st unix.Stat_t
	if err := unix.Fstat(dir.fd(), &st); err != nil || !owned(&st, p.UID, p.GID, p.DirMode) {
		return false
	}
	names, err := dir.names()
	if err != nil || len(names) != len(n.children) {
		return false
	}
	for _, name := range names {
		child := n.children[name]
		switch {
		case child == nil:
			return false
		case child.file != nil:
			if !sameFile(dir, name, child.file) {
				return false
			}
		case !sameDir(dir, name, child, p):
			return false
		}
	}
	return true
}

func sameFile(dir directory, name string, f *File) bool {
	fd, err := openat(dir.fd(), name, unix.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size != int64(len(f.Data)) ||
		!owned(&st, f.UID, f.GID, f.Mode) {
		return false
	}
	rest := f.Data
	buf := make([]byte, min(len(rest), 32<<10))
	for len(rest) > 0 {
		n, err := unix.Read(fd, buf[:min(len(rest), len(buf))])
		if err != nil || n == 0 || !bytes.Equal(buf[:n], rest[:n]) {
			return false
		}
		rest = rest[n:]
	}
	return true
}
