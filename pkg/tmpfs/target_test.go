// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// withoutCapability runs f in a thread whose child processes can't get a capability.
func withoutCapability(t *testing.T, capability uintptr, f func() ([]byte, error)) string {
	t.Helper()
	var out []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // It is never unlocked, so that the thread ends with the goroutine.
		if err = unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err == nil {
			out, err = f()
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestOpenPoint(t *testing.T) {
	testkit.NothingLeft(t)
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755),
		os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "absolute")),
		os.Symlink("a", filepath.Join(dir, "relative")),
		os.Symlink("b", filepath.Join(dir, "a/link")),
		os.Symlink("nowhere", filepath.Join(dir, "dangling")),
		os.Symlink("loop", filepath.Join(dir, "loop")),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var unclean = errors.New("not an absolute clean path")
	for path, want := range map[string]error{
		dir + "/a":            nil,
		dir + "/a/b/c":        nil,
		dir + "/missing":      nil,
		dir + "/relative":     nil, // The last component is a link: opening the target refuses it.
		"/top-level":          nil,
		dir + "/missing/b":    fs.ErrNotExist,
		dir + "/a/missing/c":  fs.ErrNotExist,
		dir + "/absolute/b":   ErrSymlink,
		dir + "/relative/b":   ErrSymlink,
		dir + "/relative/b/c": ErrSymlink,
		dir + "/a/link/c":     ErrSymlink,
		dir + "/dangling/b":   ErrSymlink,
		dir + "/loop/b":       ErrSymlink,
		"/proc/self/root/tmp": ErrSymlink,
		"/proc/1/cwd/x":       ErrSymlink,
		dir + "/file/b":       ErrNotDirectory,
		dir + "/file/b/c":     ErrNotDirectory,
		dir + "/a\x00/b":      unix.EINVAL,
		dir + "/" + strings.Repeat("n", 256) + "/b": unix.ENAMETOOLONG,
		"":                unclean,
		"/":               unclean,
		".":               unclean,
		"..":              unclean,
		"a":               unclean,
		"./a":             unclean,
		"a/b":             unclean,
		dir + "/a/":       unclean,
		dir + "//a":       unclean,
		dir + "/./a":      unclean,
		dir + "/a/..":     unclean,
		dir + "/a/../a/b": unclean,
		dir + "/../a":     unclean,
		"/..":             unclean,
		"//a":             unclean,
	} {
		p, err := OpenTarget(path)
		if err == nil {
			p.Close()
		}
		if errors.Is(want, unclean) {
			if err == nil || !strings.Contains(err.Error(), unclean.Error()) {
				t.Errorf("%q: %v, want %v", path, err, want)
			}
			continue
		}
		if !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), filepath.Dir(path)) {
			t.Errorf("%q: %v, want %v with the path", path, err, want)
		}
	}
}

func TestMake(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(path string) error
		want    error
	}{
		"nothing there":      {func(string) error { return nil }, nil},
		"an empty directory": {func(path string) error { return os.Mkdir(path, 0o700) }, nil},
		"a directory with a file": {func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(path+"/f", nil, 0o600))
		}, ErrNotEmpty},
		"a directory with a hidden one": {func(path string) error { return os.MkdirAll(path+"/.d", 0o700) }, ErrNotEmpty},
		"a file":                        {func(path string) error { return os.WriteFile(path, nil, 0o600) }, ErrNotDirectory},
		"a FIFO":                        {func(path string) error { return unix.Mkfifo(path, 0o600) }, ErrNotDirectory},
		"a link to an empty directory": {func(path string) error { return os.Symlink(filepath.Dir(path), path) },
			ErrSymlink},
		"a link to nowhere":  {func(path string) error { return os.Symlink("nowhere", path) }, ErrSymlink},
		"no parent any more": {func(path string) error { return os.Remove(filepath.Dir(path)) }, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			defer unix.Umask(unix.Umask(0))
			p, path := place(t)
			if err := c.prepare(path); err != nil {
				t.Fatal(err)
			}
			_, statErr := os.Lstat(path)
			err := p.Mkdir()
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Fatalf("got %v, want %v with the path", err, c.want)
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); c.want == nil && (err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR) {
				t.Errorf("afterwards: mode %o, %v", st.Mode, err)
			}
			if made := c.want == nil && statErr != nil; made && (st.Mode&0o7777 != 0o750 || st.Uid != 0 || st.Gid != 0) {
				t.Errorf("made with mode %o, owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
			}
		})
	}
}

