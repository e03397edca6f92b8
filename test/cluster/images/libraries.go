// SPDX-License-Identifier: Apache-2.0

package images

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// WithLibraries adds the dynamic loader and the shared libraries of the given files of the machine, and the
// dependencies of these, at the paths in which the loader searches. A static program has none. WithLibraries does not
// find libraries that a program opens itself (dlopen: name services, plugins).
func WithLibraries(files ...File) ([]File, error) {
	all := append([]File(nil), files...)
	there := make(map[string]bool)
	for _, file := range files {
		there[file.Path] = true
	}
	for i := 0; i < len(all); i++ { // all grows in the loop
		if all[i].Source == "" {
			continue
		}
		needed, err := neededFiles(all[i].Source)
		if err != nil {
			return nil, fmt.Errorf("find what %s needs: %w", all[i].Source, err)
		}
		for _, path := range needed {
			if !there[path] {
				there[path] = true
				all = append(all, File{Path: path, Source: path, Mode: 0o755})
			}
		}
	}
	return all, nil
}

// neededFiles returns the loader and the libraries that an ELF file names. For other files, it returns nothing.
func neededFiles(path string) ([]string, error) {
	file, err := elf.Open(path)
	if format := (*elf.FormatError)(nil); errors.As(err, &format) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var needed []string
	for _, p := range file.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return nil, fmt.Errorf("read the loader's name: %w", err)
		}
		needed = append(needed, strings.TrimRight(string(name), "\x00"))
	}
	libraries, err := file.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	dirs := libraryDirs(file, filepath.Dir(path))
	for _, library := range libraries {
		found, err := findLibrary(library, dirs)
		if err != nil {
			return nil, err
		}
		needed = append(needed, found)
	}
	return needed, nil
}

// libraryDirs returns the folders in which the loader searches: the file's own list, then those of the architecture.
// The loader searches them even without a cache.
func libraryDirs(file *elf.File, origin string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		lists, _ := file.DynString(tag) // empty if there is no such tag
		for _, list := range lists {
			for _, dir := range strings.Split(list, ":") {
				dirs = append(dirs, strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(dir))
			}
		}
	}
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[file.Machine]
	return append(dirs, "/lib/"+triplet, "/usr/lib/"+triplet, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
}

func findLibrary(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("library %s is not in any of %s", name, strings.Join(dirs, ", "))
}
