// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// threeSources returns a projected volume of an optional Secret, a ConfigMap and the downward API.
func threeSources() corev1.VolumeSource {
	secret := secretProjection("a")
	secret.Secret.Optional = ptr.To(true)
	return projectedVolume(
		secret,
		configMapProjection("b", corev1.KeyToPath{Key: "k", Path: "conf/k", Mode: ptr.To[int32](0o600),
			User: ptr.To[int64](7)}),
		corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "app", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}},
		}}},
	)
}

// newThree returns a running harness with a volume of three sources, and the request for the volume.
func newThree(t *testing.T) (*harness, Request) {
	h := newFakeHarness(t)
	h.secret("a", content{"id": "1"})
	h.fake.set(configMapRef("b"), content{"k": "v", "unused": "x"})
	r := h.described("v", threeSources(), "uid", "1000", "gid", "2000")
	h.fake.setFields(r, "1", content{"metadata.labels": `app="web"`, "metadata.labels['app']": "web"})
	h.publish(r)
	h.run()
	return h, r
}

func TestSeveralSourcesMakeOneVolume(t *testing.T) {
	h, r := newThree(t)
	h.present(r, content{"id": "1", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	h.hasPermissions(r, map[string]permissions{
		"id": {0o644, 1000, 2000}, "conf/k": {0o600, 7, 2000}, "labels": {0o644, 1000, 2000}, "conf": {0o755, 1000, 2000},
	})
	h.unpublish(r)
	if got := h.subscriptions(); len(got) > 0 {
		t.Errorf("subscriptions after unpublish: %q", got)
	}
}

func TestAChangeOfAnySourceRefreshesTheVolume(t *testing.T) {
	h, r := newThree(t)
	h.secret("a", content{"id": "2"})
	h.becomes(r, content{"id": "2", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	h.fake.set(configMapRef("b"), content{"k": "w"})
	h.becomes(r, content{"id": "2", "conf/k": "w", "labels": `app="web"`, "app": "web"})
	h.fake.setFields(r, "2", content{"metadata.labels": "", "metadata.labels['other']": "x"})
	h.becomes(r, content{"id": "2", "conf/k": "w", "labels": "", "app": ""})
	h.unpublish(r)
}

func TestAnOptionalSourceComesAndGoes(t *testing.T) {
	h, r := newThree(t)
	h.removeSecret("a")
	h.becomes(r, content{"conf/k": "v", "labels": `app="web"`, "app": "web"})
	if stale := h.statusOf(r).Stale; stale != "" {
		t.Errorf("stale: %s", stale)
	}
	h.secret("a", content{"id": "again"})
	h.becomes(r, content{"id": "again", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	h.unpublish(r)
}

func TestASourceThatIsMissingFailsThePublishAndLeavesNothing(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("a", content{"id": "1"})
	r := h.described("v", threeSources())
	h.fake.setFields(r, "1", content{})
	before := h.snapshot()
	isErr(t, h.Publish(t.Context(), r), source.ErrNotFound, `ConfigMap "ns/b"`)
	h.unchanged(before)
	h.absent(r)
}

// The volume "described" has the keys of a, and either all keys of b or, with an item, the file d/k.
func TestOfTwoSourcesTheLaterWins(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("a", content{"k": "a's", "only": "a"})
	h.fake.set(configMapRef("b"), content{"k": "b's"})
	r := h.described("v", projectedVolume(secretProjection("a"), configMapProjection("b")), "uid", "1000")
	h.publish(r)
	h.present(r, content{"k": "b's", "only": "a"})
	h.run()
	h.fake.set(configMapRef("b"), content{})
	h.becomes(r, content{"k": "a's", "only": "a"})
	h.fake.set(configMapRef("b"), content{"only": "b's"})
	h.becomes(r, content{"k": "a's", "only": "b's"})
	h.unpublish(r)
}

func TestAFileAndADirectoryOfOnePathAreRefused(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("a", content{"d": "1"})
	h.fake.set(configMapRef("b"), content{"k": "2"})
	item := corev1.KeyToPath{Key: "k", Path: "d/k"}
	r := h.described("v", projectedVolume(secretProjection("a"), configMapProjection("b", item)), "uid", "1000")
	before := h.snapshot()
	isErr(t, h.Publish(t.Context(), r), ErrPrecondition, `"d/k"`, `"d", which is a file`)
	h.unchanged(before)

	// The same keys in a refresh keep the old version whole.
	h.secret("a", content{"other": "old"})
	h.publish(r)
	h.run()
	h.secret("a", content{"d": "1"})
	h.becomesStale(r, `"d/k"`)
	h.present(r, content{"other": "old", "d/k": "2"})
	h.unpublish(r)
}

func TestPathsAsKubeletTakesThem(t *testing.T) {
	h := newHarness(t)
	paths := []string{"certs.d/host:5000/ca.crt", `back\slash`, "new\nline", "a b/..c/d"}
	var items []string
	want := content{}
	for _, path := range paths {
		items = append(items, "k", path)
		want[path] = "v"
	}
	h.secret("keys", content{"k": "v"})
	r := h.described("v", secretVolume("keys", items...), "uid", "1000", "mode/new\nline", "0600",
		"uid/certs.d/host:5000/ca.crt", "7")
	h.publish(r)
	h.present(r, want)
	h.hasPermissions(r, map[string]permissions{"new\nline": {0o600, 1000, 0}, "certs.d/host:5000/ca.crt": {0o644, 7, 0}})
	h.restart()
	h.publish(r)
	h.present(r, want)
	h.unpublish(r)
}

func TestAPodsStatusAloneRewritesNothing(t *testing.T) {
	h, r := newThree(t)
	generation := readlink(t, r)
	h.fake.setFields(r, "2", content{"metadata.labels": `app="web"`, "metadata.labels['app']": "web"})
	must(t, h.refreshNow(r))
	if now := readlink(t, r); now != generation {
		t.Errorf("%s became %s", generation, now)
	}
	h.unpublish(r)
}

// A StatefulSet's new pod has the name of the old pod.
func TestAnotherPodOfTheSameNameIsNotShown(t *testing.T) {
	h, r := newThree(t)
	other := r
	other.Pod.UID = "another"
	h.fake.setFields(other, "9", content{"metadata.labels": "another's", "metadata.labels['app']": "another's"})
	h.becomesStale(r, "there is another pod of this name")
	h.present(r, content{"id": "1", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	h.unpublish(r)
}

func TestSourcesSurviveARestart(t *testing.T) {
	h, r := newThree(t)
	h.secret("a", content{"id": "while away"})
	h.restart()
	h.run()
	h.becomes(r, content{"id": "while away", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	h.isThere(r)
	generation := readlink(t, r)
	h.publish(r)
	if now := readlink(t, r); now != generation {
		t.Error("a republish wrote what was there already")
	}
	h.unpublish(r)
}

// fullyDescribed returns a harness with a volume for which the pod sets everything that a pod can set. want returns the
// files for a value of the Secret's only key.
func fullyDescribed(t *testing.T) (h *harness, r Request, want func(value string) content) {
	h = newFakeHarness(t)
	h.secret("keys", content{"k": "1"})
	described := secretVolume("keys", "k", "d/f", "k", "g")
	s := described.Secret
	s.DefaultMode, s.DefaultUser, s.Items[0].Mode, s.Items[0].User = ptr.To[int32](0o440), ptr.To[int64](70),
		ptr.To[int32](0o600), ptr.To[int64](71)
	r = h.request("v", "volume", "described", "gid", "2000", "gid/g", "2001", "dirMode", "0711")
	h.describe(r, described, func(pod *corev1.Pod) {
		c := &pod.Spec.Containers[0]
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr.To[int64](99)} // weaker than defaultUser
		c.VolumeMounts = append(c.VolumeMounts,
			corev1.VolumeMount{Name: "other", MountPath: "/v/data/in"},
			corev1.VolumeMount{Name: "v", MountPath: "/sub", SubPath: "later"})
	})
	return h, r, func(value string) content { return content{"d/f": value, "g": value} }
}

// showsDescription checks everything that the pod sets for the volume of fullyDescribed.
func (h *harness) showsDescription(r Request) {
	h.t.Helper()
	h.hasPermissions(r, map[string]permissions{
		".": {0o711, 70, 2000}, "d": {0o711, 70, 2000}, "d/f": {0o600, 71, 2000}, "g": {0o440, 70, 2001},
		"data": {0o711, 70, 2000}, "data/in": {0o711, 70, 2000}, "later": {0o711, 70, 2000},
	})
}

func TestThePodIsReadOnceAndTheRecordHasItsDescription(t *testing.T) {
	h, r, want := fullyDescribed(t)
	h.publish(r)
	h.present(r, want("1"))
	h.showsDescription(r)
	reads := func(when string) {
		t.Helper()
		if n := h.fake.called("Pod"); n != 1 {
			t.Errorf("%s: the pod was read %d times, want once", when, n)
		}
	}
	reads("first publish")
	h.fake.failPod(source.ErrUnavailable) // From now on the volume must not depend on the pod.
	h.publish(r)
	reads("republish")
	h.run()
	h.secret("keys", content{"k": "2"})
	h.becomes(r, want("2"))
	reads("refresh")
	h.showsDescription(r)

	h.restart()
	h.run()
	h.secret("keys", content{"k": "3"})
	h.becomes(r, want("3"))
	h.publish(r)
	h.showsDescription(r)
	reads("restart")
	if got := h.subscriptions(); !slices.Equal(got, []string{`Secret "ns/keys" for csi-v`}) {
		t.Errorf("subscriptions after the restart: %q", got)
	}
	h.unpublish(r)
}

func TestARepublishIsComparedByItsAttributes(t *testing.T) {
	for _, restart := range []bool{false, true} {
		h, r, want := fullyDescribed(t)
		h.publish(r)
		if restart {
			h.restart()
		}
		before := h.snapshot()
		h.publish(r)
		for _, attrs := range [][]string{
			{"volume", "another", "gid", "2000", "gid/g", "2001", "dirMode", "0711"},
			{"volume", "described", "gid", "2000", "dirMode", "0711"},
			{"volume", "described", "gid", "2000", "gid/g", "2002", "dirMode", "0711"},
			{"volume", "described", "gid", "2000", "gid/g", "2001", "mode/g", "0400", "dirMode", "0711"},
			{"volume", "described", "gid", "2000", "gid/g", "2001", "dirMode", "0711", "mode", "0400"},
			{"volume", "described", "gid", "2000", "gid/g", "2001", "dirMode", "0711", "uid", "70"},
			{"secretName", "keys", "gid", "2000", "gid/g", "2001", "dirMode", "0711"},
		} {
			isErr(t, h.Publish(t.Context(), h.request("v", attrs...)), ErrConflict)
		}
		h.unchanged(before)
		h.present(r, want("1"))
		h.unpublish(r)
	}
}

func TestAdoptionOfADescribedVolume(t *testing.T) {
	h, r, want := fullyDescribed(t)
	h.publish(r)
	mount := mountID(t, r)
	h.loseRecords()
	if h.get(r.ID) != nil {
		t.Fatal("the volume is known without a record")
	}

	// While the pod can't be read, the mount stays as it is.
	before := h.snapshot()
	for _, reason := range []error{source.ErrUnavailable, source.ErrForbidden, source.ErrNotFound} {
		h.fake.failPod(reason)
		err := h.Publish(t.Context(), r)
		isErr(t, err, reason, "read the pod")
		isErr(t, err, ErrLeftover) // The mount is left: kubelet must unpublish the volume.
		h.unchanged(before)
	}

	h.fake.failPod(nil)
	h.secret("keys", content{"k": "2"})
	h.publish(r)
	h.present(r, want("2"))
	h.showsDescription(r)
	if now := mountID(t, r); now != mount {
		t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
	}
	h.unpublish(r)
}

// A pod with a wrong description, or one that the driver may not read, fails the publish, which leaves nothing.
func TestADescriptionThatIsNotThereLeavesNothing(t *testing.T) {
	for _, test := range []struct {
		name    string
		volume  string
		prepare func(h *harness, r Request)
		want    error
		says    []string
	}{
		{"no volume of the name", "nowhere", func(*harness, Request) {}, ErrInvalid,
			[]string{"volumeAttributes[volume]", `"nowhere"`, "has no volume of this name"}},
		{"the volume itself", "v", func(*harness, Request) {}, ErrInvalid,
			[]string{"volumeAttributes[volume]", "another volume"}},
		{"a volume of another type", "described", func(h *harness, r Request) {
			h.describe(r, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
		}, ErrInvalid, []string{"volumeAttributes[volume]", `"described"`,
			"none of secret, configMap, downwardAPI and projected"}},
		{"a token, which only kubelet can make", "described", func(h *harness, r Request) {
			h.describe(r, projectedVolume(secretProjection("keys"),
				corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}))
		}, ErrInvalid, []string{"only kubelet can make"}},
		{"the pod may not be read", "described", func(h *harness, _ Request) { h.fake.failPod(source.ErrForbidden) },
			source.ErrForbidden, []string{"read the pod"}},
		{"the pod can't be read now", "described", func(h *harness, _ Request) { h.fake.failPod(source.ErrUnavailable) },
			source.ErrUnavailable, []string{"read the pod"}},
		{"another pod of the name", "described", func(h *harness, r Request) {
			r.Pod.UID = "another"
			h.describe(r, secretVolume("keys"))
		}, source.ErrNotFound, []string{"another pod of this name"}},
		{"a mount point at a file", "described", func(h *harness, r Request) {
			h.describe(r, secretVolume("keys"), mounted("other", "/v/k"))
		}, ErrPrecondition, []string{`another volume is mounted at "k"`}},
		{"a mount point in a file's directory", "described", func(h *harness, r Request) {
			h.describe(r, secretVolume("keys", "k", "d/f"), mounted("other", "/v/d/m"))
		}, ErrPrecondition, []string{`another volume is mounted at "d/m"`, `directory "d" of its own`}},
		{"the node may not be read", "described", func(h *harness, r Request) {
			h.describe(r, memoryLimit())
			h.fake.setAllocatable(nil, source.ErrForbidden)
		}, source.ErrForbidden, []string{"allocatable"}},
		{"the node can't be read now", "described", func(h *harness, r Request) {
			h.describe(r, memoryLimit())
			h.fake.setAllocatable(nil, source.ErrUnavailable)
		}, source.ErrUnavailable, []string{"allocatable"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			r := h.request("v", "volume", test.volume)
			h.fake.setFields(r, "1", content{"app/": ""})
			if test.volume == "described" {
				h.describe(r, secretVolume("keys"))
			}
			test.prepare(h, r)
			before := h.snapshot()
			isErr(t, h.Publish(t.Context(), r), test.want, test.says...)
			h.unchanged(before)
			h.absent(r)
		})
	}
}

// mounted makes the first container mount a volume.
func mounted(volume, path string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		c := &pod.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: path})
	}
}

// memoryLimit returns a volume that shows the memory limit of the container "app".
func memoryLimit() corev1.VolumeSource {
	return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
		{Path: "limit", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.memory"}},
		{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "app", Resource: "limits.cpu"}},
	}}}
}

func TestWithoutALimitAFileShowsTheNodesAllocatable(t *testing.T) {
	h := newFakeHarness(t)
	h.fake.setAllocatable(corev1.ResourceList{"memory": resource.MustParse("8Gi"), "cpu": resource.MustParse("3500m")},
		nil)
	r := h.request("v", "volume", "described", "uid", "1000")
	h.describe(r, memoryLimit())
	h.fake.setFields(r, "1", content{"app/": "", "app/limits.cpu": "2"})
	h.publish(r)
	want := content{"limit": "8589934592", "cpu": "2"}
	h.present(r, want)
	if got := h.record(r.ID).Allocatable["memory"]; got != "8Gi" {
		t.Errorf("the record says that the node's memory is %q", got)
	}

	// A file of a published volume changes neither with the node nor during an outage of the API server.
	h.fake.setAllocatable(corev1.ResourceList{"memory": resource.MustParse("1Gi")}, source.ErrUnavailable)
	h.fake.failPod(source.ErrUnavailable)
	h.restart()
	h.publish(r)
	h.present(r, want)
	h.run()
	h.fake.setFields(r, "2", content{"app/": ""})
	h.becomes(r, content{"limit": "8589934592", "cpu": "4"})
	if n := h.fake.called("Allocatable"); n != 1 {
		t.Errorf("the node was read %d times, want once", n)
	}
	h.unpublish(r)
}

func TestTheNodeIsReadOnlyForALimit(t *testing.T) {
	h, r := newThree(t)
	if n := h.fake.called("Allocatable"); n != 0 {
		t.Errorf("the node was read %d times", n)
	}
	h.unpublish(r)
}

func TestPodAndNodeComeFromManifests(t *testing.T) {
	h := newHarness(t)
	h.writeManifest("node", &corev1.Node{
		TypeMeta: typeMeta("Node"),
		Status:   corev1.NodeStatus{Allocatable: corev1.ResourceList{"memory": resource.MustParse("1Ki")}},
	})
	r := h.request("v", "volume", "described")
	h.describe(r, memoryLimit(), func(pod *corev1.Pod) {
		c := &pod.Spec.Containers[0]
		c.Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("1500m")}
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr.To[int64](70)}
	})
	h.publish(r)
	h.present(r, content{"limit": "1024", "cpu": "2"})
	h.hasPermissions(r, map[string]permissions{"limit": {0o644, 70, 0}})
	h.unpublish(r)
}

func TestMountPointsSurviveRefreshesAndWhatIsMountedOnThemToo(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "0"})
	r := h.request("v", "volume", "described", "uid", "1000", "gid", "2000", "dirMode", "0750")
	h.describe(r, secretVolume("keys"), mounted("other", "/v/data"), mounted("third", "/v/run/deep"))
	h.publish(r)
	paths := []string{"data", "run", "run/deep"}
	inodes := map[string]uint64{}
	for _, path := range paths {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(r.TargetPath, path), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%s is no directory: mode %o", path, st.Mode)
		}
		inodes[path] = st.Ino
	}
	h.hasPermissions(r, map[string]permissions{"data": {0o750, 1000, 2000}, "run": {0o750, 1000, 2000},
		"run/deep": {0o750, 1000, 2000}})
	container, undo := testkit.AsContainer(t, r.TargetPath)
	defer undo()
	must(t, unix.Mount("other", filepath.Join(container, "data"), "tmpfs", 0, "size=64k"))
	must(t, os.WriteFile(filepath.Join(container, "data", "precious"), []byte("precious"), 0o600))

	h.run()
	for _, c := range []content{{"k": "1"}, {"other": "2"}, {}, {"k": "3", "l": "4"}} {
		h.secret("keys", c)
		h.becomes(r, c)
		if b, err := os.ReadFile(filepath.Join(container, "data", "precious")); string(b) != "precious" {
			t.Errorf("with %v, what is mounted in the container is gone: %q, %v", c, b, err)
		}
	}
	for _, path := range paths {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(r.TargetPath, path), &st))
		if st.Ino != inodes[path] {
			t.Errorf("%s is another directory: inode %d, before: %d", path, st.Ino, inodes[path])
		}
	}

	// A key that requires the name of a mount point keeps the old version.
	h.secret("keys", content{"data": "5"})
	h.becomesStale(r, `another volume is mounted at "data"`)
	h.shows(r, content{"k": "3", "l": "4"})
	h.secret("keys", content{"k": "6"})
	h.becomes(r, content{"k": "6"})
	undo()
	h.unpublish(r)
}

