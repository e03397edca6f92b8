// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// version returns a payload of which each file shows the number of the version. The number determines the names, owners
// and modes.
func version(i int) Payload {
	text := fmt.Sprintf("%d\n%s", i, strings.Repeat("x", i%3*3000))
	mode := []uint32{0o400, 0o440, 0o600, 0o644}[i%4]
	p := Payload{DirMode: []uint32{0o755, 0o711, 0o750}[i%3], UID: uint32(1000 + i%5), GID: uint32(2000 + i%7)}
	names := []string{"a", "b", "nested/c", "nested/deep/d"}
	if i%2 == 1 {
		names = append(names, "odd", "nested/odd")
	}
	for _, name := range names {
		p.Files = append(p.Files, File{Path: name, Data: []byte(text), Mode: mode, UID: p.UID + 10, GID: p.GID + 10})
	}
	return p
}

var errGone = errors.New("the version was replaced meanwhile")

// readVersion opens ..data once, reads all files through it, and returns the number of the version.
func readVersion(dir string) (int, error) {
	data, err := os.Open(filepath.Join(dir, "..data"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, errGone // The directory was removed after its link was read.
	}
	if err != nil {
		return 0, err
	}
	defer data.Close()
	first, err := readFile(data, "a")
	if err != nil {
		return 0, err
	}
	var i int
	if _, err := fmt.Sscanf(first.content, "%d\n", &i); err != nil {
		return 0, fmt.Errorf("read %.20q: %w", first.content, err)
	}
	p := version(i)
	for _, f := range p.Files {
		got, err := readFile(data, f.Path)
		if err != nil {
			return i, err
		}
		if want := (entry{unix.S_IFREG, fmt.Sprintf("%04o", f.Mode), f.UID, f.GID, string(f.Data)}); got != want {
			return i, fmt.Errorf("version %d, %s: got %.80v, want %.80v", i, f.Path, fmt.Sprint(got), fmt.Sprint(want))
		}
	}
	for name, want := range map[string][]string{".": {"a", "b", "nested"}, "nested": {"c", "deep"}} {
		if i%2 == 1 {
			want = append(want, "odd")
		}
		got, err := readDir(data, name)
		if err != nil {
			return i, err
		}
		if !strings.HasPrefix(got, fmt.Sprintf("%04o %d:%d ", p.DirMode, p.UID, p.GID)) {
			return i, fmt.Errorf("version %d: directory %q is %s", i, name, got)
		}
		if !strings.HasSuffix(got, fmt.Sprint(want)) {
			// If names are missing, the old generation is just being removed. That is no mix of versions.
			if err := stillThere(data, p); err != nil {
				return i, err
			}
			return i, fmt.Errorf("version %d: directory %q is %s, want %v", i, name, got, want)
		}
	}
	return i, nil
}

func stillThere(data *os.File, p Payload) error {
	for _, f := range p.Files {
		var st unix.Stat_t
		if err := unix.Fstatat(int(data.Fd()), f.Path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return errGone
		}
	}
	return nil
}

func openIn(data *os.File, name string, flags int) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(int(data.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, st, errGone
	}
	if err != nil {
		return nil, st, fmt.Errorf("open %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, st, err
	}
	return f, st, nil
}

func readFile(data *os.File, name string) (entry, error) {
	f, st, err := openIn(data, name, unix.O_RDONLY)
	if err != nil {
		return entry{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return entry{st.Mode & unix.S_IFMT, fmt.Sprintf("%04o", st.Mode&0o7777), st.Uid, st.Gid, string(b)}, err
}

func readDir(data *os.File, name string) (string, error) {
	f, st, err := openIn(data, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if errors.Is(err, os.ErrNotExist) {
		err = errGone // The directory was removed after it was opened.
	}
	sort.Strings(names)
	return fmt.Sprintf("%04o %d:%d %v", st.Mode&0o7777, st.Uid, st.Gid, names), err
}

func TestReadersNeverSeeAMix(t *testing.T) {
	testkit.NothingLeft(t)
	const writes, readers = 500, 4
	dir := newVolume(t, "")
	write(t, dir, version(0))
	var stop atomic.Bool
	var whole, gone atomic.Int64
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			last := -1
			for final := false; !final; {
				final = stop.Load()
				i, err := readVersion(dir)
				switch {
				case errors.Is(err, errGone) && !final:
					gone.Add(1)
				case err != nil:
					t.Error(err)
					return
				case i < last:
					t.Errorf("version %d after version %d", i, last)
				default:
					last = i
					whole.Add(1)
				}
			}
			if last != writes {
				t.Errorf("version %d at the end, want %d", last, writes)
			}
		})
	}
	// This reader uses the visible names, like most programs. A file is never a part of a version, never belongs to
	// another version, and never has a wider mode.
	wg.Go(func() {
		for !stop.Load() {
			f, err := os.Open(filepath.Join(dir, "nested/c"))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			var st unix.Stat_t
			err = unix.Fstat(int(f.Fd()), &st)
			b, readErr := io.ReadAll(f)
			f.Close()
			var i int
			if _, scanErr := fmt.Sscanf(string(b), "%d\n", &i); err != nil || readErr != nil || scanErr != nil {
				t.Errorf("%v, %v, %v", err, readErr, scanErr)
				return
			}
			want := version(i).Files[2]
			if string(b) != string(want.Data) || st.Uid != want.UID || st.Gid != want.GID || st.Mode&0o7777 != want.Mode {
				t.Errorf("version %d: %d:%d %04o, %d bytes", i, st.Uid, st.Gid, st.Mode&0o7777, len(b))
			}
		}
	})
	// This reader checks that ..data always exists.
	wg.Go(func() {
		for !stop.Load() {
			if target, err := os.Readlink(filepath.Join(dir, "..data")); err != nil || !isGeneration(target) {
				t.Errorf("..data: %q, %v", target, err)
				return
			}
		}
	})
	for i := 1; i <= writes; i++ {
		if changed, err := tryWrite(t, dir, version(i)); err != nil || !changed {
			t.Errorf("write %d: changed %v, %v", i, changed, err)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	check(t, dir, version(writes))
	t.Logf("%d whole versions read, %d replaced while being read", whole.Load(), gone.Load())
}

// writeForEver is a helper process that writes version after version to args[0], in the layout args[1].
func writeForEver(args []string) error {
	fd, err := unix.Open(args[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	next := version
	for layout, name := range layoutNames() {
		if name == args[1] && layout != Links {
			next = func(i int) Payload { return steady(layout, i) }
		}
	}
	for i := 1; ; i++ {
		if _, err := Write(fd, next(i)); err != nil {
			return err
		}
	}
}

// killWriter starts a process that writes version after version, and kills it after a number of changes of the
// directory.
func killWriter(t *testing.T, dir string, layout Layout, changes int) {
	t.Helper()
	events := watch(t, dir)
	cmd := testkit.Helper(t, false, "writer", dir, layoutNames()[layout])
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	testkit.Eventually(t, 20*time.Second, "the writer to write",
		func() bool { seen += len(events()); return seen > changes })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the writer ended by itself: %v", err)
	}
}

// leftOver reports whether a killed writer has left files.
func leftOver(t *testing.T, dir string, pattern string, most int) bool {
	t.Helper()
	entries, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries) > most
}

// TestKilledWriter kills a process after each number of changes that it makes to the directory, and then writes.
func TestKilledWriter(t *testing.T) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "")
	leftOvers := 0
	for kill := range 40 {
		write(t, dir, version(0))
		killWriter(t, dir, Links, kill)
		// Before the next write, a reader sees one complete version.
		i, err := readVersion(dir)
		if err != nil {
			t.Fatalf("after the kill: %v", err)
		}
		if leftOver(t, dir, "..2*", 1) {
			leftOvers++
		}
		// The next write is of the same version, as after a restart, or of another one.
		if kill%2 == 0 {
			write(t, dir, version(i))
		}
		write(t, dir, version(i+1))
	}
	if leftOvers == 0 {
		t.Error("no kill left anything behind: the test shows nothing")
	}
	t.Logf("%d of 40 kills left a second generation", leftOvers)
}

// TestKilledWriterOfPlainFiles does the same for the layouts Files and InPlace. Finish completes the version.
func TestKilledWriterOfPlainFiles(t *testing.T) {
	for _, layout := range []Layout{Files, InPlace} {
		t.Run(layoutNames()[layout], func(t *testing.T) {
			testkit.NothingLeft(t)
			dir := newVolume(t, "")
			leftOvers := 0
			for kill := range 40 {
				write(t, dir, steady(layout, 0))
				killWriter(t, dir, layout, kill)
				if leftOver(t, dir, "..*", 0) {
					leftOvers++
				}
				inDirectory(t, dir, func(d directory) error { return Finish(d.fd(), layout) })
				text, err := os.ReadFile(filepath.Join(dir, "a"))
				if err != nil {
					t.Fatal(err)
				}
				i, err := number(text, true)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range steady(layout, i).Files {
					if got := look(t, filepath.Join(dir, f.Path)); got != fileEntry(f) {
						t.Fatalf("kill %d: %s is not version %d: %.50v", kill, f.Path, i, got)
					}
				}
				write(t, dir, steady(layout, i+1))
			}
			if leftOvers == 0 {
				t.Error("no kill left anything behind: the test shows nothing")
			}
			t.Logf("%d of 40 kills left something", leftOvers)
		})
	}
}