func TestRemove(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(p *Target, path string) error
		want    error
	}{
		"nothing there":      {func(*Target, string) error { return nil }, nil},
		"an empty directory": {func(p *Target, _ string) error { return p.Mkdir() }, nil},
		"a directory with a file": {func(_ *Target, path string) error { return os.MkdirAll(path+"/d", 0o700) },
			unix.ENOTEMPTY},
		"a mount": {func(p *Target, path string) error {
			return errors.Join(p.Mkdir(), unix.Mount("x", path, "tmpfs", 0, ""))
		}, unix.EBUSY},
		"a file": {func(_ *Target, path string) error { return os.WriteFile(path, nil, 0o600) }, unix.ENOTDIR},
		"a link to a directory": {func(_ *Target, path string) error { return os.Symlink(filepath.Dir(path), path) },
			unix.ENOTDIR},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			p, path := place(t)
			if err := c.prepare(p, path); err != nil {
				t.Fatal(err)
			}
			if err := p.Remove(); !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %v with the path", err, c.want)
			}
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) != (c.want == nil) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// TestAttachWhileThePathIsExchanged exchanges a directory of the path, or the target itself, with a link to a victim
// again and again (CVE-2021-25741). A goroutine takes the part of another process. No mount may ever appear at the
// victim.
func TestAttachWhileThePathIsExchanged(t *testing.T) {
	for name, c := range map[string]struct{ directory, target string }{
		"the target itself":   {"pods/volume/mount", "pods/volume/mount"},
		"its parent":          {"pods/volume", "pods/volume/mount"},
		"the parent's parent": {"pods", "pods/volume/mount"},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			base := t.TempDir()
			exchanged, victim, link := filepath.Join(base, c.directory), filepath.Join(base, "victim"),
				filepath.Join(base, "link")
			rest := strings.TrimPrefix(c.target, c.directory)
			for _, err := range []error{
				os.MkdirAll(filepath.Join(base, c.target), 0o755),
				os.MkdirAll(filepath.Join(victim, rest), 0o755),
				os.Symlink(victim, link),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			var pause sync.Mutex // stops the exchanges during checks and cleanup
			var stop atomic.Bool
			var exchanges atomic.Int64
			var wg sync.WaitGroup
			wg.Go(func() {
				for !stop.Load() {
					pause.Lock()
					// EBUSY while the mount is there.
					if unix.Renameat2(unix.AT_FDCWD, exchanged, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE) == nil {
						exchanges.Add(1)
					}
					pause.Unlock()
				}
			})
			attached, refused := 0, 0
			for n := 0; n < 300 || n < 1000 && (attached == 0 || refused == 0); n++ {
				if attachOnce(t, filepath.Join(base, c.target)) {
					attached++
				} else {
					refused++
				}
				// The correct directory may have the name "link" now. The victim never has another name.
				pause.Lock()
				for _, m := range mountsAt(t, base) {
					if strings.HasPrefix(m.point, victim) {
						t.Errorf("mounted on the victim: %s", m.wholeForLog)
					}
					if err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
						t.Error(err)
					}
				}
				pause.Unlock()
			}
			stop.Store(true)
			wg.Wait()
			if attached == 0 || refused == 0 || exchanges.Load() == 0 {
				t.Errorf("%d attached, %d refused, %d exchanges: one of them is 0, so nothing was shown", attached, refused,
					exchanges.Load())
			}
			t.Logf("%d attached, %d refused, %d exchanges", attached, refused, exchanges.Load())
		})
	}
}

// attachOnce publishes at path and reports whether that succeeded.
func attachOnce(t *testing.T, path string) bool {
	t.Helper()
	p, err := OpenTarget(path)
	if err == nil {
		defer p.Close()
		var d *DetachedMount
		if d, err = Create(small); err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		err = errors.Join(d.Seal(), d.Attach(p))
	}
	// EAGAIN means that openat2 gives up on a path that changes again and again.
	if err != nil && !errors.Is(err, ErrSymlink) && !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%v", err)
	}
	return err == nil
}