func TestASubPathThatNamesNothingIsADirectoryUntilTheFileComes(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "1"})
	r := h.request("v", "volume", "described", "uid", "1000")
	h.describe(r, secretVolume("keys"), func(pod *corev1.Pod) {
		c := &pod.Spec.Containers[0]
		for _, subPath := range []string{"later", "k", "deep/er"} {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/" + subPath, SubPath: subPath})
		}
	})
	h.publish(r)
	h.present(r, content{"k": "1"})
	h.hasPermissions(r, map[string]permissions{"later": {0o755, 1000, 0}, "deep/er": {0o755, 1000, 0}})
	h.run()
	isDirectory := func(path string) bool {
		st, err := os.Stat(filepath.Join(r.TargetPath, path))
		return err == nil && st.IsDir()
	}
	if !isDirectory("later") || !isDirectory("deep/er") || isDirectory("k") {
		t.Errorf("directories: later %v, deep/er %v, k %v", isDirectory("later"), isDirectory("deep/er"), isDirectory("k"))
	}
	h.secret("keys", content{"later": "here"})
	h.becomes(r, content{"later": "here"})
	testkit.Eventually(t, patience, "k to be a directory", func() bool { return isDirectory("k") })
	h.secret("keys", content{"k": "2"})
	h.becomes(r, content{"k": "2"})
	testkit.Eventually(t, patience, "later to be a directory again", func() bool { return isDirectory("later") })
	h.unpublish(r)
}

