// SPDX-License-Identifier: Apache-2.0

// Package tree reads the view of a container of a volume, in a form for comparing and printing: one entry for each
// name, with its mode, owner, and bytes or link target. The tests of the driver use it, and the program in the pods of
// the end-to-end tests.
package tree

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Generation replaces the name of the directory that ..data names. The real name is a time and a random number.
const Generation = "..generation"

// generationForm is the form of the names in kubelet's AtomicWriter.
var generationForm = regexp.MustCompile(`^\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.\d+$`)

// longest is the largest number of bytes of a file that an entry shows unchanged.
const longest = 256

// Entry is one name in a volume.
type Entry struct {
	// Path is relative to the volume; "." is the volume itself.
	Path string
	// Type is the type in ls -l: d, -, l, or ? for other types, which no volume has.
	Type string
	// Mode has the permission bits with setuid, setgid and sticky. It is 0 for a link.
	Mode uint32
	UID  uint32
	GID  uint32
	// Text is the target of a link, or the bytes of a file as a quoted Go string, or the size and hash of a large file. If
	// the file can't be read, Text is the reason.
	Text string
}

// String returns the entry as a line for people.
func (e Entry) String() string {
	s := fmt.Sprintf("%s%04o %d:%d %s", e.Type, e.Mode, e.UID, e.GID, e.Path)
	switch e.Type {
	case "l":
		return s + " -> " + e.Text
	case "d":
		return s
	}
	return s + " " + e.Text
}

// Read returns all files in dir, sorted by path. It follows no link. If the volume changes during the read, the entries
// may be of two versions.
func Read(dir string) ([]Entry, error) {
	generation, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil || !generationForm.MatchString(generation) {
		generation = "" // The name is shown unchanged.
	}
	var entries []Entry
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := read(path)
		if err != nil {
			return err
		}
		if e.Path, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		if generation != "" {
			first, rest, nested := strings.Cut(e.Path, "/")
			if first == generation {
				e.Path = Generation
				if nested {
					e.Path += "/" + rest
				}
			}
			if e.Type == "l" && e.Text == generation {
				e.Text = Generation
			}
		}
		entries = append(entries, e)
		return nil
	})
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return entries, err
}

func read(path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, fmt.Errorf("lstat %s: %w", path, err)
	}
	e := Entry{Type: "?", Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = "d"
	case unix.S_IFLNK:
		e.Type, e.Mode = "l", 0
		e.Text, err = os.Readlink(path)
	case unix.S_IFREG:
		e.Type = "-"
		var content []byte
		content, err = os.ReadFile(path)
		e.Text = Text(content)
	}
	return e, err
}

// Text returns the form in which an entry shows the bytes of a file.
func Text(content []byte) string {
	if len(content) <= longest {
		return strconv.Quote(string(content))
	}
	return fmt.Sprintf("%d bytes, SHA-256 %x", len(content), sha256.Sum256(content))
}

// Files returns the view of a program that opens names: for each file behind the visible names its path and its bytes,
// in the form of Entry.Text.
func Files(entries []Entry) map[string]string {
	files := map[string]string{}
	visible := map[string]bool{}
	for _, e := range entries {
		if e.Type == "l" && e.Text == "..data/"+e.Path {
			visible[e.Path] = true
		}
	}
	for _, e := range entries {
		path, inside := strings.CutPrefix(e.Path, Generation+"/")
		name, _, _ := strings.Cut(path, "/")
		if inside && e.Type == "-" && visible[name] {
			files[path] = e.Text
		}
	}
	return files
}