func TestAttachGoesOnTop(t *testing.T) {
	testkit.NothingLeft(t)
	p, path, _ := publish(t, small)
	d := create(t, small)
	mustPut(t, d, "key", "top")
	if err := errors.Join(d.Seal(), d.Attach(p)); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(path, "key")); got != "top" || len(mountsAt(t, path)) != 2 {
		t.Errorf("content %q, mounts %+v", got, mountsAt(t, path))
	}
	if err := d.Attach(p); err == nil {
		t.Error("the same mount was attached on itself")
	}
}

func TestUnmount(t *testing.T) {
	mount := func(path string) error { return unix.Mount("x", path, "tmpfs", 0, "") }
	for name, c := range map[string]struct {
		prepare func(t *testing.T, p *Target, path string) error
		want    error
	}{
		"nothing there": {func(*testing.T, *Target, string) error { return nil }, nil},
		"no mount":      {func(_ *testing.T, p *Target, _ string) error { return p.Mkdir() }, nil},
		"no mount, not empty": {func(_ *testing.T, _ *Target, path string) error { return os.MkdirAll(path+"/d", 0o700) },
			nil},
		"one": {func(t *testing.T, p *Target, _ string) error { publishAt(t, p, small); return nil }, nil},
		"three, stacked": {func(t *testing.T, p *Target, path string) error {
			return errors.Join(p.Mkdir(), mount(path), unix.Mount("/usr", path, "", unix.MS_BIND, ""), mount(path))
		}, nil},
		"one with another below it": {func(t *testing.T, p *Target, path string) error {
			return errors.Join(p.Mkdir(), mount(path), os.Mkdir(path+"/sub", 0o700), mount(path+"/sub"))
		}, nil},
		"one on a file": {func(t *testing.T, p *Target, path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), unix.Mount("/proc/version", path, "", unix.MS_BIND, ""))
		}, ErrNotDirectory}, // the mount is removed nevertheless
		"a file": {func(_ *testing.T, _ *Target, path string) error { return os.WriteFile(path, nil, 0o600) },
			ErrNotDirectory},
		"a link to a mount": {func(t *testing.T, _ *Target, path string) error {
			_, other, _ := publish(t, small)
			return os.Symlink(other, path)
		}, ErrSymlink},
		"a mount in the parent": {func(t *testing.T, p *Target, path string) error {
			other := path + "2"
			t.Cleanup(func() { unmountAll(other) })
			return errors.Join(os.Mkdir(other, 0o700), mount(other))
		}, nil},
		"a file open below": {func(t *testing.T, p *Target, path string) error {
			publishAt(t, p, small)
			f, err := os.Open(filepath.Join(path, "key"))
			t.Cleanup(func() {
				b := make([]byte, 10)
				if n, _ := f.Read(b); string(b[:n]) != "first" {
					t.Errorf("the user of a detached mount reads %q", b[:n])
				}
				f.Close()
			})
			return err
		}, nil},
		"a process with its working directory there": {func(t *testing.T, p *Target, path string) error {
			publishAt(t, p, small)
			cmd := testkit.Helper(t, false, "stay")
			cmd.Dir = path
			startHelper(t, cmd)
			return nil
		}, nil},
		"three, stacked, the lowest busy": {func(t *testing.T, p *Target, path string) error {
			publishAt(t, p, small)
			f, err := os.Open(filepath.Join(path, "key"))
			t.Cleanup(func() { f.Close() })
			return errors.Join(err, mount(path), mount(path))
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			p, path := place(t)
			before := testkit.MountTable(t)
			if err := c.prepare(t, p, path); err != nil {
				t.Fatal(err)
			}
			elsewhere := strings.Count(testkit.MountTable(t), "\n") - strings.Count(before, "\n") - len(mountsAt(t, path))
			err := p.Unmount()
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %v with the path", err, c.want)
			}
			if left := mountsAt(t, path); left != nil {
				t.Errorf("left: %+v", left)
			}
			if got := strings.Count(testkit.MountTable(t), "\n") - strings.Count(before, "\n"); got != elsewhere {
				t.Errorf("%d mounts elsewhere, %d before", got, elsewhere)
			}
			if err := p.Unmount(); !errors.Is(err, c.want) {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// A Target stays in the directory that it opened, even if its path leads to another directory now.
func TestPointWhosePathWasExchanged(t *testing.T) {
	testkit.NothingLeft(t)
	base := t.TempDir()
	parent, moved, victim := filepath.Join(base, "volume"), filepath.Join(base, "moved"), filepath.Join(base, "victim")
	for _, dir := range []string{parent, victim} {
		t.Cleanup(func() { unmountAll(dir + "/mount") })
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		publishAt(t, open(t, dir+"/mount"), small)
	}
	t.Cleanup(func() { unmountAll(moved + "/mount") })
	p := open(t, parent+"/mount")
	id := oneMount(t, parent).id
	if err := errors.Join(os.Rename(parent, moved), os.Symlink(victim, parent)); err != nil {
		t.Fatal(err)
	}
	if state, err := p.Inspect(); err != nil || fmt.Sprint(state.MountID) != id {
		t.Errorf("inspected mount %d, not %s; %v", state.MountID, id, err)
	}
	if err := errors.Join(p.Unmount(), p.Remove(), p.Mkdir()); err != nil {
		t.Error(err)
	}
	if left := mountsAt(t, moved); left != nil {
		t.Errorf("left: %+v", left)
	}
	if got := content(t, oneMount(t, victim).point+"/key"); got != "first" {
		t.Errorf("the victim's mount holds %q", got)
	}
}

func TestInspect(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, p *Target, path string) error
		want    State
		wantErr error
	}{
		"nothing there": {func(*testing.T, *Target, string) error { return nil }, State{}, nil},
		"a directory":   {func(_ *testing.T, p *Target, _ string) error { return p.Mkdir() }, State{Exists: true}, nil},
		"a mount of ours": {func(t *testing.T, p *Target, _ string) error { publishAt(t, p, small); return nil },
			State{Exists: true, Mounted: true, Tmpfs: true, Usage: Usage{BytesUsed: uint64(os.Getpagesize()), InodesUsed: 2}},
			nil},
		"another's tmpfs": {func(t *testing.T, p *Target, path string) error {
			return errors.Join(p.Mkdir(), unix.Mount("x", path, "tmpfs", 0, ""))
		}, State{Exists: true, Mounted: true, Tmpfs: true, Usage: Usage{InodesUsed: 1}}, nil},
		"a bind mount of the same file system": {func(t *testing.T, p *Target, path string) error {
			return errors.Join(p.Mkdir(), unix.Mount(path, path, "", unix.MS_BIND, ""))
		}, State{Exists: true, Mounted: true}, nil},
		"a proc": {func(t *testing.T, p *Target, path string) error {
			return errors.Join(p.Mkdir(), unix.Mount("x", path, "proc", 0, ""))
		}, State{Exists: true, Mounted: true}, nil},
		"a directory of a tmpfs": {func(t *testing.T, p *Target, path string) error {
			return unix.Mount("x", filepath.Dir(path), "tmpfs", 0, "")
		}, State{}, nil}, // The target holds its parent, so a mount over the parent does not matter.
		"a file": {func(_ *testing.T, _ *Target, path string) error { return os.WriteFile(path, nil, 0o600) }, State{},
			ErrNotDirectory},
		"a link": {func(_ *testing.T, _ *Target, path string) error { return os.Symlink("/tmp", path) }, State{}, ErrSymlink},
		"a FIFO": {func(_ *testing.T, _ *Target, path string) error { return unix.Mkfifo(path, 0o600) }, State{},
			ErrNotDirectory},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			p, path := place(t)
			t.Cleanup(func() { unmountAll(filepath.Dir(path)) })
			if err := c.prepare(t, p, path); err != nil {
				t.Fatal(err)
			}
			got, err := p.Inspect()
			if !errors.Is(err, c.wantErr) || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %v with the path", err, c.wantErr)
			}
			if got.Mounted {
				m := oneMount(t, path)
				if fmt.Sprint(got.MountID) != m.id ||
					fmt.Sprintf("%d:%d", unix.Major(got.Identity.Device), unix.Minor(got.Identity.Device)) != m.device {
					t.Errorf("%+v is not %s", got, m.wholeForLog)
				}
			}
			got.Identity, got.MountID = Identity{}, 0
			if path := filepath.Dir(path); c.want.Exists && !c.want.Mounted {
				var st unix.Statfs_t
				if err := unix.Statfs(path, &st); err != nil {
					t.Fatal(err)
				}
				c.want.Tmpfs = int64(st.Type) == unix.TMPFS_MAGIC
			}
			if name == "a bind mount of the same file system" {
				got.Tmpfs, got.Usage = false, Usage{} // on machines where this is a tmpfs
			}
			got.Usage = Usage{BytesUsed: got.Usage.BytesUsed, InodesUsed: got.Usage.InodesUsed} // TestUsage checks the rest
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	testkit.NothingLeft(t)
	p, _ := place(t)
	page := uint64(os.Getpagesize())
	d := create(t, Options{Limits: Limits{Bytes: 10 * page, Inodes: 20}})
	mustPut(t, d, "two pages", strings.Repeat("x", os.Getpagesize()+1))
	mustPut(t, d, "one page", "x")
	mustPut(t, d, "none", "")
	if err := errors.Join(p.Mkdir(), d.Seal(), d.Attach(p)); err != nil {
		t.Fatal(err)
	}
	state, err := p.Inspect()
	got, want := state.Usage, Usage{
		BytesTotal: 10 * page, BytesUsed: 3 * page, BytesFree: 7 * page, InodesTotal: 20, InodesUsed: 4, InodesFree: 16,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, want %+v; %v", got, want, err)
	}
}

