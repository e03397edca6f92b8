// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func features(t testing.TB) Features {
	t.Helper()
	f, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestCreateSealAttach(t *testing.T) {
	for name, o := range map[string]Options{
		"small":                 {Limits: Limits{Bytes: 4096, Inodes: 8}},
		"not whole pages":       {Limits: Limits{Bytes: 5000, Inodes: 9}},
		"large":                 {Limits: Limits{Bytes: 1 << 30, Inodes: 100000}},
		"not swapped":           {Limits: Limits{Bytes: 1 << 20, Inodes: 64}, NoSwap: features(t).NoSwap},
		"swapped, if they must": {Limits: Limits{Bytes: 1 << 20, Inodes: 64}, NoSwap: false},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			defer syscall.Umask(syscall.Umask(0))
			p, path := place(t)
			before := testkit.MountTable(t)
			d := create(t, o)
			mustPut(t, d, "key", "value")
			if err := errors.Join(p.Mkdir(), d.Seal()); err != nil {
				t.Fatal(err)
			}
			if got := testkit.MountTable(t); got != before {
				t.Errorf("a mount that is not attached shows in the mount table:\n%s", got)
			}
			if err := d.Attach(p); err != nil {
				t.Fatal(err)
			}
			m := oneMount(t, path)
			for _, want := range []string{"ro", "nosuid", "nodev", "noexec"} {
				if !slices.Contains(m.options, want) {
					t.Errorf("no option %s: %s", want, m.wholeForLog)
				}
			}
			page := uint64(os.Getpagesize())
			pages := (o.Bytes + page - 1) / page * page
			if m.fsType != "tmpfs" || m.source != "fsuser.csi.io" || u64(t, m.superOption("size")) != pages ||
				u64(t, m.superOption("nr_inodes")) != o.Inodes ||
				slices.Contains(m.super, "noswap") != o.NoSwap || m.superOption("mode") != "700" ||
				!slices.Contains(m.super, "rw") {
				t.Errorf("%s", m.wholeForLog)
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || st.Mode != unix.S_IFDIR|0o700 || st.Uid != 0 || st.Gid != 0 {
				t.Errorf("root directory: mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
			}
			if got := content(t, filepath.Join(path, "key")); got != "value" {
				t.Errorf("content %q", got)
			}
			readOnly(t, path)
			// The mount belongs to the target now.
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if got := content(t, filepath.Join(path, "key")); got != "value" {
				t.Errorf("content %q after the descriptor is closed", got)
			}
			readOnly(t, path)
		})
	}
}

func TestLimitsHold(t *testing.T) {
	testkit.NothingLeft(t)
	bytes := 2 * os.Getpagesize()
	d := create(t, Options{Limits: Limits{Bytes: uint64(bytes), Inodes: 4}})
	if err := put(d, "big", strings.Repeat("x", bytes+1)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more bytes than size: %v", err)
	}
	if err := errors.Join(put(d, "b", ""), put(d, "c", "")); err != nil {
		t.Error(err)
	}
	if err := put(d, "d", ""); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more inodes than nr_inodes: %v", err)
	}
}

func TestSealWhileAFileIsOpenForWriting(t *testing.T) {
	testkit.NothingLeft(t)
	d := create(t, small)
	fd, err := unix.Openat(d.Dir(), "open", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Seal()
	if want := "seal tmpfs: mount_setattr(ro,nosuid,nodev,noexec): device or resource busy"; !errors.Is(err, unix.EBUSY) ||
		err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	unix.Close(fd)
	if err := d.Seal(); err != nil {
		t.Error(err)
	}
	if err := put(d, "late", ""); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a sealed mount: %v", err)
	}
}

// A value with a comma must stay one value. As a string of mount(2), it would be two options.
func TestOptionValueIsNoSecondOption(t *testing.T) {
	testkit.NothingLeft(t)
	o := small
	o.SELinuxContext = `system_u:object_r:container_file_t:s0:c1,c2,size=1g`
	d, err := Create(o)
	var e *Error
	if err == nil {
		d.Close()
		t.Fatal("the kernel took a context that is none")
	}
	if !errors.As(err, &e) || e.Op != "create" || e.Call != "fsconfig" || !features(t).SELinux &&
		e.Options != "context="+o.SELinuxContext {
		t.Errorf("%+v", err)
	}
	if got, want := o.params()[len(o.params())-1], (param{"context", o.SELinuxContext}); got != want {
		t.Errorf("parameter %v, want %v", got, want)
	}
}

