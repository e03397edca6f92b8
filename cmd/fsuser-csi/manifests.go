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

	"github.com/spf13/cobra"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// stdin is what messages call the standard input.
const stdin = "stdin"

// filesUse is how commands that read manifests are called.
const filesUse = "FILE|DIR|-..."

// readManifests reads files, standard input (-) and the manifests in directories: what ends in .json, .yaml or .yml, as kubectl takes
// them. It ends at the first that can't be read.
func readManifests(args []string, recursive bool, in io.Reader) ([]*manifest.File, error) {
	var files []*manifest.File
	read := func(path string) error {
		text, err := os.ReadFile(path)
		if err == nil {
			files = append(files, manifest.Parse(path, string(text)))
		}
		return err
	}
	for _, arg := range args {
		if arg == "-" {
			if slices.ContainsFunc(files, func(f *manifest.File) bool { return f.Name == stdin }) {
				return nil, errors.New("- is given twice: standard input can be read once")
			}
			text, err := io.ReadAll(in)
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			files = append(files, manifest.Parse(stdin, string(text)))
			continue
		}
		root := arg
		if st, err := os.Stat(arg); err == nil && st.IsDir() {
			root += "/" // of a link to a directory, what it leads to
		}
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case !entry.IsDir() && (path == root || isManifest(path)):
				return read(path)
			case entry.IsDir() && path != root && !recursive:
				return filepath.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

func isManifest(path string) bool {
	return slices.Contains([]string{".json", ".yaml", ".yml"}, strings.ToLower(filepath.Ext(path)))
}

// withUsage makes wrong flags and arguments of a command errors with the exit code for wrong usage.
func withUsage(cmd *cobra.Command) *cobra.Command {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return &exitError{exitUsage, fmt.Errorf(`give %s a file, a directory, or "-" for standard input`, cmd.Name())}
		}
		return nil
	}
	return cmd
}

// count says how many there are of a thing.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
