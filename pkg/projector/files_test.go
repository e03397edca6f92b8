// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// plain returns keys() in the layout Files or InPlace.
func plain(layout Layout) Payload {
	p := keys()
	p.Layout = layout
	return p
}

// TestGuarantees checks the table in the package comment: the effect of a change on a process that has the file open,
// mounted or watched.
func TestGuarantees(t *testing.T) {
	type seen struct {
		sameInode, throughDescriptor, throughBind bool
		onFile, onDirectory                       string
	}
	for layout, want := range map[Layout]seen{
		Links:   {onFile: "ATTRIB", onDirectory: "MOVED_TO ..data"},
		Files:   {onFile: "ATTRIB", onDirectory: "MOVED_TO id_rsa"},
		InPlace: {true, true, true, "MODIFY CLOSE_WRITE", "MODIFY id_rsa"},
	} {
		t.Run(layoutNames()[layout], func(t *testing.T) {
			testkit.NothingLeft(t)
			dir, p := newVolume(t, ""), plain(layout)
			write(t, dir, p)
			path := filepath.Join(dir, "id_rsa")
			before := targetInode(t, path)
			open, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			bound := bind(t, path)
			onFile, onDirectory := events(t, path), events(t, dir)

			next := plain(layout)
			next.Files[0].Data = []byte("renewed")
			write(t, dir, next)
			var got seen
			got.sameInode = targetInode(t, path) == before
			got.throughDescriptor = contentOf(t, open) == "renewed"
			got.throughBind = look(t, bound).content == "renewed"
			open.Close()
			got.onFile, got.onDirectory = want.onFile, want.onDirectory
			for mask := range strings.FieldsSeq(want.onFile) {
				if !slices.Contains(onFile(), mask) {
					got.onFile = fmt.Sprint(onFile())
				}
			}
			if !slices.Contains(onDirectory(), want.onDirectory) {
				got.onDirectory = fmt.Sprint(onDirectory())
			}
			if layout != InPlace && slices.Contains(onFile(), "MODIFY") {
				t.Error("the old file was written to")
			}
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestInPlaceEvents checks that inotify reports a change once, and only after the new content is there.
func TestInPlaceEvents(t *testing.T) {
	dir, p := newVolume(t, ""), plain(InPlace)
	write(t, dir, p)
	for _, length := range []int{9000, 9001, 20, 100000} {
		p.Files[0].Data = []byte(strings.Repeat(fmt.Sprint(length%7), length))
		happened := events(t, filepath.Join(dir, "id_rsa"))
		if _, err := tryWrite(t, dir, p); err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(happened(), func(event string) bool { return event == "" }) // "" is open, read, close
		if want := []string{"MODIFY", "CLOSE_WRITE"}; !slices.Equal(got, want) {
			t.Errorf("%d bytes: events %q, want %q", length, got, want)
		}
	}
}

// targetInode returns the number of the inode at a path.
func targetInode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func contentOf(t *testing.T, f *os.File) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 0)
	if n == 0 {
		t.Fatal(err)
	}
	return string(b[:n])
}

// bind mounts a file, as kubelet does for subPath, and returns the path of the mount.
func bind(t *testing.T, path string) string {
	t.Helper()
	bound := filepath.Join(t.TempDir(), "bound")
	if err := os.WriteFile(bound, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bound, 0); err != nil {
			t.Error(err)
		}
	})
	return bound
}

// events watches a path. It returns a function that returns the events since the start, as "MOVED_TO name".
func events(t *testing.T, path string) func() []string {
	t.Helper()
	in, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(in, path, unix.IN_ALL_EVENTS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(in) })
	names := map[uint32]string{
		unix.IN_MODIFY: "MODIFY", unix.IN_CLOSE_WRITE: "CLOSE_WRITE", unix.IN_ATTRIB: "ATTRIB",
		unix.IN_DELETE_SELF: "DELETE_SELF", unix.IN_MOVED_TO: "MOVED_TO",
	}
	var all []string
	return func() []string {
		buf := make([]byte, 1<<16)
		n, err := unix.Read(in, buf)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		for at := 0; at < n; {
			length := int(le32(buf[at+12:]))
			name := strings.TrimRight(string(buf[at+unix.SizeofInotifyEvent:][:length]), "\x00")
			all = append(all, strings.TrimSpace(names[le32(buf[at+4:])]+" "+name))
			at += unix.SizeofInotifyEvent + length
		}
		return all
	}
}

// TestUnchangedFilesAreNotTouched: a program that reloads after a change of its file must not reload for another file.
func TestUnchangedFilesAreNotTouched(t *testing.T) {
	for _, layout := range []Layout{Files, InPlace} {
		dir := newVolume(t, "")
		write(t, dir, plain(layout))
		before := snapshot(t, dir)
		next := plain(layout)
		next.Files[2].Data = []byte("another")
		changed := next.Files[2].Path
		write(t, dir, next)
		after := snapshot(t, dir)
		for _, f := range next.Files {
			if same := before[f.Path] == after[f.Path]; same == (f.Path == changed) {
				t.Errorf("layout %s, %s: untouched is %v", layoutNames()[layout], f.Path, same)
			}
		}
	}
}