// One container mounts the volume, and another volume beneath it. A second container mounts that directory by subPath.
func TestASubPathCanBeAMountPoint(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "1"})
	r := h.request("v", "volume", "described", "uid", "1000")
	h.describe(r, secretVolume("keys"), mounted("other", "/v/data"), mounted("other", "/v/run/deep"),
		func(pod *corev1.Pod) {
			pod.Spec.Containers = append(pod.Spec.Containers,
				corev1.Container{Name: "second", VolumeMounts: []corev1.VolumeMount{
					{Name: "v", MountPath: "/a", SubPath: "data"}, {Name: "v", MountPath: "/b", SubPath: "data/sub"},
					{Name: "v", MountPath: "/c", SubPath: "run"},
				}})
		})
	h.publish(r)
	h.present(r, content{"k": "1"})
	want := map[string]permissions{}
	for _, path := range []string{"data", "data/sub", "run", "run/deep"} {
		want[path] = permissions{0o755, 1000, 0}
	}
	h.hasPermissions(r, want)
	h.secret("keys", content{"k": "2"})
	h.publish(r)
	h.present(r, content{"k": "2"})
	h.hasPermissions(r, want)
	h.unpublish(r)
}

func TestAPATHThatNamesNoFile(t *testing.T) {
	optional := func(v corev1.VolumeSource) corev1.VolumeSource {
		v.Secret.Optional = ptr.To(true)
		return v
	}
	optionalProjection := secretProjection("later")
	optionalProjection.Secret.Optional = ptr.To(true)
	for _, test := range []struct {
		name      string
		described corev1.VolumeSource
		wrong     bool
	}{
		{"all is there", secretVolume("keys"), true},
		{"all items are there", secretVolume("keys", "k", "k"), true},
		{"all is there of an optional Secret", optional(secretVolume("keys")), true},
		{"an optional Secret is missing", projectedVolume(secretProjection("keys"), optionalProjection), false},
		{"an optional key is missing", optional(secretVolume("keys", "k", "k", "later", "later")), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "1"})
			r := h.described("v", test.described, "uid", "1000", "mode/later", "0600", "mode/k", "0400")
			if test.wrong {
				before := h.snapshot()
				isErr(t, h.Publish(t.Context(), r), ErrPrecondition, `PATH "later"`, "no file of", `Secret "ns/keys"`)
				h.unchanged(before)
				h.absent(r)
				return
			}
			h.publish(r)
			h.present(r, content{"k": "1"})
			h.run()
			h.secret("later", content{"later": "here"})
			h.secret("keys", content{"k": "2", "later": "here"})
			h.becomes(r, content{"k": "2", "later": "here"})
			h.hasPermissions(r, map[string]permissions{"later": {0o600, 1000, 0}, "k": {0o400, 1000, 0}})
			h.unpublish(r)
		})
	}
}

