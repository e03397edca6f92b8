// SPDX-License-Identifier: Apache-2.0

package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Image is the input of Build.
type Image struct {
	// Name is the reference of the image. With a tag other than `latest`, kubelet uses the imported image without asking a
	// registry.
	Name string
	// Root is a folder of the machine that becomes the root folder, with its owners, modes and symlinks. If it is empty,
	// the image has only Files.
	Root string
	// Files are added to Root. Missing folders are created with the owner root and the mode 0755.
	Files []File

	Entrypoint []string
	Cmd        []string
	Env        []string // NAME=value. If PATH is missing, Build adds it.
	User       string   // uid or uid:gid; root if empty
	WorkingDir string
}

// File is a file, folder or symlink of an image.
type File struct {
	Path string // absolute
	// Mode has the permissions with setuid, setgid and sticky, and fs.ModeDir for a folder. 0 means the mode of Source, or
	// without Source 0755 for a folder and 0644 for a file.
	Mode     fs.FileMode
	UID, GID int
	Content  []byte
	Source   string // the file of the machine with the content
	Symlink  string // the target of a symlink
}

// FromHost returns a file of the machine at its own path, owned by root. Symlinks in the path are followed.
func FromHost(path string) File { return File{Path: path, Source: path} }

// entry is a File with all defaults set.
type entry struct {
	File
	size int64
}

// entries returns the content of the layer by path. Each folder comes before its content, regardless of the order of
// the input.
func (i Image) entries() ([]entry, error) {
	byPath := make(map[string]entry)
	if i.Root != "" {
		if err := addRoot(byPath, i.Root); err != nil {
			return nil, err
		}
	}
	for _, file := range i.Files {
		e, err := complete(file)
		if err != nil {
			return nil, err
		}
		byPath[e.Path] = e
	}
	for name := range byPath {
		if err := addParents(byPath, name); err != nil {
			return nil, err
		}
	}
	sorted := make([]entry, 0, len(byPath))
	for _, e := range byPath {
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return sorted, nil
}

func addParents(byPath map[string]entry, name string) error {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		parent, there := byPath[dir]
		if !there {
			byPath[dir] = entry{File: File{Path: dir, Mode: fs.ModeDir | 0o755}}
		} else if !parent.Mode.IsDir() {
			return fmt.Errorf("put %s into an image: %s is not a folder there", name, dir)
		}
	}
	return nil
}

func complete(file File) (entry, error) {
	if !path.IsAbs(file.Path) || path.Clean(file.Path) == "/" {
		return entry{}, fmt.Errorf("put %q into an image: not an absolute path below /", file.Path)
	}
	file.Path = path.Clean(file.Path)
	e := entry{File: file, size: int64(len(file.Content))}
	switch {
	case file.Symlink != "":
		e.Mode = fs.ModeSymlink | 0o777
	case file.Source != "":
		info, err := os.Stat(file.Source)
		if err != nil {
			return entry{}, fmt.Errorf("put %s into an image: %w", file.Path, err)
		}
		if !info.Mode().IsRegular() {
			return entry{}, fmt.Errorf("put %s into an image: %s is not a regular file", file.Path, file.Source)
		}
		e.size = info.Size()
		if e.Mode == 0 {
			e.Mode = info.Mode()
		}
	case file.Mode == fs.ModeDir:
		e.Mode |= 0o755
	case file.Mode == 0:
		e.Mode = 0o644
	}
	return e, nil
}

func addRoot(byPath map[string]entry, root string) error {
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("read root folder of image: %w", err)
		}
		relative, err := filepath.Rel(root, name)
		if err != nil || relative == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("read root folder of image: %w", err)
		}
		e := entry{File: File{Path: "/" + filepath.ToSlash(relative), Mode: info.Mode()}}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			e.UID, e.GID = int(stat.Uid), int(stat.Gid)
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if e.Symlink, err = os.Readlink(name); err != nil {
				return fmt.Errorf("read root folder of image: %w", err)
			}
		case info.Mode().IsRegular():
			e.Source, e.size = name, info.Size()
		case !info.IsDir():
			return fmt.Errorf("put %s into an image: %w", name, errKind)
		}
		byPath[e.Path] = e
		return nil
	})
}

var errKind = errors.New("neither a file, a folder nor a symlink")
