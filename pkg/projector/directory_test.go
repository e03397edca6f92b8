// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestDirectoriesExistInEachVersion(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		dir := newVolume(t, "size=1m")
		p := payload(file("conf/a", "1"))
		p.Layout = layout
		p.Directories = []string{"empty", "conf/sub/deep", "conf"}
		if !write(t, dir, p) {
			t.Error("the first version changed nothing")
		}
		before := snapshot(t, dir)
		if write(t, dir, p) {
			t.Error("the same payload changed something")
		}
		sameSnapshot(t, "a directory that is right", before, snapshot(t, dir))

		p.Files = []File{file("conf/a", "2")}
		if !write(t, dir, p) {
			t.Error("another content changed nothing")
		}
		p.Directories = []string{"other"}
		if !write(t, dir, p) {
			t.Error("another directory changed nothing")
		}
	})
}

func TestADirectoryBecomesAFileAndADirectoryAgain(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		for _, path := range []string{"later", "conf/later"} {
			t.Run(path, func(t *testing.T) {
				dir := newVolume(t, "size=1m")
				p := payload(file("other", "1"))
				p.Layout = layout
				p.Directories = []string{path}
				write(t, dir, p)
				p.Files = append(p.Files, file(path, "here"))
				write(t, dir, p)
				p.Files = p.Files[:1]
				write(t, dir, p)
				// A file in the directory does not add another directory.
				p.Files = append(p.Files, file(path+"/in/it", "x"))
				write(t, dir, p)
			})
		}
	})
}

func TestADirectoryBeneathAFileIsPassedOver(t *testing.T) {
	dir := newVolume(t, "size=1m")
	p := payload(file("a", "1"), file("d/b", "2"))
	p.Directories = []string{"a", "a/x/y", "d/b/x"}
	write(t, dir, p)
	if got := look(t, filepath.Join(dir, "..data", "a")); got.content != "1" {
		t.Errorf("a is %+v", got)
	}
}

func TestMountPointsStayWhileVersionsComeAndGo(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		dir := newVolume(t, "size=1m")
		p := payload(file("a", "1"))
		p.Layout = layout
		p.MountPoints = []string{"data", "run/deep/er", "run/other"}
		write(t, dir, p)
		all := []string{"data", "run", "run/deep", "run/deep/er", "run/other"}
		inodes := map[string]uint64{}
		for _, path := range all {
			inodes[path] = inode(t, filepath.Join(dir, path))
		}
		for _, next := range [][]File{
			{file("a", "2")},                  // other content
			{file("b", "1"), file("c/d", "")}, // other names
			{},                                // no file
			{file("a", "1")},                  // as before
		} {
			p.Files = next
			write(t, dir, p)
		}
		p.UID, p.GID, p.DirMode = 7, 8, 0o750
		write(t, dir, p)
		for _, path := range all {
			if now := inode(t, filepath.Join(dir, path)); now != inodes[path] {
				t.Errorf("%s is another directory: inode %d, before: %d", path, now, inodes[path])
			}
		}
		p.MountPoints = []string{"data"}
		write(t, dir, p) // check finds that run does not exist any more
	})
}

func TestDirectoriesBeneathAMountPointStayWithIt(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		dir := newVolume(t, "size=1m")
		p := payload(file("a", "1"))
		p.Layout = layout
		p.MountPoints, p.Directories = []string{"data", "run/m"}, []string{"data", "data/sub", "run", "run/n", "other"}
		write(t, dir, p)
		isMemory(t, dir, p)
		before := inode(t, filepath.Join(dir, "data", "sub"))
		p.Files = []File{file("a", "2")}
		write(t, dir, p)
		if now := inode(t, filepath.Join(dir, "data", "sub")); now != before {
			t.Errorf("data/sub is another directory: inode %d, before: %d", now, before)
		}
	})
}

func TestMountPointsThatAreWrongAreMadeAnew(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(dir string) error
	}{
		{"gone", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "m")) }},
		{"gone further down", func(dir string) error { return os.Remove(filepath.Join(dir, "m/n")) }},
		{"a file", func(dir string) error {
			return errors.Join(os.RemoveAll(filepath.Join(dir, "m")), os.WriteFile(filepath.Join(dir, "m"), []byte("x"), 0o600))
		}},
		{"a link out of the volume", func(dir string) error {
			outside := filepath.Join(filepath.Dir(dir), "outside")
			return errors.Join(os.RemoveAll(filepath.Join(dir, "m")), os.Mkdir(outside, 0o711),
				os.Symlink(outside, filepath.Join(dir, "m")))
		}},
		{"another's", func(dir string) error { return os.Chown(filepath.Join(dir, "m/n"), 99, 99) }},
		{"of another mode", func(dir string) error { return os.Chmod(filepath.Join(dir, "m/n"), 0o777) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newVolume(t, "size=1m")
			p := payload(file("a", "1"))
			p.MountPoints = []string{"m/n"}
			write(t, dir, p)
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if write(t, dir, p) {
				t.Error("a mount point alone made a new version")
			}
			outside := filepath.Join(filepath.Dir(dir), "outside")
			if entries, err := os.ReadDir(outside); err == nil {
				if e := look(t, outside); len(entries) > 0 || e.mode != "0711" || e.uid != 0 {
					t.Errorf("what the link named was touched: %+v, %v", e, entries)
				}
			}
		})
	}
}

func TestWhatCannotBeADirectoryIsRefusedAndLeavesTheOldVersion(t *testing.T) {
	bad := map[string]string{
		"nothing": "", "the root": ".", "absolute": "/etc", "above": "..", "leads out": "a/../../x", "not clean": "a//b",
		"with a slash at its end": "a/",
		"of the layout":           "..data", "with NUL": "a\x00b", "with a name that is too long": strings.Repeat("n", 256),
		"too long": strings.Repeat("n/", 2048) + "n",
	}
	type change struct {
		change func(p *Payload)
		says   string
	}
	changes := map[string]change{
		"a mount point at a file": {func(p *Payload) { p.MountPoints = []string{"a"} },
			`another volume is mounted at "a"`},
		"a mount point beneath a file": {func(p *Payload) { p.MountPoints = []string{"a/m"} },
			`another volume is mounted at "a/m"`},
		"a mount point in a file's directory": {func(p *Payload) { p.MountPoints = []string{"d/m"} },
			`needs a directory "d" of its own`},
	}
	for name, path := range bad {
		changes["a mount point: "+name] = change{func(p *Payload) { p.MountPoints = []string{"m", path} }, "path"}
		changes["a directory: "+name] = change{func(p *Payload) { p.Directories = []string{"e", path} }, "path"}
	}
	for name, test := range changes {
		t.Run(name, func(t *testing.T) {
			dir := newVolume(t, "size=1m")
			old := payload(file("a", "1"), file("d/b", "2"))
			write(t, dir, old)
			before := snapshot(t, dir)
			next := payload(file("a", "new"), file("d/b", "new"))
			test.change(&next)
			changed, err := tryWrite(t, dir, next)
			if changed || !errors.Is(err, ErrBadPayload) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, %v, want ErrBadPayload that says %q", changed, err, test.says)
			}
			sameSnapshot(t, "a payload that is refused", before, snapshot(t, dir))
		})
	}
}
