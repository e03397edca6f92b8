// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

const (
	// stdin is the name of standard input in messages.
	stdin = "stdin"
	// filesUse is the usage of commands that read manifests.
	filesUse = "FILE|DIR|-..."

	danglingMessage = "this link leads to no file"
)

// input is the manifests that the arguments of a command name.
type input struct {
	files    []*manifest.File
	dangling []string // links in directories whose target does not exist
}

// read reads files, standard input (-) and the manifests in directories: the files whose names end in .json, .yaml or
// .yml, as with kubectl. It stops at the first file that cannot be read.
func (in *input) read(args []string, recursive bool, standard io.Reader) error {
	for _, arg := range args {
		if arg != "-" {
			if err := in.walk(arg, recursive); err != nil {
				return err
			}
			continue
		}
		if slices.ContainsFunc(in.files, func(f *manifest.File) bool { return f.Name == stdin }) {
			return errors.New("- is given twice: standard input can be read once")
		}
		text, err := io.ReadAll(standard)
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		in.files = append(in.files, manifest.Parse(stdin, string(text)))
	}
	return nil
}

// walk reads a file, or the manifests in a directory.
func (in *input) walk(root string, recursive bool) error {
	if st, err := os.Stat(root); err != nil || !st.IsDir() {
		return in.file(root)
	}
	root += "/" // If root is a link, walk the directory that it leads to.
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && !recursive:
			return filepath.SkipDir
		case entry.IsDir() || !isManifest(path):
			return nil
		}
		st, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			in.dangling = append(in.dangling, path)
			return nil
		case err == nil && !st.Mode().IsRegular(): // for example, a link to a directory, or a pipe
			return nil
		}
		return in.file(path)
	})
}

func (in *input) file(path string) error {
	text, err := os.ReadFile(path)
	if err == nil {
		in.files = append(in.files, manifest.Parse(path, string(text)))
	}
	return err
}

func isManifest(path string) bool {
	return slices.Contains([]string{".json", ".yaml", ".yml"}, strings.ToLower(filepath.Ext(path)))
}

// count returns a number with a noun in the singular or plural.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
