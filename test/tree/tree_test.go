// SPDX-License-Identifier: Apache-2.0

package tree_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const current, left = "..2026_11_23_10_00_00.123", "..2026_11_23_09_00_00.7"
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		must(os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600))
		must(os.Chmod(filepath.Join(dir, path), mode))
	}
	must(os.Chmod(dir, 0o777|os.ModeSticky))
	must(os.MkdirAll(filepath.Join(dir, current, "d"), 0o700))
	must(os.Mkdir(filepath.Join(dir, left), 0o750))
	write(current+"/a", "\x00\n", 0o640)
	write(current+"/d/large", strings.Repeat("x", 300), 0o400)
	write(current+"/hidden", "", 0o400)
	must(os.Symlink(current, filepath.Join(dir, "..data")))
	must(os.Symlink("..data/a", filepath.Join(dir, "a")))
	must(os.Symlink("..data/d", filepath.Join(dir, "d")))
	must(os.Symlink("/etc", filepath.Join(dir, "hidden")))
	must(os.Chown(filepath.Join(dir, current, "a"), 1000, 2000))
	must(os.Lchown(filepath.Join(dir, "a"), 7, 8))

	entries, err := tree.Read(dir)
	must(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.String())
	}
	large := "300 bytes, SHA-256 " + "0d4e2ca9e9cbced7a7a5380eb29e1a3783b9b6d0db72de36a1051038e1c1fbc7"
	want := []string{
		"d1777 0:0 .",
		"d0750 0:0 " + left, // only the generation that ..data names has no name of its own
		"l0000 0:0 ..data -> ..generation",
		"d0700 0:0 ..generation",
		`-0640 1000:2000 ..generation/a "\x00\n"`,
		"d0700 0:0 ..generation/d",
		"-0400 0:0 ..generation/d/large " + large,
		`-0400 0:0 ..generation/hidden ""`,
		"l0000 7:8 a -> ..data/a",
		"l0000 0:0 d -> ..data/d",
		"l0000 0:0 hidden -> /etc",
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
	if files, want := tree.Files(entries), map[string]string{"a": `"\x00\n"`, "d/large": large}; !maps.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
	if _, err := tree.Read(dir + "/nowhere"); err == nil {
		t.Error("a directory that is not there was read")
	}
}
