// SPDX-License-Identifier: Apache-2.0

package tmpfs

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// DetachedMount is a mount that is not attached. It goes away when its descriptor is closed or the process ends, unless
// Attach attached it before.
type DetachedMount struct {
	fd int
}

// sealed are the attributes of each attached mount. A volume of secrets requires neither devices, setuid files nor
// programs.
const sealed = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// Create creates an empty tmpfs and a writable mount of it.
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
	// The mount is still writable. Seal adds read-only after the files are written.
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, sealed&^unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return fail("fsmount", "nosuid,nodev,noexec", err)
	}
	return &DetachedMount{fd: mnt}, nil
}

// Dir returns a descriptor of the mount's root directory (O_PATH), for calls relative to it. The descriptor belongs to
// the mount, so the caller must not close it.
func (d *DetachedMount) Dir() int { return d.fd }

// Identity returns the identity of the mounted file system.
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

// Attach attaches the mount to p, which must be a directory. From then on, the mount stays when d is closed.
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

// Grow raises the limits of the file system. Limits that are not higher than the current ones change nothing.
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
	// Each call must repeat noswap: before Linux 6.18, a call without it asks tmpfs to enable swap, which tmpfs refuses.
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

// Close closes the descriptor. If the mount is not attached, this ends the mount.
func (d *DetachedMount) Close() error { return unix.Close(d.fd) }

// param is one mount option. Each option has a call of its own, so that no value can add a second option.
type param struct {
	key, value string
}

func (o Options) params() []param {
	ps := []param{
		{"source", Source},
		{"size", strconv.FormatUint(o.Bytes, 10)},
		{"nr_inodes", strconv.FormatUint(o.Inodes, 10)},
		// Until the files are written, only root may read the directory. The projector sets its final mode.
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

// String returns the option in the format of mount(8).
func (p param) String() string {
	if p.value == "" {
		return p.key
	}
	return p.key + "=" + p.value
}
