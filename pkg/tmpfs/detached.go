// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// DetachedMount is a mount that is attached nowhere. It goes away when it is closed or the process dies, unless Attach
// put it somewhere before.
type DetachedMount struct {
	fd int
}

// sealed are the attributes of every mount that is attached: what a volume of secrets never needs.
const sealed = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// Create makes an empty tmpfs and a writable mount of it.
func Create(o Options) (*DetachedMount, error) {
	fail := func(call, options string, err error) (*DetachedMount, error) {
		return nil, &Error{Op: "create", Call: call, Options: options, Err: err}
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", "tmpfs", err)
	}
	defer unix.Close(fs)
	for _, p := range o.params() {
		if err := p.set(fs); err != nil {
			return fail("fsconfig", p.String(), err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("fsconfig", "create", err)
	}
	// Read-only is missing on purpose: Seal adds it when the files are there.
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, sealed&^unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return fail("fsmount", "nosuid,nodev,noexec", err)
	}
	return &DetachedMount{fd: mnt}, nil
}

// Dir is a descriptor of the mount's root directory (O_PATH), for calls relative to it. It belongs to the mount:
// the caller does not close it.
func (d *DetachedMount) Dir() int { return d.fd }

// Identity tells which file system this is a mount of.
func (d *DetachedMount) Identity() (Identity, error) { return identify(d.fd) }

// Seal makes the mount read-only, nosuid, nodev and noexec. It fails with EBUSY while a file in it is open for
// writing.
func (d *DetachedMount) Seal() error {
	attr := unix.MountAttr{Attr_set: sealed}
	if err := unix.MountSetattr(d.fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return &Error{Op: "seal", Call: "mount_setattr", Options: "ro,nosuid,nodev,noexec", Err: err}
	}
	return nil
}

// Attach attaches the mount to p, where a directory must be. Afterwards the mount stays when d is closed.
func (d *DetachedMount) Attach(p *Target) error {
	leaf, err := p.open()
	if err != nil {
		return &Error{Op: "attach", Call: "openat2", Target: p.path, Err: err}
	}
	defer unix.Close(leaf)
	if err := unix.MoveMount(d.fd, "", leaf, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &Error{Op: "attach", Call: "move_mount", Target: p.path, Err: err}
	}
	failpoint.Hit("tmpfs-attached")
	return nil
}

// Grow raises the limits of the file system. Limits that are no higher than the present ones change nothing.
func (d *DetachedMount) Grow(l Limits, noSwap bool) error {
	fail := func(call, options string, err error) error {
		return &Error{Op: "grow", Call: call, Options: options, Err: err}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &st); err != nil {
		return fail("fstatfs", "", err)
	}
	present := Limits{Bytes: st.Blocks * uint64(st.Bsize), Inodes: st.Files}
	if l.Bytes <= present.Bytes && l.Inodes <= present.Inodes {
		return nil
	}
	l = Limits{Bytes: max(l.Bytes, present.Bytes), Inodes: max(l.Inodes, present.Inodes)}

	fs, err := unix.Fspick(d.fd, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fail("fspick", "", err)
	}
	defer unix.Close(fs)
	// noswap has to be repeated: before Linux 6.18 a call without it asks tmpfs to enable swap, which it refuses.
	for _, p := range (Options{Limits: l, NoSwap: noSwap}).params() {
		if p.key == "source" {
			continue
		}
		if err := p.set(fs); err != nil {
			return fail("fsconfig", p.String(), err)
		}
	}
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return fail("fsconfig", "reconfigure", err)
	}
	return nil
}

// Close closes the descriptor, which ends the mount if it is attached nowhere.
func (d *DetachedMount) Close() error { return unix.Close(d.fd) }

// param is one mount option. Each is passed by a call of its own, so that no value can add a second option.
type param struct {
	key, value string
}

func (o Options) params() []param {
	ps := []param{
		{"source", Source},
		{"size", strconv.FormatUint(o.Bytes, 10)},
		{"nr_inodes", strconv.FormatUint(o.Inodes, 10)},
		// Only root may read the directory before the files are written. The projector sets its mode.
		{"mode", "0700"},
	}
	if o.NoSwap {
		ps = append(ps, param{key: "noswap"})
	}
	if o.SELinuxContext != "" {
		ps = append(ps, param{"context", o.SELinuxContext})
	}
	return ps
}

func (p param) set(fs int) error {
	if p.value == "" {
		return unix.FsconfigSetFlag(fs, p.key)
	}
	return unix.FsconfigSetString(fs, p.key, p.value)
}

// String gives the option as mount(8) would write it.
func (p param) String() string {
	if p.value == "" {
		return p.key
	}
	return p.key + "=" + p.value
}