// TestInPlaceRightsThatChange checks that a process that lost the right to open a file sees no new content through an
// old descriptor.
func TestInPlaceRightsThatChange(t *testing.T) {
	for name, change := range map[string]func(*File){
		"mode":  func(f *File) { f.Mode = 0o600 },
		"owner": func(f *File) { f.UID++ },
		"group": func(f *File) { f.GID++ },
	} {
		t.Run(name, func(t *testing.T) {
			dir := newVolume(t, "")
			write(t, dir, plain(InPlace))
			open, err := os.Open(filepath.Join(dir, "id_rsa"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			old := contentOf(t, open)
			next := plain(InPlace)
			next.Files[0].Data = []byte("renewed")
			change(&next.Files[0])
			write(t, dir, next)
			if got := contentOf(t, open); got != old {
				t.Errorf("the descriptor shows %q", got)
			}
		})
	}
}

// steady returns a version of a payload whose owners and modes stay the same. Each line of each file has the number of
// the version.
func steady(layout Layout, i int) Payload {
	p := Payload{Layout: layout, DirMode: 0o755, UID: 1000, GID: 2000}
	for n, name := range []string{"a", "nested/b", "nested/deep/c"} {
		lines := 1000 + (i+n)%3*1000 // 10 to 30 KB
		p.Files = append(p.Files, File{
			Path: name, Mode: 0o400, UID: 1000, GID: 2000, Data: []byte(strings.Repeat(fmt.Sprintf("%09d\n", i), lines)),
		})
	}
	return p
}

// steadyMin is the length of the shortest file of a steady payload.
const steadyMin = 10 * 1000

// number returns the number of the version at the beginning of a text. If whole is true and a line has another number,
// it returns an error.
func number(text []byte, whole bool) (int, error) {
	var i int
	if _, err := fmt.Sscanf(string(text[:min(len(text), 10)]), "%09d\n", &i); err != nil {
		return 0, fmt.Errorf("read %.20q: %w", text, err)
	}
	if line := fmt.Sprintf("%09d\n", i); whole && strings.Trim(strings.ReplaceAll(string(text), line, ""), "\x00") != "" {
		return i, fmt.Errorf("version %d is mixed with another", i)
	}
	return i, nil
}

// TestReadersOfPlainFiles runs readers that never stop. Each file always exists, never gets older, and is never shorter
// than the shortest version. With Files, each read shows one version.
func TestReadersOfPlainFiles(t *testing.T) {
	const writes = 400
	for _, layout := range []Layout{Files, InPlace} {
		t.Run(layoutNames()[layout], func(t *testing.T) {
			testkit.NothingLeft(t)
			dir := newVolume(t, "")
			write(t, dir, steady(layout, 0))
			var stop atomic.Bool
			var reads atomic.Int64
			var readers sync.WaitGroup
			for _, f := range steady(layout, 0).Files {
				readers.Go(func() {
					last := 0
					for final := false; !final; reads.Add(1) {
						final = stop.Load()
						text, err := os.ReadFile(filepath.Join(dir, f.Path))
						if err != nil {
							t.Error(err)
							return
						}
						i, err := number(text, layout == Files || final)
						if err != nil || i < last || len(text) < steadyMin || final && i != writes {
							t.Errorf("%s: version %d after version %d, %d bytes, error %v", f.Path, i, last, len(text), err)
							return
						}
						last = i
					}
				})
			}
			for i := 1; i <= writes; i++ {
				if changed, err := tryWrite(t, dir, steady(layout, i)); err != nil || !changed {
					t.Errorf("write %d: changed %v, %v", i, changed, err)
					break
				}
			}
			stop.Store(true)
			readers.Wait()
			check(t, dir, steady(layout, writes))
			if reads.Load() < writes/10 {
				t.Errorf("only %d reads during %d writes show nothing", reads.Load(), writes)
			}
		})
	}
}

// TestFinish makes what a killed writer can leave, and completes it without the payload.
func TestFinish(t *testing.T) {
	kills := map[string]func(t *testing.T, dir string){
		"before the first file": func(*testing.T, string) {},
		"after a file": func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, pendingDir, "a"), filepath.Join(dir, "a")); err != nil {
				t.Fatal(err)
			}
		},
		"in the middle of a file that is overwritten": func(t *testing.T, dir string) {
			text, err := os.ReadFile(filepath.Join(dir, pendingDir, "nested/b"))
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(filepath.Join(dir, "nested/b"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Write(text[:len(text)/2]); err != nil {
				t.Fatal(err)
			}
		},
		"after all files": func(t *testing.T, dir string) {
			for _, f := range steady(Files, 0).Files {
				if err := os.Rename(filepath.Join(dir, pendingDir, f.Path), filepath.Join(dir, f.Path)); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
	for _, layout := range []Layout{Files, InPlace} {
		for _, kill := range slices.Sorted(maps.Keys(kills)) {
			t.Run(layoutNames()[layout]+", "+kill, func(t *testing.T) {
				testkit.NothingLeft(t)
				dir := newVolume(t, "")
				write(t, dir, steady(layout, 1))
				inDirectory(t, dir, func(d directory) error {
					tree, _, err := newTrees(steady(layout, 2))
					if err != nil {
						return err
					}
					return stage(d, tree, steady(layout, 2))
				})
				kills[kill](t, dir)
				inDirectory(t, dir, func(d directory) error { return Finish(d.fd(), layout) })
				check(t, dir, steady(layout, 2))
			})
		}
	}
	t.Run("nothing is left", func(t *testing.T) {
		dir := newVolume(t, "")
		write(t, dir, keys())
		before := snapshot(t, dir)
		for _, layout := range []Layout{Links, Files, InPlace} {
			inDirectory(t, dir, func(d directory) error { return Finish(d.fd(), layout) })
		}
		sameSnapshot(t, "Finish without ..pending", before, snapshot(t, dir))
	})
}

func inDirectory(t *testing.T, path string, f func(directory) error) {
	t.Helper()
	d, err := openDir(unix.AT_FDCWD, path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := f(d); err != nil {
		t.Fatal(err)
	}
}
