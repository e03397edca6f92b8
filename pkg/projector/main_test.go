// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"writer": writeForEver})
	testkit.RunInMountNamespace(m)
}

// newVolume mounts a tmpfs and returns the path. The mount is two directories deep below a directory of its own, so
// that there are files outside of the volume.
func newVolume(t testing.TB, options string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pod", "mount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The mount has dev and suid, because the package must not depend on mount flags.
	if err := unix.Mount("projector-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount tmpfs with %q: %v", options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func tryWrite(t testing.TB, dir string, p Payload) (bool, error) {
	t.Helper()
	// The descriptor of the root of a detached mount is an O_PATH descriptor, too.
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return Write(fd, p)
}

// write writes p, checks the resulting files, and returns whether the write changed anything.
func write(t testing.TB, dir string, p Payload) bool {
	t.Helper()
	changed, err := tryWrite(t, dir, p)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	check(t, dir, p)
	return changed
}

// entry is the result of lstat and a read of a file, in a form for messages.
type entry struct {
	kind     uint32
	mode     string
	uid, gid uint32
	content  string // of a file; for a link, its target
}

func look(t testing.TB, path string) entry {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	e := entry{kind: st.Mode & unix.S_IFMT, mode: fmt.Sprintf("%04o", st.Mode&0o7777), uid: st.Uid, gid: st.Gid}
	switch e.kind {
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		e.content = target
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		e.content = string(b)
	}
	return e
}

var generationForm = regexp.MustCompile(`^\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.\d{1,10}$`)

// forEachLayout runs a test with each layout.
func forEachLayout(t *testing.T, test func(t *testing.T, layout Layout)) {
	for layout, name := range layoutNames() {
		t.Run(name, func(t *testing.T) { test(t, layout) })
	}
}

func layoutNames() map[Layout]string {
	return map[Layout]string{Links: "links", Files: "files", InPlace: "in-place"}
}

// check fails t unless dir has exactly the files of p in its layout, with owners and modes.
func check(t testing.TB, dir string, p Payload) {
	t.Helper()
	var want map[string]entry
	if p.Layout == Links {
		want = wantLinks(t, dir, p)
	} else {
		want = wantFiles(p)
	}
	got := map[string]entry{}
	for _, path := range walk(t, dir) {
		got[path] = look(t, filepath.Join(dir, path))
	}
	differ(t, dir+" is not as it should be (want, got)", want, got)
}

// directoryEntry returns the entry of a directory of p.
func directoryEntry(p Payload) entry {
	return entry{kind: unix.S_IFDIR, mode: fmt.Sprintf("%04o", p.DirMode), uid: p.UID, gid: p.GID}
}

func fileEntry(f File) entry {
	return entry{unix.S_IFREG, fmt.Sprintf("%04o", f.Mode), f.UID, f.GID, string(f.Data)}
}

// addWithParents adds a directory, and its parent directories up to root.
func addWithParents(want map[string]entry, path, root string, directory entry) {
	for ; path != root; path = filepath.Dir(path) {
		want[path] = directory
	}
}

// beneathFile reports whether a path of Directories is the path of a file, or beneath a file.
func beneathFile(p Payload, path string) bool {
	return slices.ContainsFunc(p.Files, func(f File) bool { return path == f.Path || strings.HasPrefix(path, f.Path+"/") })
}

// wantFiles returns the content of a directory with p in the layout Files or InPlace.
func wantFiles(p Payload) map[string]entry {
	directory := directoryEntry(p)
	want := map[string]entry{".": directory}
	for _, path := range slices.Concat(p.Directories, p.MountPoints) {
		if !beneathFile(p, path) {
			addWithParents(want, path, ".", directory)
		}
	}
	for _, f := range p.Files {
		addWithParents(want, filepath.Dir(f.Path), ".", directory)
		want[f.Path] = fileEntry(f)
	}
	return want
}

// wantLinks returns the content of a directory with p in AtomicWriter's layout.
func wantLinks(t testing.TB, dir string, p Payload) map[string]entry {
	t.Helper()
	generation, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		t.Fatalf("no link ..data: %v", err)
	}
	if !generationForm.MatchString(generation) {
		t.Errorf("..data names %q, which has not the form of a generation", generation)
	}
	directory := directoryEntry(p)
	link := entry{kind: unix.S_IFLNK, mode: "0777", uid: p.UID, gid: p.GID}
	to := func(target string) entry { l := link; l.content = target; return l }
	want := map[string]entry{".": directory, "..data": to(generation), generation: directory}
	visible := func(path string) (inGeneration string) {
		want[first(path)] = to("..data/" + first(path))
		return generation + "/" + path
	}
	stays := map[string]bool{}
	for _, path := range p.MountPoints {
		stays[first(path)] = true
		addWithParents(want, path, ".", directory)
	}
	for _, path := range p.Directories {
		switch {
		case beneathFile(p, path):
		case stays[first(path)]:
			addWithParents(want, path, ".", directory)
		default:
			addWithParents(want, visible(path), generation, directory)
		}
	}
	for _, f := range p.Files {
		path := visible(f.Path)
		addWithParents(want, filepath.Dir(path), generation, directory)
		want[path] = fileEntry(f)
		if b, err := os.ReadFile(filepath.Join(dir, f.Path)); err != nil {
			t.Errorf("read by the visible name: %v", err)
		} else if !bytes.Equal(b, f.Data) {
			t.Errorf("%s: %d bytes by the visible name, want %d", f.Path, len(b), len(f.Data))
		}
	}
	return want
}

func walk(t testing.TB, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		paths = append(paths, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func union[V any](a, b map[string]V) []string {
	var keys []string
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// touched is the data of a file that changes when the file is replaced or written, or gets another owner or mode.
type touched struct {
	dev, ino, nlink uint64
	ctime           unix.Timespec
	entry           entry
}

func snapshot(t testing.TB, dir string) map[string]touched {
	t.Helper()
	all := map[string]touched{}
	for _, path := range walk(t, dir) {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, path), &st); err != nil {
			t.Fatal(err)
		}
		all[path] = touched{st.Dev, st.Ino, uint64(st.Nlink), st.Ctim, look(t, filepath.Join(dir, path))}
	}
	return all
}

func sameSnapshot(t testing.TB, what string, before, after map[string]touched) {
	t.Helper()
	differ(t, what+" touched (before, after)", before, after)
}

// differ fails t and prints the first differences of two maps.
func differ[V comparable](t testing.TB, what string, a, b map[string]V) {
	t.Helper()
	var report []string
	for _, key := range union(a, b) {
		inA, okA := a[key]
		inB, okB := b[key]
		if inA == inB && okA == okB {
			continue
		}
		if len(report) == 8 {
			report = append(report, "...")
			break
		}
		// The beginning of a long text is enough.
		show := func(v V, ok bool) string {
			if !ok {
				return "nothing"
			}
			return fmt.Sprintf("%.200s", fmt.Sprintf("%+v", v))
		}
		report = append(report, fmt.Sprintf("%.200q: %s, %s", key, show(inA, okA), show(inB, okB)))
	}
	if report != nil {
		t.Errorf("%s:\n%s", what, strings.Join(report, "\n"))
	}
}

// within runs f and fails t if f takes longer than bound. A wrong implementation that blocks on a FIFO never returns.
func within(t testing.TB, bound time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(bound):
		t.Fatalf("not done after %v", bound)
	}
}

func file(path, data string) File {
	return File{Path: path, Data: []byte(data), Mode: 0o400, UID: 1000, GID: 2000}
}

func payload(files ...File) Payload {
	return Payload{Files: files, DirMode: 0o755, UID: 1000, GID: 2000}
}

// keys returns a usual payload.
func keys() Payload {
	return payload(file("id_rsa", "private"), file("id_rsa.pub", "public"), file("conf/d/ten.conf", "10"),
		file("conf/main.conf", "main"))
}
