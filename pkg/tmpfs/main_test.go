// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(helpers)
	testkit.RunInMountNamespace(m)
}

// helpers are functions that the tests run in other processes.
var helpers = map[string]func(args []string) error{
	// hold makes a mount that is not attached and holds it until it is killed.
	"hold": func([]string) error {
		d, err := Create(small)
		if err != nil {
			return err
		}
		if err := put(d, "secret", "x"); err != nil {
			return err
		}
		if err := d.Seal(); err != nil {
			return err
		}
		return waitForEnd()
	},
	// publish attaches a sealed mount with a file at args[0].
	"publish": func(args []string) error {
		p, err := OpenTarget(args[0])
		if err != nil {
			return err
		}
		if err := p.Mkdir(); err != nil {
			return err
		}
		d, err := Create(small)
		if err != nil {
			return err
		}
		return errors.Join(put(d, "key", "first"), d.Seal(), d.Attach(p), d.Close(), p.Close())
	},
	// refresh writes args[3] to the mount at args[0], if its identity is args[1], args[2].
	"refresh": func(args []string) error {
		var want Identity
		if _, err := fmt.Sscan(args[1]+" "+args[2], &want.Device, &want.FSID); err != nil {
			return err
		}
		p, err := OpenTarget(args[0])
		if err != nil {
			return err
		}
		d, err := p.Clone(want)
		if err != nil {
			return err
		}
		return errors.Join(put(d, "key", args[3]), d.Close(), p.Close())
	},
	// unmount removes the mounts at args[0].
	"unmount": func(args []string) error {
		p, err := OpenTarget(args[0])
		if err != nil {
			return err
		}
		return errors.Join(p.Unmount(), p.Remove(), p.Close())
	},
	// stay does nothing.
	"stay": func([]string) error { return waitForEnd() },
	// probe prints the result of Probe.
	"probe": func([]string) error {
		_, err := Probe()
		fmt.Println(err)
		return nil
	},
}

func waitForEnd() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// startHelper starts a helper and waits until the helper says that it is ready. Closing the result ends the helper.
func startHelper(t *testing.T, cmd *exec.Cmd) io.Closer {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("helper did not start: %v", err)
	}
	return in
}

func runHelper(t *testing.T, newNamespace bool, name string, args ...string) {
	t.Helper()
	if out, err := testkit.Helper(t, newNamespace, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("helper %s: %v\n%s", name, err, out)
	}
}

var small = Options{Limits: Limits{Bytes: 64 << 10, Inodes: 32}}

func create(t testing.TB, o Options) *DetachedMount {
	t.Helper()
	d, err := Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// put writes a file through the descriptor of a mount.
func put(d *DetachedMount, name, data string) error {
	fd, err := unix.Openat(d.Dir(), name, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(data)
	return errors.Join(err, f.Close())
}

func mustPut(t testing.TB, d *DetachedMount, name, data string) {
	t.Helper()
	if err := put(d, name, data); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) *Target {
	t.Helper()
	p, err := OpenTarget(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// place returns a Target at a directory that does not exist yet. At the end of t, it removes all mounts there.
func place(t testing.TB) (*Target, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mount")
	t.Cleanup(func() { unmountAll(path) })
	return open(t, path), path
}

func unmountAll(path string) {
	for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
}

// publish attaches a sealed mount with a file "key" at a new place.
func publish(t testing.TB, o Options) (*Target, string, Identity) {
	t.Helper()
	p, path := place(t)
	return p, path, publishAt(t, p, o)
}

func publishAt(t testing.TB, p *Target, o Options) Identity {
	t.Helper()
	d, err := Create(o)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, d, "key", "first")
	id, err := d.Identity()
	// The mount is closed, because it would be busy otherwise.
	if err := errors.Join(err, p.Mkdir(), d.Seal(), d.Attach(p), d.Close()); err != nil {
		t.Fatal(err)
	}
	return id
}

// mountLine is a line of mountinfo.
type mountLine struct {
	id                 string
	device             string
	options, super     []string
	fsType, source     string
	shared             bool
	point, wholeForLog string
}

func (m mountLine) superOption(key string) string {
	for _, o := range m.super {
		if k, v, _ := strings.Cut(o, "="); k == key {
			return v
		}
	}
	return ""
}

// mountsAt returns the lines of the mounts at path and below it.
func mountsAt(t testing.TB, path string) (lines []mountLine) {
	t.Helper()
	for _, line := range testkit.MountsBelow(t, path) {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		lines = append(lines, mountLine{
			id: l[0], device: l[2], point: l[4], options: strings.Split(l[5], ","),
			shared: slices.ContainsFunc(l[6:], func(f string) bool { return strings.HasPrefix(f, "shared:") }),
			fsType: r[0], source: r[1], super: strings.Split(r[2], ","), wholeForLog: line,
		})
	}
	return lines
}

// oneMount returns the only mount at path and below it.
func oneMount(t testing.TB, path string) mountLine {
	t.Helper()
	lines := mountsAt(t, path)
	if len(lines) != 1 {
		t.Fatalf("%d mounts at %s, want 1: %+v", len(lines), path, lines)
	}
	return lines[0]
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// readOnly fails t unless every kind of change below dir is refused because the mount is read-only.
func readOnly(t testing.TB, dir string) {
	t.Helper()
	key := filepath.Join(dir, "key")
	for what, change := range map[string]func() error{
		"create":       func() error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) },
		"write":        func() error { return os.WriteFile(key, []byte("x"), 0o600) },
		"truncate":     func() error { return os.Truncate(key, 0) },
		"remove":       func() error { return unix.Unlink(key) },
		"rename":       func() error { return unix.Rename(key, key+"2") },
		"link":         func() error { return unix.Link(key, key+"2") },
		"symlink":      func() error { return unix.Symlink("x", key+"2") },
		"mkdir":        func() error { return unix.Mkdir(key+"2", 0o700) },
		"mknod":        func() error { return unix.Mkfifo(key+"2", 0o700) },
		"chmod":        func() error { return unix.Chmod(key, 0o777) },
		"chown":        func() error { return unix.Chown(key, 1, 1) },
		"chmod of dir": func() error { return unix.Chmod(dir, 0o777) },
		"utimes":       func() error { return unix.Utimes(key, make([]unix.Timeval, 2)) },
		"setxattr":     func() error { return unix.Setxattr(key, "trusted.x", []byte("x"), 0) },
	} {
		if err := change(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s in %s: %v, want %v", what, dir, err, unix.EROFS)
		}
	}
}

func u64(t testing.TB, s string) uint64 {
	t.Helper()
	factor := uint64(1)
	if number, ok := strings.CutSuffix(s, "k"); ok {
		s, factor = number, 1024
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("number %q: %v", s, err)
	}
	return n * factor
}