func TestOursIsTheMountOnTopAndNoOther(t *testing.T) {
	testkit.NothingLeft(t)
	check := func(p *Target, what string, want bool) {
		t.Helper()
		state, err := p.Inspect()
		if err != nil {
			t.Fatal(err)
		}
		if ours, err := state.Ours(); err != nil || ours != want {
			t.Errorf("%s: ours is %v, %v", what, ours, err)
		}
	}
	p, path := place(t)
	check(p, "nothing there", false)
	publishAt(t, p, small)
	check(p, "one of Create's", true)
	if err := unix.Mount("foreign", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	check(p, "a foreign tmpfs on top of one of Create's", false)
	bind, path := place(t)
	if err := errors.Join(bind.Mkdir(), unix.Mount("/usr", path, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	check(bind, "a bind mount", false)
}

func TestIsShared(t *testing.T) {
	testkit.NothingLeft(t)
	shared := testkit.SharedDir(t)
	private := t.TempDir()
	mount := func(path string, flags uintptr) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(path, 0o755), unix.Mount("x", path, "tmpfs", 0, ""),
			unix.Mount("", path, "", flags, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	}
	mount(shared+"/private", unix.MS_PRIVATE)
	mount(shared+"/private/shared", unix.MS_SHARED)
	mount(shared+"/slave", unix.MS_SLAVE)
	mount(private+"/under/shared", unix.MS_SHARED)
	mount(private+"/under", unix.MS_PRIVATE) // hides the shared mount
	mount(private+"/stack", unix.MS_SHARED)
	mount(private+"/stack", unix.MS_PRIVATE)
	mount(private+"/with space", unix.MS_SHARED)
	for _, path := range []string{shared + "/dir/deep", shared + "/private/dir", private + "/under/shared",
		private + "/under/shared/dir", private + "/stack/dir", private + "/with space/dir", shared + "/privateer"} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]bool{
		shared:                        true,
		shared + "/dir/deep":          true,
		shared + "/privateer":         true,
		shared + "/private":           false,
		shared + "/private/dir":       false,
		shared + "/private/shared":    true,
		shared + "/slave":             false,
		private:                       false,
		private + "/under/shared":     false,
		private + "/under/shared/dir": false,
		private + "/stack":            false,
		private + "/stack/dir":        false,
		private + "/with space":       true,
		private + "/with space/dir":   true,
		"/":                           false,
	} {
		if got, err := IsShared(path); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v\n%s", path, got, err, want, strings.Join(testkit.MountsBelow(t, private), "\n"))
		}
	}
}

func TestIsSharedOfWhatIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	if got, err := IsShared(path); got || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v, %v", got, err)
	}
}

