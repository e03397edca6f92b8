// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"fmt"
	"io/fs"
	"strings"
)

// node is a directory (children) or a file (file). Writing and comparing walk the same tree of nodes, so that both
// agree on the content of a directory.
type node struct {
	children map[string]*node
	file     *File
}

func newDirectory() *node { return &node{children: map[string]*node{}} }

// newTrees returns the tree of a generation, and the tree of the directories that stay in all generations: the mount
// points, and directories beneath the same names. The two trees have no name in common at the top.
func newTrees(p Payload) (generation, mountPoints *node, err error) {
	if p.DirMode&^0o777 != 0 {
		return nil, nil, fmt.Errorf("%w: directory mode %#o has bits beyond 0777", ErrBadPayload, p.DirMode)
	}
	generation, mountPoints = newDirectory(), newDirectory()
	for i := range p.Files {
		f := &p.Files[i]
		if f.Mode&^0o777 != 0 {
			return nil, nil, fmt.Errorf("%w: mode %#o of %.200q has bits beyond 0777", ErrBadPayload, f.Mode, f.Path)
		}
		if err := generation.addFile(f); err != nil {
			return nil, nil, err
		}
	}
	for _, path := range p.MountPoints {
		if err := checkPath(path); err != nil {
			return nil, nil, err
		}
		if name := first(path); generation.children[name] != nil {
			return nil, nil, fmt.Errorf("%w: another volume is mounted at %.200q, "+
				"for which the volume needs a directory %q of its own, "+
				"but a file has that path or lies in that directory", ErrBadPayload, path, name)
		}
		mountPoints.addDirectory(path)
	}
	for _, path := range p.Directories {
		if err := checkPath(path); err != nil {
			return nil, nil, err
		}
		if mountPoints.children[first(path)] != nil {
			mountPoints.addDirectory(path)
		} else {
			generation.addDirectory(path)
		}
	}
	return generation, mountPoints, nil
}

// first returns the first component of a path, which is its name in the root directory.
func first(path string) string {
	name, _, _ := strings.Cut(path, "/")
	return name
}

func (n *node) addFile(f *File) error {
	if err := checkPath(f.Path); err != nil {
		return err
	}
	for rest := f.Path; ; {
		name, tail, nested := strings.Cut(rest, "/")
		child, exists := n.children[name]
		switch {
		case !nested && exists:
			return fmt.Errorf("%w: path %.200q is there twice, or is both a file and a directory", ErrBadPayload, f.Path)
		case !nested:
			n.children[name] = &node{file: f}
			return nil
		case !exists:
			child = newDirectory()
			n.children[name] = child
		case child.file != nil:
			return fmt.Errorf("%w: path %.200q lies below %.200q, which is a file", ErrBadPayload, f.Path, child.file.Path)
		}
		n, rest = child, tail
	}
}

// addDirectory adds the directories of a path, except those where a file is in the way.
func (n *node) addDirectory(path string) {
	for name := range strings.SplitSeq(path, "/") {
		child := n.children[name]
		if child == nil {
			child = newDirectory()
			n.children[name] = child
		}
		if child.file != nil {
			return
		}
		n = child
	}
}

func checkPath(path string) error {
	if path == "." || !fs.ValidPath(path) || strings.HasPrefix(path, reservedPrefix) || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w: path %.200q is not a clean relative path or starts with %q",
			ErrBadPayload, path, reservedPrefix)
	}
	if len(path) > maxPath {
		return fmt.Errorf("%w: a path is %d bytes long, more than %d", ErrBadPayload, len(path), maxPath)
	}
	for name := range strings.SplitSeq(path, "/") {
		if len(name) > maxName {
			return fmt.Errorf("%w: a component of path %.200q is longer than %d bytes", ErrBadPayload, path, maxName)
		}
	}
	return nil
}
