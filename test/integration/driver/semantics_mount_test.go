// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

// withOwnerAndMode returns the lines of entries whose path has a suffix.
func withOwnerAndMode(s *seen, path string) string {
	s.t.Helper()
	for _, e := range s.tree() {
		if e.Path == tree.Generation+"/"+path {
			return strings.Fields(e.String())[0] + " " + strings.Fields(e.String())[1]
		}
	}
	s.t.Fatalf("there is no %s in\n%s", path, lines(s.tree()))
	return ""
}

func TestModes(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	setConfigMap(t, name, files{"k": "1"}, nil)
	// withModes returns a volume of the Secret with a defaultMode and the mode of its item. A negative mode means none.
	withModes := func(defaultMode, mode int32) corev1.VolumeSource {
		v := secretVolume(name, false, items("k", "k")...)
		v.Secret.DefaultMode = nil
		if defaultMode >= 0 {
			v.Secret.DefaultMode = &defaultMode
		}
		if mode >= 0 {
			v.Secret.Items[0].Mode = &mode
		}
		return v
	}
	of := func(attributes ...string) func() (kubelet.Pod, kubelet.Volume) {
		return func() (kubelet.Pod, kubelet.Volume) { return pod("mode"), ssh(attributes...) }
	}
	by := func(source corev1.VolumeSource, attributes ...string) func() (kubelet.Pod, kubelet.Volume) {
		return func() (kubelet.Pod, kubelet.Volume) { return shared.describe(t, source, attributes...) }
	}
	for _, test := range []struct {
		name string
		make func() (kubelet.Pod, kubelet.Volume)
		want string
	}{
		{"of a Secret, by default", of("secretName", name), "-0400"},
		{"of a ConfigMap, by default", of("configMapName", name), "-0444"},
		{"given for the volume", of("secretName", name, "mode", "0644"), "-0644"},
		{"without a leading zero", of("secretName", name, "mode", "640"), "-0640"},
		{"executable", of("configMapName", name, "mode", "0755"), "-0755"},
		{"none at all", of("secretName", name, "mode", "0"), "-0000"},
		{"of one file", of("secretName", name, "mode", "0644", "mode/k", "0600"), "-0600"},
		{"of a described volume, by default", by(withModes(-1, -1)), "-0644"},
		{"the described volume's defaultMode", by(withModes(0o440, -1)), "-0440"},
		{"mode is stronger than defaultMode", by(withModes(0o440, -1), "mode", "0600"), "-0600"},
		{"an item's mode is stronger than mode", by(withModes(0o440, 0o400), "mode", "0600"), "-0400"},
		{"an item's mode, zero", by(withModes(0o440, 0), "mode", "0600"), "-0000"},
		{"the mode of one file is stronger than its item's", by(withModes(0o440, 0o400), "mode", "0600", "mode/k", "0640"),
			"-0640"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, v := test.make()
			s := see(t, d, p, v)
			if got := withOwnerAndMode(s, "k"); got != test.want+" 1000:0" {
				t.Errorf("the file is %s, want %s", got, test.want)
			}
		})
	}
}

// If the pod has an fsGroup, kubelet changes 0400 of a Secret volume to 0440, and 0755 of directories to 02775.
func TestFSGroupIsTheGroupAndWidensNoMode(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := shared.describe(t, secretVolume(name, false, items("k", "k", "k", "etc/own")...), "gid/etc/own", "5",
		"mode/etc/own", "0600")
	v.FSGroup = "3000"
	s := see(t, d, p, v)
	s.is(
		"d0755 1000:3000 .",
		"l0000 1000:3000 ..data -> "+tree.Generation,
		"d0755 1000:3000 "+tree.Generation,
		"d0755 1000:3000 "+tree.Generation+"/etc",
		`-0600 1000:5 `+tree.Generation+`/etc/own "1"`,
		`-0400 1000:3000 `+tree.Generation+`/k "1"`,
		"l0000 1000:3000 etc -> ..data/etc",
		"l0000 1000:3000 k -> ..data/k",
	)
	stronger := ssh("secretName", name, "gid", "7")
	stronger.FSGroup = "3000"
	if got := withOwnerAndMode(see(t, d, pod("gid"), stronger), "k"); got != "-0400 1000:7" {
		t.Errorf("with gid and fsGroup the file is %s, want -0400 1000:7", got)
	}
}