// A mount that was created first and attached last is first in the mount table, and yet on top.
func TestIsSharedOfAnOlderMountOnTop(t *testing.T) {
	testkit.NothingLeft(t)
	p, path := place(t)
	older := create(t, small) // has the lower mount id
	if err := errors.Join(p.Mkdir(), unix.Mount("x", path, "tmpfs", 0, ""), unix.Mount("", path, "", unix.MS_SHARED, ""),
		older.Attach(p)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", path, "", unix.MS_PRIVATE, ""); err != nil { // the topmost mount
		t.Fatal(err)
	}
	if got, err := IsShared(path); got || err != nil {
		t.Errorf("got %v, %v; want false\n%s", got, err, strings.Join(testkit.MountsBelow(t, path), "\n"))
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	testkit.NothingLeft(t)
	p, path, id := publish(t, small)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for range 20 {
		c, err := p.Clone(id)
		if err != nil {
			t.Fatal(err)
		}
		c.Grow(Limits{1 << 20, 100}, false)
		c.Grow(Limits{1 << 21, 100}, true)
		c.Close()
		p.Clone(Identity{})
		p.Mkdir()
		p.Inspect()
		OpenTarget("/missing/mount")
		OpenTarget(path + "/key/x")
		Create(Options{SELinuxContext: "no such"})
		create(t, small).Close()
		Probe()
		mountWithID(1)
		IsShared(path)
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// A FUSE file system with a dead server returns an error for every call except unmounting: ENOTCONN, or ECONNREFUSED
// since a kernel between 6.18 and 7.2.
func TestABrokenFileSystemIsSomebodyElses(t *testing.T) {
	testkit.NothingLeft(t)
	p, path := place(t)
	t.Cleanup(func() { unmountAll(filepath.Dir(path)) })
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Mkdir(), unix.Mount("dead", path, "fuse", 0,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())), server.Close()); err != nil {
		t.Fatal(err)
	}
	state, err := p.Inspect()
	if err != nil || state != (State{Exists: true, Mounted: true}) {
		t.Errorf("%+v, %v", state, err)
	}
	if ours, err := state.Ours(); ours || err != nil {
		t.Errorf("ours: %v, %v", ours, err)
	}
	if _, err := p.Clone(Identity{}); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("cloned: %v", err)
	}
	if err := p.Unmount(); err != nil {
		t.Error(err)
	}
	if state, err := p.Inspect(); err != nil || state.Mounted {
		t.Errorf("after unmounting it: %+v, %v", state, err)
	}
}

