// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// own is a folder on the tmpfs that covers /run.
const own = "/run/fsuser-cluster"

// KubeletRoot is kubelet's root folder inside the mount namespace.
const KubeletRoot = "/var/lib/kubelet"

// setUpMounts prepares the mount namespace of a node:
//
//   - / is shared, because kubelet and Bidirectional propagation require it, and a slave of the machine's, so that no
//     mount reaches the machine.
//   - /proc and /sys are those of the new PID and network namespaces.
//   - /run is empty, and files below /var stay in the namespace, except in the folders that are bound from the run
//     folder.
func (n *node) setUpMounts() error {
	m := &mounter{}
	m.mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	m.mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	m.mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")

	kept := m.keep(n.spec.RunDir, n.spec.CacheDir)
	m.mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	m.dirs(own+"/var", own+"/work", own+"/proc", own+"/cgroup", own+"/sysctl", "/run/lock", "/run/tmp")
	m.mount("overlay", "/var", "overlay", 0, "lowerdir=/var,upperdir="+own+"/var,workdir="+own+"/work")
	m.bindKept(kept)

	// sysfs shows the interfaces of the network namespace in which it was mounted.
	m.mount(cgroupMount, own+"/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	m.mount(own+"/cgroup", cgroupMount, "", unix.MS_BIND|unix.MS_REC, "")
	m.hideSysctls()

	for to, from := range n.binds() {
		m.dirs(to)
		m.mount(from, to, "", unix.MS_BIND, "")
		// The mount gets a peer group of its own, so that mounts below it do not appear in the run folder a second time.
		m.mount("", to, "", unix.MS_PRIVATE, "")
		m.mount("", to, "", unix.MS_SHARED, "")
	}
	return m.err
}

// binds returns the folders of the run folder to bind, by their path in the mount namespace.
func (n *node) binds() map[string]string {
	return map[string]string{
		KubeletRoot:           n.paths.Data("kubelet"),
		"/var/lib/containerd": n.paths.Data("containerd"),
		"/var/lib/cni":        n.paths.Data("cni", "state"),
		"/var/log/pods":       n.paths.Data("pod-logs"),
	}
}

// detach removes all mount points from the run folder. Otherwise the folder could not be removed in the namespace.
func (n *node) detach() error {
	for to := range n.binds() {
		if err := unix.Unmount(to, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) &&
			!errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", to, err)
		}
	}
	return nil
}

// hideSysctls mounts files over the sysctls that kubelet sets for the whole machine. The files contain the values that
// kubelet requires, so that kubelet does not change the machine's.
//
// If a part of a proc file system is covered, the kernel refuses to mount another one in a user namespace, because the
// part may be hidden on purpose. So there is a second proc file system without covered parts, for pods with user
// namespaces.
func (m *mounter) hideSysctls() {
	m.mount("proc", own+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	for name, value := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(own, "sysctl", strings.ReplaceAll(name, "/", "."))
		if m.err == nil {
			m.err = os.WriteFile(file, []byte(value+"\n"), 0o644)
		}
		m.mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, "")
	}
}

// mounter makes mounts until one fails. It keeps the first error.
type mounter struct{ err error }

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		m.err = fmt.Errorf("mount %q at %s, type %q, flags %#x, data %q: %w", source, target, kind, flags, data, err)
	}
}

func (m *mounter) dirs(paths ...string) {
	for _, path := range paths {
		if m.err == nil {
			m.err = os.MkdirAll(path, 0o755)
		}
	}
}

// keptFolder is a folder that will be covered by a mount.
type keptFolder struct {
	path   string
	handle *os.File
}

// keep opens the folders that setUpMounts will cover.
func (m *mounter) keep(paths ...string) []keptFolder {
	var kept []keptFolder
	for _, path := range paths {
		if m.err != nil || !strings.HasPrefix(path, "/var/") && !strings.HasPrefix(path, "/run/") {
			continue
		}
		handle, err := os.Open(path)
		if err != nil {
			m.err = fmt.Errorf("keep a folder: %w", err)
		}
		kept = append(kept, keptFolder{path: path, handle: handle})
	}
	return kept
}

func (m *mounter) bindKept(kept []keptFolder) {
	for _, folder := range kept {
		m.dirs(folder.path)
		m.mount(fmt.Sprintf("/proc/self/fd/%d", folder.handle.Fd()), folder.path, "", unix.MS_BIND|unix.MS_REC, "")
		folder.handle.Close()
	}
}