func TestDirectoriesAndLinksAreOwnedToo(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := shared.describe(t, secretVolume(name, false, items("k", "a/b/k")...), "uid", "70", "gid", "71", "dirMode",
		"0700")
	s := see(t, d, p, v)
	s.is(
		"d0700 70:71 .",
		"l0000 70:71 ..data -> "+tree.Generation,
		"d0700 70:71 "+tree.Generation,
		"d0700 70:71 "+tree.Generation+"/a",
		"d0700 70:71 "+tree.Generation+"/a/b",
		`-0400 70:71 `+tree.Generation+`/a/b/k "1"`,
		"l0000 70:71 a -> ..data/a",
	)
	if b, err := testkit.ReadAs(70, 70, s.dir+"/a/b/k"); err != nil || string(b) != "1" {
		t.Errorf("uid 70 reads %q, %v", b, err)
	}
	if _, err := testkit.ReadAs(71, 71, s.dir+"/a/b/k"); err == nil ||
		!strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("uid 71 must be denied, but: %v", err)
	}
}

// Kubelet's writer compares only bytes, so it does not change the owner of unchanged files.
func TestAnOwnerThatChangesWithARepublishIsRefusedAndNotHalfApplied(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	s := see(t, d, pod("owner"), ssh("secretName", name, "uid", "1000"))
	waits(t, d, s.pod, ssh("secretName", name, "uid", "1001"), codes.AlreadyExists, "other attributes")
	if got := withOwnerAndMode(s, "k"); got != "-0400 1000:0" {
		t.Errorf("the file is %s", got)
	}
}

// mountLine returns the volume's line of the mount table.
func (s *seen) mountLine() (options, kind, super string) {
	s.t.Helper()
	mounts := testkit.MountsBelow(s.t, s.target)
	if len(mounts) != 1 {
		s.t.Fatalf("mounts at the target: %q", mounts)
	}
	before, after, _ := strings.Cut(mounts[0], " - ")
	fields := strings.Fields(after)
	return strings.Fields(before)[5], fields[0], fields[2]
}

// Kubelet keeps Secrets on a tmpfs, and ConfigMaps on the disk. On the host, both are writable.
func TestEveryVolumeIsATmpfsThatIsReadOnlyOnTheHostToo(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"k": "1"})
		s := see(t, d, pod("mount"), ssh(k.attribute, name))
		options, kind, super := s.mountLine()
		if kind != "tmpfs" {
			t.Errorf("the volume is a %s", kind)
		}
		for _, option := range []string{"ro", "nosuid", "nodev", "noexec"} {
			if !has(options, option) {
				t.Errorf("the volume is mounted %s, without %s", options, option)
			}
		}
		for _, option := range []string{"size=", "nr_inodes="} {
			if !has(super, option) {
				t.Errorf("the tmpfs has %s, without %s", super, option)
			}
		}
		can := kernelHasNoSwap(t)
		if has(super, "noswap") != can || d.Metric("fsuser_noswap") == 1 != can {
			t.Errorf("that the kernel has noswap is %t; the tmpfs has %s, and the metric is %v", can, super,
				d.Metric("fsuser_noswap"))
		}
		if err := os.WriteFile(s.target+"/k", nil, 0o600); err == nil ||
			!strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("root wrote to the volume on the host: %v", err)
		}
	})
}

// kernelHasNoSwap reports whether the kernel can keep a tmpfs out of swap. It does not use the driver's code.
func kernelHasNoSwap(t *testing.T) bool {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("probe", dir, "tmpfs", 0, "noswap"); err == unix.EINVAL {
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	return true
}

func has(options, option string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == option || strings.HasSuffix(option, "=") && strings.HasPrefix(o, option) {
			return true
		}
	}
	return false
}