// Any program on the node can mount a file system whose source is empty.
func TestAnUnreadableLineOfTheMountTable(t *testing.T) {
	testkit.NothingLeft(t)
	_, strange := place(t)
	if err := errors.Join(os.Mkdir(strange, 0o700), unix.Mount("", strange, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := mount.ParseMountInfo("/proc/self/mountinfo"); err == nil {
		t.Fatal("the line is readable by the usual rule, so that this test shows nothing")
	}
	p, path, _ := publish(t, small)
	state, err := p.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if ours, err := state.Ours(); !ours || err != nil {
		t.Errorf("ours: %v, %v", ours, err)
	}
	if _, err := IsShared(path); err != nil {
		t.Error(err)
	}
	if state, err = open(t, strange).Inspect(); err != nil || !state.Mounted {
		t.Errorf("the strange mount: %+v, %v", state, err)
	}
	if ours, err := state.Ours(); ours || err != nil {
		t.Errorf("the strange mount is ours: %v, %v", ours, err)
	}
	reliability.Shown(t, "F-52", "a mount with an empty source")
}

func TestParseMountInfo(t *testing.T) {
	for line, want := range map[string]mountInfo{
		"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n": {source: "/dev/root"},
		"36 35 0:9 / /a\\040-\\040b rw shared:7 - tmpfs fsuser.csi.io rw\n":                {source: Source, shared: true},
		"36 35 0:9 / /mnt rw shared:7 master:1 propagate_from:2 unbindable - tmpfs  rw\n":  {shared: true},
		"36 35 0:9 / /mnt rw - fuse.a\\040-\\040b -\\040fsuser.csi.io " +
			"rw,context=\"a - b\"\n": {source: "-\\040fsuser.csi.io"},
	} {
		if got, err := parseMountInfo(line); got != want || err != nil {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"36 \n", "36 35 0:9 / /mnt rw tmpfs x rw\n", "36 35 0:9 / - rw tmpfs x rw\n",
		"36 35 0:9 / /mnt rw - tmpfs\n"} {
		if got, err := parseMountInfo(line); err == nil || !strings.Contains(err.Error(), "36") {
			t.Errorf("%q: %+v, %v; want an error with the line", line, got, err)
		}
	}
}