func TestClone(t *testing.T) {
	testkit.NothingLeft(t)
	p, path, id := publish(t, small)
	before := testkit.MountTable(t)
	c, err := p.Clone(id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustPut(t, c, "key", "second")
	if got := content(t, filepath.Join(path, "key")); got != "second" {
		t.Errorf("target shows %q", got)
	}
	readOnly(t, path)
	if got := testkit.MountTable(t); got != before {
		t.Errorf("the clone shows in the mount table:\n%s", got)
	}
	if got, err := c.Identity(); got != id || err != nil {
		t.Errorf("identity of the clone is %v, of the mount %v; %v", got, id, err)
	}
	// A device, a setuid file and a program have no effect in the clone either: only read-only was cleared.
	if err := unix.Mknodat(c.Dir(), "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Openat(c.Dir(), "null", unix.O_RDONLY|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EACCES) {
		unix.Close(fd)
		t.Errorf("open of a device through the clone: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	readOnly(t, path)
}

func TestCloneRefuses(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, p *Target, path string) (want Identity, wantErr error){
		"another tmpfs of ours": func(t *testing.T, p *Target, path string) (Identity, error) {
			publishAt(t, p, small)
			_, _, other := publish(t, small)
			return other, ErrNotMounted
		},
		"the right device with another file system id": func(t *testing.T, p *Target, path string) (Identity, error) {
			id := publishAt(t, p, small)
			id.FSID++
			return id, ErrNotMounted
		},
		"the right file system id with another device": func(t *testing.T, p *Target, path string) (Identity, error) {
			id := publishAt(t, p, small)
			id.Device++
			return id, ErrNotMounted
		},
		"no identity at all": func(t *testing.T, p *Target, path string) (Identity, error) {
			publishAt(t, p, small)
			return Identity{}, ErrNotMounted
		},
		"something mounted over the volume": func(t *testing.T, p *Target, path string) (Identity, error) {
			id := publishAt(t, p, small)
			if err := unix.Mount("foreign", path, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			return id, ErrNotMounted
		},
		"a directory, the volume being gone": func(t *testing.T, p *Target, path string) (Identity, error) {
			id := publishAt(t, p, small)
			if err := p.Unmount(); err != nil {
				t.Fatal(err)
			}
			return id, ErrNotMounted
		},
		"nothing": func(t *testing.T, p *Target, path string) (Identity, error) { return Identity{}, os.ErrNotExist },
		"a link to the volume": func(t *testing.T, p *Target, path string) (Identity, error) {
			_, other, id := publish(t, small)
			if err := os.Symlink(other, path); err != nil {
				t.Fatal(err)
			}
			return id, ErrSymlink
		},
		"a file": func(t *testing.T, p *Target, path string) (Identity, error) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return Identity{}, ErrNotDirectory
		},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			p, path := place(t)
			want, wantErr := prepare(t, p, path)
			before := testkit.MountTable(t)
			c, err := p.Clone(want)
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, wantErr) || !strings.Contains(fmt.Sprint(err), path) {
				t.Errorf("got %v, want %v with the path", err, wantErr)
			}
			if got := testkit.MountTable(t); got != before {
				t.Errorf("mount table:\n%s", got)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	testkit.NothingLeft(t)
	p, _, id := publish(t, small)
	state, err := p.Inspect()
	if err != nil || state.Identity != id {
		t.Errorf("through the target %+v, through the mount %+v; %v", state.Identity, id, err)
	}
	_, _, other := publish(t, small)
	if other == id || other.Device == id.Device {
		t.Errorf("two mounts have the identities %+v and %+v", id, other)
	}
	if id.FSID == 0 {
		t.Error("no file system id; Linux has one since 5.16")
	}
}

func TestIdentityOfAReusedDeviceNumber(t *testing.T) {
	testkit.NothingLeft(t)
	first := create(t, small)
	old, err := first.Identity()
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	// The number is free now. The kernel gives the lowest free number to the next file system of any process.
	testkit.Eventually(t, 10*time.Second, "the device number to be given again", func() bool {
		d, err := Create(small)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		id, err := d.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if id == old {
			t.Fatalf("two mounts have one identity: %+v", id)
		}
		return id.Device == old.Device
	})
}

// For device numbers above 255, the encodings of statx(2) and stat(2) differ.
func TestIdentityOfALargeDeviceNumber(t *testing.T) {
	testkit.NothingLeft(t)
	for range 300 {
		d := create(t, small)
		id, err := d.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if unix.Minor(id.Device) <= 255 {
			continue
		}
		p, _ := place(t)
		if err := errors.Join(p.Mkdir(), d.Attach(p)); err != nil {
			t.Fatal(err)
		}
		if state, err := p.Inspect(); err != nil || state.Identity != id {
			t.Errorf("through the target %+v, through the mount %+v; %v", state.Identity, id, err)
		}
		return
	}
	t.Error("of 300 device numbers none is above 255")
}

func TestGrow(t *testing.T) {
	for name, c := range map[string]struct{ ask, want Limits }{
		"both":                     {Limits{1 << 20, 200}, Limits{1 << 20, 200}},
		"bytes":                    {Limits{1 << 20, 32}, Limits{1 << 20, 32}},
		"inodes":                   {Limits{64 << 10, 200}, Limits{64 << 10, 200}},
		"bytes up, inodes down":    {Limits{1 << 20, 3}, Limits{1 << 20, 32}},
		"inodes up, bytes down":    {Limits{4096, 200}, Limits{64 << 10, 200}},
		"neither":                  {Limits{64 << 10, 32}, Limits{64 << 10, 32}},
		"both down":                {Limits{4096, 3}, Limits{64 << 10, 32}},
		"to 0, which has no limit": {Limits{}, Limits{64 << 10, 32}},
	} {
		for _, noSwap := range []bool{false, features(t).NoSwap} {
			t.Run(fmt.Sprintf("%s, noswap %v", name, noSwap), func(t *testing.T) {
				testkit.NothingLeft(t)
				o := small
				o.NoSwap = noSwap
				p, path, id := publish(t, o)
				clone, err := p.Clone(id)
				if err != nil {
					t.Fatal(err)
				}
				defer clone.Close()
				if err := unix.Fchmodat(clone.Dir(), ".", 0o755, 0); err != nil {
					t.Fatal(err)
				}
				mustPut(t, clone, "more", "kept")
				before := oneMount(t, path)
				if err := clone.Grow(c.ask, noSwap); err != nil {
					t.Fatal(err)
				}
				after := oneMount(t, path)
				if got := (Limits{u64(t, after.superOption("size")), u64(t, after.superOption("nr_inodes"))}); got != c.want {
					t.Errorf("limits %+v, want %+v", got, c.want)
				}
				if after.id != before.id || !slices.Equal(after.options, before.options) ||
					slices.Contains(after.super, "noswap") != noSwap || after.source != Source {
					t.Errorf("before %s\nafter  %s", before.wholeForLog, after.wholeForLog)
				}
				state, err := p.Inspect()
				u := state.Usage
				if err != nil || u.BytesTotal != c.want.Bytes || u.InodesTotal != c.want.Inodes {
					t.Errorf("usage %+v, %v", u, err)
				}
				// mode= applies to a new file system only: the root directory keeps its mode.
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o755 {
					t.Errorf("root directory has mode %o, %v", st.Mode, err)
				}
				if got := content(t, filepath.Join(path, "more")); got != "kept" {
					t.Errorf("content %q", got)
				}
				readOnly(t, path)
			})
		}
	}
}

// Linux 6.4 refuses a reconfiguration without noswap, and newer kernels accept it. Neither may begin to swap.
func TestGrowKeepsNoSwap(t *testing.T) {
	if !features(t).NoSwap {
		t.Fatal("this kernel has no noswap (Linux 6.4)")
	}
	testkit.NothingLeft(t)
	o := small
	o.NoSwap = true
	p, path, id := publish(t, o)
	c, err := p.Clone(id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Grow(Limits{1 << 20, 64},
		false); err != nil && err.Error() != "grow tmpfs: fsconfig(reconfigure): invalid argument" {
		t.Error(err)
	}
	if err := c.Grow(Limits{1 << 21, 64}, true); err != nil {
		t.Error(err)
	}
	if m := oneMount(t, path); !slices.Contains(m.super, "noswap") || m.superOption("size") != "2048k" {
		t.Error(m.wholeForLog)
	}
}

func TestErrorText(t *testing.T) {
	for want, e := range map[string]*Error{
		"seal tmpfs: mount_setattr: operation not permitted": {Op: "seal", Call: "mount_setattr",
			Err: unix.EPERM},
		"attach tmpfs at /a/b: move_mount: no such file or directory": {Op: "attach", Call: "move_mount",
			Target: "/a/b", Err: unix.ENOENT},
		"create tmpfs: fsconfig(size=4096): invalid argument": {Op: "create", Call: "fsconfig",
			Options: "size=4096", Err: unix.EINVAL},
		"clone tmpfs at /a/b: mount_setattr(rw): operation not permitted": {Op: "clone", Call: "mount_setattr",
			Target: "/a/b", Options: "rw", Err: unix.EPERM},
		"unmount tmpfs at /a/b: umount2(MNT_DETACH): device or resource busy": {Op: "unmount", Call: "umount2",
			Target: "/a/b", Options: "MNT_DETACH", Err: unix.EBUSY},
		"inspect tmpfs at /with space: openat2: too many levels of symbolic links": {Op: "inspect", Call: "openat2",
			Target: "/with space", Err: unix.ELOOP},
	} {
		if got := e.Error(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if !errors.Is(e, e.Err) {
			t.Errorf("%v does not lead to %v", e, e.Err)
		}
	}
}

func TestErrorsOfRealCalls(t *testing.T) {
	testkit.NothingLeft(t)
	d := create(t, small)
	p, path := place(t)
	gone := &DetachedMount{fd: 1 << 20}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"attach where nothing is": {d.Attach(p), "attach tmpfs at " + path + ": openat2: no such file or directory"},
		"clone where nothing is": {func() error { _, err := p.Clone(Identity{}); return err }(),
			"clone tmpfs at " + path + ": openat2: no such file or directory"},
		"seal of what is closed": {gone.Seal(), "seal tmpfs: mount_setattr(ro,nosuid,nodev,noexec): bad file descriptor"},
		"grow of what is closed": {gone.Grow(small.Limits, false), "grow tmpfs: fstatfs: bad file descriptor"},
		"identity of what is closed": {func() error { _, err := gone.Identity(); return err }(),
			"inspect tmpfs: fstat: bad file descriptor"},
		"create with a context that is none": {func() error {
			_, err := Create(Options{Limits: small.Limits, SELinuxContext: "none"})
			return err
		}(), "create tmpfs: fsconfig(context=none): invalid argument"},
	} {
		var e *Error
		if !errors.As(c.err, &e) || c.err.Error() != c.want {
			t.Errorf("%s: got  %v\nwant %s", name, c.err, c.want)
		}
	}
}

func TestKilledProcessLeavesNoMount(t *testing.T) {
	testkit.NothingLeft(t)
	before := testkit.MountTable(t)
	cmd := testkit.Helper(t, false, "hold")
	startHelper(t, cmd)
	if got := testkit.MountTable(t); got != before {
		t.Errorf("a detached mount shows in the mount table:\n%s", got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the helper ended by itself: %v", err)
	}
	if got := testkit.MountTable(t); got != before {
		t.Errorf("mount table:\n%s", got)
	}
}

// TestOtherNamespaces runs the driver's steps in containers. Each step is a process with a mount namespace of its own,
// and the test checks the view of the "host", which is this process.
func TestOtherNamespaces(t *testing.T) {
	testkit.NothingLeft(t)
	pods := testkit.SharedDir(t)
	path := filepath.Join(pods, "mount")
	t.Cleanup(func() { unmountAll(path) })

	runHelper(t, true, "publish", path)
	m := oneMount(t, path)
	for _, want := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if !slices.Contains(m.options, want) {
			t.Errorf("the host has no option %s: %s", want, m.wholeForLog)
		}
	}
	readOnly(t, path)
	if got := content(t, filepath.Join(path, "key")); got != "first" {
		t.Errorf("the host reads %q", got)
	}

	state, err := open(t, path).Inspect()
	if err != nil {
		t.Fatal(err)
	}
	id := state.Identity
	runHelper(t, true, "refresh", path, fmt.Sprint(id.Device), fmt.Sprint(id.FSID), "second")
	if got := content(t, filepath.Join(path, "key")); got != "second" {
		t.Errorf("the host reads %q after the refresh", got)
	}
	readOnly(t, path)
	if now := oneMount(t, path); now.wholeForLog != m.wholeForLog {
		t.Errorf("the host's mount changed:\n%s\n%s", m.wholeForLog, now.wholeForLog)
	}

	runHelper(t, true, "unmount", path)
	if left := mountsAt(t, path); left != nil {
		t.Errorf("the host still has %+v", left)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}

func TestProbe(t *testing.T) {
	testkit.NothingLeft(t)
	before := testkit.MountTable(t)
	got, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if after := testkit.MountTable(t); after != before {
		t.Errorf("mount table:\n%s", after)
	}
	o := small
	o.NoSwap = true
	d, err := Create(o)
	if err == nil {
		d.Close()
	}
	if got.NoSwap != (err == nil) {
		t.Errorf("%+v, but Create with noswap says %v", got, err)
	}
	if filesystems, err := os.ReadFile("/proc/filesystems"); err != nil || got.SELinux &&
		!bytes.Contains(filesystems, []byte("selinuxfs")) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestProbeWithoutCapSysAdmin(t *testing.T) {
	testkit.NothingLeft(t)
	out := withoutCapability(t, unix.CAP_SYS_ADMIN,
		func() ([]byte, error) { return testkit.Helper(t, false, "probe").Output() })
	want := "this machine lacks fsopen(2), fsmount(2) for tmpfs (Linux 5.2 and CAP_SYS_ADMIN): create tmpfs: " +
		"fsopen(tmpfs): operation not permitted\n"
	if out != want {
		t.Errorf("got  %swant %s", out, want)
	}
}