// Without SELinux, tmpfs refuses context=, so the driver must not set it.
func TestTheSELinuxContextIsAMountOptionWhereThereIsSELinux(t *testing.T) {
	nothingLeft(t)
	const label = "system_u:object_r:container_file_t:s0"
	d, name := shared.start(t, "--selinux-context="+label), objectName(t)
	setSecret(t, name, files{"k": "1"})
	s := see(t, d, pod("selinux"), ssh("secretName", name))
	var st unix.Statfs_t
	enabled := unix.Statfs("/sys/fs/selinux", &st) == nil && int64(st.Type) == unix.SELINUX_MAGIC
	if _, _, super := s.mountLine(); strings.Contains(super, "context=") != enabled || enabled &&
		!strings.Contains(super, label) {
		t.Errorf("SELinux is enabled: %t; the tmpfs has %s", enabled, super)
	}
}

func TestStatisticsAreBytesAndInodesOfTheVolume(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := pod("stats"), ssh("secretName", name)
	s := see(t, d, p, v)
	request := &csi.NodeGetVolumeStatsRequest{VolumeId: kubelet.VolumeID(p, v.Name), VolumePath: s.target}
	usage := func() (bytes, inodes *csi.VolumeUsage) {
		t.Helper()
		r, err := d.NodeGetVolumeStats(deadline(t), request)
		if err != nil {
			t.Fatal(err)
		}
		u := r.GetUsage()
		if len(u) != 2 || u[0].GetUnit() != csi.VolumeUsage_BYTES || u[1].GetUnit() != csi.VolumeUsage_INODES {
			t.Fatalf("the usage is %v", u)
		}
		for _, x := range u {
			if x.GetTotal() <= 0 || x.GetUsed() <= 0 || x.GetUsed()+x.GetAvailable() != x.GetTotal() {
				t.Errorf("the usage does not add up: %v", x)
			}
		}
		return u[0], u[1]
	}
	page := int64(os.Getpagesize())
	bytes, inodes := usage()
	if bytes.GetUsed() != page {
		t.Errorf("a file of one byte takes %d bytes, want a page", bytes.GetUsed())
	}
	// The inodes are the root, ..data, the generation, the link and the file.
	if inodes.GetUsed() != 5 {
		t.Errorf("the volume has %d inodes, want 5", inodes.GetUsed())
	}
	setSecret(t, name, files{"k": strings.Repeat("x", int(10*page)), "l": "1"})
	awaitText(t, s.dir+"/l", "1")
	// The last inode of the old version is freed when the driver closes the removed directory.
	testkit.Eventually(t, soon, "the old version to be gone", func() bool {
		bytes, inodes = usage()
		return inodes.GetUsed() == 7
	})
	if bytes.GetUsed() != 11*page {
		t.Errorf("after the update %d bytes are used, want %d", bytes.GetUsed(), 11*page)
	}
	request.VolumePath += "/elsewhere"
	if _, err := d.NodeGetVolumeStats(deadline(t), request); status.Code(err) != codes.NotFound {
		t.Errorf("statistics of a path that is no volume: %v", err)
	}
}

// TestEventsSayWhatKeepsAVolumeFromBeingCurrent checks the Events of a running pod. For a pod that waits, kubelet puts
// the text of the error into a FailedMount Event.
func TestEventsSayWhatKeepsAVolumeFromBeingCurrent(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "canary", "l": "canary"})
	p, v := shared.describe(t, secretVolume(name, false, items("k", "k", "l", "l")...))
	s := see(t, d, p, v)
	tell := func(reason, kind string, words ...string) {
		t.Helper()
		e := shared.event(t, p, reason)
		if e.Type != kind || e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.UID != types.UID(p.UID) ||
			e.Source.Component == "" {
			t.Errorf("%+v", e)
		}
		for _, word := range append(words, `volume "ssh"`) {
			if !strings.Contains(e.Message, word) {
				t.Errorf("event %s does not say %q: %s", reason, word, e.Message)
			}
		}
		if strings.Contains(e.Message, "canary") {
			t.Errorf("event %s has a value of the Secret in it: %s", reason, e.Message)
		}
	}
	setSecret(t, name, files{"k": "canary"})
	s.stale()
	tell("VolumeRefreshFailed", "Warning", `no key "l"`, `volume "described"`, "stay as they are")
	setSecret(t, name, files{"k": "canary", "l": "canary"})
	s.current()
	tell("VolumeRefreshRecovered", "Normal", name)
	deleteSecret(t, name)
	s.stale()
	tell("VolumeObjectMissing", "Warning", name, "not found", "stay as they are")
}