// A file may go and come back, so only the first publish can detect a mistake in the attributes.
func TestAPATHWhoseFileGoesIsNoErrorOfARefresh(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "1", "l": "1"})
	r := h.request("v", "secretName", "keys", "uid", "1000", "uid/l", "7")
	h.publish(r)
	h.run()
	h.secret("keys", content{"k": "2"})
	h.becomes(r, content{"k": "2"})
	h.publish(r)
	if s := h.statusOf(r); s.Stale != "" {
		t.Errorf("stale: %s", s.Stale)
	}
	h.secret("keys", content{"k": "3", "l": "3"})
	h.becomes(r, content{"k": "3", "l": "3"})
	h.hasPermissions(r, map[string]permissions{"l": {0o400, 7, 0}, "k": {0o400, 1000, 0}})
	h.unpublish(r)
}

func TestDownward(t *testing.T) {
	pod := source.Content{Data: content{
		"metadata.name": "web-0", "metadata.labels['a']": "b", "app/": "", "app/limits.cpu": "1500m",
		"app/requests.cpu":  "1m",
		"app/limits.memory": "100Mi", "app/requests.memory": "1025", "app/limits.hugepages-2Mi": "4Mi", "idle/": "",
		"idle/limits.memory": "0",
	}.bytes()}
	allocatable := map[string]string{"cpu": "3500m", "memory": "8Gi", "ephemeral-storage": "10"}
	resource := func(container, key, divisor string) attributes.Item {
		return attributes.Item{Key: key, Container: container, Divisor: divisor, Path: "f"}
	}
	for _, test := range []struct {
		name string
		item attributes.Item
		want string
		err  string
	}{
		{"a field", attributes.Item{Key: "metadata.name"}, "web-0", ""},
		{"a label", attributes.Item{Key: "metadata.labels['a']"}, "b", ""},
		{"a label that is not there is empty", attributes.Item{Key: "metadata.labels['x']"}, "", ""},
		{"an address that is not known yet is empty", attributes.Item{Key: "status.podIP"}, "", ""},
		{"CPUs are rounded up", resource("app", "limits.cpu", ""), "2", ""},
		{"CPUs by the thousandth", resource("app", "limits.cpu", "1m"), "1500", ""},
		{"a thousandth of a CPU is one, rounded up", resource("app", "requests.cpu", "1"), "1", ""},
		{"bytes", resource("app", "limits.memory", ""), "104857600", ""},
		{"mebibytes", resource("app", "limits.memory", "1Mi"), "100", ""},
		{"kibibytes are rounded up", resource("app", "requests.memory", "1Ki"), "2", ""},
		{"huge pages", resource("app", "limits.hugepages-2Mi", "1Mi"), "4", ""},
		{"a request that the container does not make is 0", resource("idle", "requests.memory", "1Mi"), "0", ""},
		{"a CPU limit that it does not set is the node's", resource("idle", "limits.cpu", "1m"), "3500", ""},
		{"a limit of 0 is none", resource("idle", "limits.memory", "1Gi"), "8", ""},
		{"storage, too", resource("idle", "limits.ephemeral-storage", ""), "10", ""},
		{"a limit of what the node does not have is 0", resource("idle", "limits.hugepages-2Mi", ""), "0", ""},
		{"a container that is not there", resource("other", "requests.cpu", ""), "", `has no container "other"`},
		{"a divisor of 0", resource("app", "limits.cpu", "0"), "", `divisor "0"`},
		{"a divisor that is no quantity", resource("app", "limits.cpu", "x"), "", `divisor "x"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := downward(pod, test.item, allocatable)
			if string(got) != test.want || (test.err == "") != (err == nil) || err != nil &&
				!strings.Contains(err.Error(), test.err) {
				t.Errorf("got %q, %v, want %q, %s", got, err, test.want, test.err)
			}
		})
	}
}

// nodePublishSecretRef requires no access to the API server, so nothing is read or watched for it.
func TestNodePublishSecretRefReadsNothing(t *testing.T) {
	for _, uid := range []string{"", "1000"} {
		h, log := eventHarness(t)
		h.fake.failPod(errors.New("nobody may ask"))
		attrs, owner, event := []string{"uid", uid}, uint32(1000), ""
		if uid == "" {
			attrs, owner, event = nil, 0, "Warning VolumeOwnerUnknown"
		}
		r := h.request("v", attrs...)
		h.publish(r)
		h.present(r, content{"k": "from the request"})
		h.hasPermissions(r, map[string]permissions{"k": {0o400, owner, 0}})
		if got := log.take(t, r, "nodePublishSecretRef"); got != event {
			t.Errorf("uid %q: events %q, want %q", uid, got, event)
		}
		r.Secrets = map[string]string{"k": "new"}
		h.publish(r)
		h.restart()
		h.run()
		r.Secrets = map[string]string{"k": "newer"}
		h.publish(r)
		h.present(r, content{"k": "newer"})
		h.hasPermissions(r, map[string]permissions{"k": {0o400, owner, 0}})
		h.loseRecords()
		h.publish(r)
		h.hasPermissions(r, map[string]permissions{"k": {0o400, owner, 0}})
		h.unpublish(r)
		if got := h.fake.calls; !maps.Equal(got, map[string]int{}) {
			t.Errorf("uid %q: calls of the source %v, want none", uid, got)
		}
		if got := log.take(t, r, ""); got != "" {
			t.Errorf("uid %q: more events: %q", uid, got)
		}
	}
}
