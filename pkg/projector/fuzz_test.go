// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzPaths checks, for any paths of files, directories and mount points, that either the payload is refused, or all
// written files are inside the directory and have the expected content.
func FuzzPaths(f *testing.F) {
	for _, seed := range [][5]string{
		{"a", "b", "c", "d", "m"}, {"a/b", "a/c", "d", "a/d", "m/n"}, {"../x", "a", "b", "c", "m"}, {"a", "a", "a", "a", "a"},
		{"a", "a/b", "a/b/c", "d", "m"}, {"..data", "..data/x", "x/..data", "..data", "..data"},
		{"/etc/passwd", "", ".", ".", "."},
		{"a\x00", "\xff", "ü", "\x00", "\x00"}, {strings.Repeat("n", 256), "a//b", "a/", "d/", "m/"},
		{"..2026_11_23_10_00_00.1", "...", ".x", ".y", ".z"}, {"a/../../../victim", `a\b`, "a\nb", "d/../..", "m/../.."},
		{`a\b`, "a\nb", "c:d", `d\`, "m\n"}, {"a", "b/c", "d", "a/b/c", "m"}, {"a", "b/c", "d", "b/c/x", "m"},
		{"a", "b", "c", "d/e", "d"}, {"a", "b", "c", "d", "d/e"}, {"d/e", "b", "c", "d/f", "d/g"},
		{"a", "b", "c", "d", "a/m"}, {"a", "b", "c", "../d", "m"}, {"a", "b", "c", "d", "../m"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], uint32(0o400), uint32(0o755))
	}
	dir := newVolume(f, "size=16m,nr_inodes=20000")
	outside := filepath.Dir(filepath.Dir(dir))
	f.Fuzz(func(t *testing.T, a, b, c, directory, mountPoint string, mode, dirMode uint32) {
		p := Payload{Directories: []string{directory}, MountPoints: []string{mountPoint}, DirMode: dirMode, UID: 1, GID: 2}
		for i, path := range []string{a, b, c} {
			p.Files = append(p.Files, File{Path: path, Data: []byte(path), Mode: mode, UID: uint32(i), GID: uint32(i + 10)})
		}
		all := []string{a, b, c, directory, mountPoint}
		byLength := func(a, b string) int { return len(a) - len(b) }
		fresh := payload(file("before", "before"))
		if _, err := tryWrite(t, dir, fresh); err != nil {
			t.Fatal(err)
		}
		_, err := tryWrite(t, dir, p)
		switch {
		case errors.Is(err, ErrBadPayload):
			check(t, dir, fresh)
		case err != nil:
			t.Fatalf("%q: %v", all, err)
		case len(slices.MaxFunc(all, byLength)) < unix.PathMax-200: // A longer path can't be looked up.
			check(t, dir, p)
		}
		for path := range snapshotNames(t, outside) {
			if path != "." && path != "pod" && path != "pod/mount" {
				t.Fatalf("%q: %q is outside of the directory", all, path)
			}
		}
	})
}

// snapshotNames lists the names outside of the volume.
func snapshotNames(t *testing.T, outside string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, pattern := range []string{".", "*", "*/*"} {
		paths, err := filepath.Glob(filepath.Join(outside, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			rel, _ := filepath.Rel(outside, path)
			names[rel] = true
		}
	}
	return names
}

func isDate(name string) bool {
	_, err := time.Parse("2006_01_02_15_04_05", name[2:21])
	return err == nil
}

// FuzzIsGeneration checks that an accepted name of a generation is a single component that names no other directory.
func FuzzIsGeneration(f *testing.F) {
	f.Add(newGenerationName())
	for _, seed := range []string{"..data", "..2026_11_23_10_00_00.1", "..2026_11_23_10_00_00.12345678901",
		"../../../victim", "..2026_02_30_10_00_00.1", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if given := newGenerationName(); !isGeneration(given) {
			t.Fatalf("%q is given but not taken", given)
		}
		if isGeneration(name) != (generationForm.MatchString(name) && isDate(name)) {
			t.Fatalf("%q: %v", name, isGeneration(name))
		}
		if isGeneration(name) && (strings.ContainsAny(name, "/\x00") || filepath.Clean(name) != name || len(name) > maxName) {
			t.Fatalf("%q passes", name)
		}
	})
}
