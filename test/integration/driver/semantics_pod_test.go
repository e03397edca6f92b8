// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

func TestEachSourceComesAndGoesByItsOwnRules(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	p, v := shared.describe(t, projectedVolume(
		secretSource(name),
		configMapSource(name, false, items("a", "conf/a", "b", "conf/b")...),
		configMapSource(name+"-optional", true),
	))
	setSecret(t, name, files{"k": "1"})
	waits(t, d, p, v, codes.NotFound, `ConfigMap "default/`+name+`"`)
	setConfigMap(t, name, files{"a": "1", "b": "1"}, nil)
	s := see(t, d, p, v)
	s.becomes(files{"k": "1", "conf/a": "1", "conf/b": "1"})
	setConfigMap(t, name+"-optional", files{"o": "1"}, nil)
	s.becomes(files{"k": "1", "conf/a": "1", "conf/b": "1", "o": "1"})
	// If one source can't be refreshed, the files of all sources stay.
	setConfigMap(t, name, files{"a": "2"}, nil)
	s.stale()
	deleteConfigMap(t, name+"-optional")
	s.stays(files{"k": "1", "conf/a": "1", "conf/b": "1", "o": "1"})
	setConfigMap(t, name, files{"a": "3", "b": "3"}, nil)
	s.becomes(files{"k": "1", "conf/a": "3", "conf/b": "3"})
	s.current()
	deleteSecret(t, name)
	s.stale()
	s.stays(files{"k": "1", "conf/a": "3", "conf/b": "3"})
}

// patchPod patches a pod, or a subresource of it.
func patchPod(t *testing.T, p kubelet.Pod, patch string, subresource ...string) {
	t.Helper()
	pods := shared.CoreV1().Pods(p.Namespace)
	if _, err := pods.Patch(deadline(t), p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{},
		subresource...); err != nil {
		t.Fatal(err)
	}
}

func TestFieldsFollowThePod(t *testing.T) {
	nothingLeft(t)
	d := shared.start(t)
	downward := corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: append(
		fieldFiles("name", "metadata.name", "uid", "metadata.uid", "labels", "metadata.labels",
			"one/label", "metadata.labels['a']", "annotation", "metadata.annotations['example.com/x']"),
		resourceFile("cpu", "requests.cpu", "1m"),
	)}}
	p, v := shared.describeIn(t, downward, func(spec *corev1.PodSpec) {
		spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}
	})
	patchPod(t, p, `{"metadata":{"labels":{"b":"2","a":"1"}}}`)
	s := see(t, d, p, v)
	want := files{"name": p.Name, "uid": p.UID, "labels": "a=\"1\"\nb=\"2\"", "one/label": "1", "annotation": "",
		"cpu": "1500"}
	s.becomes(want)
	patchPod(t, p, `{"metadata":{"labels":{"a":null},"annotations":{"example.com/x":"two\nlines"}}}`)
	want["labels"], want["one/label"], want["annotation"] = `b="2"`, "", "two\nlines"
	s.becomes(want)
}

// TestALimitThatIsNotSetIsTheNodesAllocatable shows the same values as kubelet's MergeContainerResourceLimits.
func TestALimitThatIsNotSetIsTheNodesAllocatable(t *testing.T) {
	for _, access := range []struct {
		name    string
		cluster func(*testing.T) *cluster
	}{
		{"service-account", func(*testing.T) *cluster { return shared }},
		{"node", func(t *testing.T) *cluster { return startCluster(t).asNode(t) }},
	} {
		t.Run(access.name, func(t *testing.T) {
			nothingLeft(t)
			c := access.cluster(t)
			d := c.start(t)
			source := corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				resourceFile("cpu", "limits.cpu", "1m"), resourceFile("memory", "limits.memory", "1Mi"),
				resourceFile("storage", "limits.ephemeral-storage", "1Gi"), resourceFile("request", "requests.memory", "1Mi"),
			}}}
			p, v := c.describeIn(t, source, func(spec *corev1.PodSpec) {
				spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			})
			want := files{"cpu": "3500", "memory": "64", "storage": "90", "request": "64"}
			s := see(t, d, p, v)
			s.becomes(want)
			// The record has the values, so a driver that starts does not read the Node.
			d.Kill()
			d.StartAgain()
			if _, err := d.Publish(deadline(t), p, v); err != nil {
				t.Fatal(err)
			}
			s.current()
			s.stays(want)
		})
	}
}

// TestWithoutTheRightToReadTheNodeOnlyVolumesThatShowItWait withdraws the right to read the Node.
func TestWithoutTheRightToReadTheNodeOnlyVolumesThatShowItWait(t *testing.T) {
	nothingLeft(t)
	c := startCluster(t)
	if err := c.RbacV1().ClusterRoleBindings().Delete(deadline(t), "reads-nodes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	d := c.start(t)
	showing := func(files ...corev1.DownwardAPIVolumeFile) corev1.VolumeSource {
		return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: files}}
	}
	p, v := c.describe(t, showing(resourceFile("memory", "limits.memory", "")))
	var err error
	testkit.Eventually(t, soon, "the API server to know that the right is gone", func() bool {
		if _, err = d.Publish(deadline(t), p, v); err == nil {
			unpublish(t, d, p, v.Name)
		}
		return err != nil
	})
	waits(t, d, p, v, codes.PermissionDenied, "allocatable", nodeaccess.Node, "get nodes")
	p, v = c.describe(t, showing(resourceFile("memory", "requests.memory", "")))
	see(t, d, p, v).becomes(files{"memory": "0"})
}

// TestAFileThatHasAnOwnerOfItsOwn shows the order of precedence of owners.
func TestAFileThatHasAnOwnerOfItsOwn(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"a": "1", "b": "2"})
	s := see(t, d, pod("owners"), ssh("secretName", name, "uid", "70", "gid", "71", "uid/b", "72", "gid/b", "73", "mode/b",
		"0440"))
	s.is(
		"d0755 70:71 .",
		"l0000 70:71 ..data -> "+tree.Generation,
		"d0755 70:71 "+tree.Generation,
		`-0400 70:71 `+tree.Generation+`/a "1"`,
		`-0440 72:73 `+tree.Generation+`/b "2"`,
		"l0000 70:71 a -> ..data/a",
		"l0000 70:71 b -> ..data/b",
	)
	// When a file is removed and added again, it has the same owner.
	setSecret(t, name, files{"a": "3"})
	s.becomes(files{"a": "3"})
	setSecret(t, name, files{"a": "4", "b": "5"})
	s.becomes(files{"a": "4", "b": "5"})
	if got := withOwnerAndMode(s, "b"); got != "-0440 72:73" {
		t.Errorf("the file is %s", got)
	}
}

// TestAPathThatNamesNoFileIsAnErrorAtTheFirstPublish covers uid/PATH, gid/PATH and mode/PATH.
func TestAPathThatNamesNoFileIsAnErrorAtTheFirstPublish(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"a": "1"})
	waits(t, d, pod("path"), ssh("secretName", name, "uid/b", "70"), codes.FailedPrecondition, `"b"`, name)
	p, v := shared.describe(t, secretVolume(name, false, items("a", "etc/a")...), "mode/a", "0600")
	waits(t, d, p, v, codes.FailedPrecondition, `"a"`)
	// If something optional is missing, the file may still come.
	p, v = shared.describe(t, secretVolume(name, true, items("a", "a", "b", "b")...), "uid/b", "70")
	s := see(t, d, p, v)
	s.becomes(files{"a": "1"})
	setSecret(t, name, files{"a": "1", "b": "2"})
	s.becomes(files{"a": "1", "b": "2"})
	if got := withOwnerAndMode(s, "b"); got != "-0400 70:0" {
		t.Errorf("the file is %s", got)
	}
}

// TestTheOwnerIsTheUserOfTheContainersThatMountTheVolume has a sidecar with another user that does not mount the
// volume.
func TestTheOwnerIsTheUserOfTheContainersThatMountTheVolume(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	user := func(uid int64) *corev1.SecurityContext { return &corev1.SecurityContext{RunAsUser: &uid} }
	for _, test := range []struct {
		name   string
		change func(*corev1.PodSpec)
		want   string
	}{
		{"the user of the only container", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext = user(70) },
			"-0400 70:0"},
		{"a sidecar does not mount it", func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = user(70)
			s.InitContainers = []corev1.Container{{
				Name: "sidecar", Image: "none", SecurityContext: user(1337),
				RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways),
			}}
		}, "-0400 70:0"},
		{"an init container mounts it as another user", func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = user(70)
			s.InitContainers = []corev1.Container{{
				Name: "init", Image: "none", SecurityContext: user(71), VolumeMounts: s.Containers[0].VolumeMounts,
			}}
		}, "-0400 0:0"},
		{"nobody has a user", func(*corev1.PodSpec) {}, "-0400 0:0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, v := shared.describeIn(t, secretVolume(name, false), test.change)
			delete(v.Attributes, "uid")
			s := see(t, d, p, v)
			if got := withOwnerAndMode(s, "k"); got != test.want {
				t.Errorf("the file is %s, want %s", got, test.want)
			}
			if strings.Contains(test.want, " 0:") {
				shared.event(t, p, "VolumeOwnerUnknown")
			}
		})
	}
}

// TestTheDefinitionIsReadOnce counts the driver's requests to the API server.
func TestTheDefinitionIsReadOnce(t *testing.T) {
	nothingLeft(t)
	d, proxy := shared.startBehind(t)
	name := objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := shared.describe(t, secretVolume(name, false))
	path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s", p.Namespace, p.Name)
	reads := func() (n int) {
		for _, r := range proxy.Requests() {
			if r.URL.Path == path {
				n++
			}
		}
		return n
	}
	s := see(t, d, p, v)
	s.becomes(files{"k": "1"})
	if n := reads(); n != 1 {
		t.Errorf("the first publish read the pod %d times, want once", n)
	}
	for range 3 {
		if _, err := d.Publish(deadline(t), p, v); err != nil {
			t.Fatal(err)
		}
	}
	setSecret(t, name, files{"k": "2"})
	s.becomes(files{"k": "2"})
	d.Kill()
	d.StartAgain()
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Fatal(err)
	}
	setSecret(t, name, files{"k": "3"})
	s.becomes(files{"k": "3"})
	if n := reads(); n != 1 {
		t.Errorf("three republishes, two updates and a restart read the pod %d more times", n-1)
	}
	// With secretName and uid, the driver does not read the pod.
	q := pod("never-read")
	see(t, d, q, ssh("secretName", name)).becomes(files{"k": "3"})
	for _, r := range proxy.Requests() {
		if strings.HasSuffix(r.URL.Path, "/pods/"+q.Name) {
			t.Errorf("the driver asked for %s", r.URL)
		}
	}
}

// TestNodePublishSecretRefNeedsNoRequest uses an API server that denies everything.
func TestNodePublishSecretRefNeedsNoRequest(t *testing.T) {
	nothingLeft(t)
	d, proxy := shared.startBehind(t)
	proxy.Answer(faultproxy.Status(403, metav1.StatusReasonForbidden, "the test denies everything"))
	before := proxy.Asked()
	withSecret := func(value string, attributes ...string) kubelet.Volume {
		v := ssh(attributes...)
		v.Secrets = map[string]string{"k": value}
		return v
	}
	p := pod("pushed")
	s := see(t, d, p, withSecret("1"))
	s.becomes(files{"k": "1"})
	if n := d.Metric("fsuser_watched_objects"); n != 0 {
		t.Errorf("%v objects are watched", n)
	}
	republish := func(p kubelet.Pod, v kubelet.Volume) {
		t.Helper()
		if _, err := d.Publish(deadline(t), p, v); err != nil {
			t.Fatal(err)
		}
	}
	republish(p, withSecret("2")) // as kubelet does every minute
	s.becomes(files{"k": "2"})
	d.Kill()
	d.StartAgain()
	s.stays(files{"k": "2"})
	republish(p, withSecret("3"))
	s.becomes(files{"k": "3"})
	fixed := pod("fixed")
	f := see(t, d, fixed, withSecret("1", "refresh", "off"))
	republish(fixed, withSecret("2", "refresh", "off"))
	f.stays(files{"k": "1"})
	requests := func() []faultproxy.Request {
		return slices.DeleteFunc(slices.Clone(proxy.Requests()[before:]), func(r faultproxy.Request) bool {
			return r.URL.Path == "/api/v1/nodes/"+nodeaccess.Node // the check of the driver's access
		})
	}
	if all := requests(); len(all) != 0 {
		t.Errorf("the driver made %d requests: %v", len(all), all)
	}
	// Without uid, the files belong to root, because the driver does not read the pod.
	rootless := withSecret("1")
	delete(rootless.Attributes, "uid")
	if got := withOwnerAndMode(see(t, d, pod("no-uid"), rootless), "k"); got != "-0400 0:0" {
		t.Errorf("the file is %s", got)
	}
	for _, r := range requests() {
		if !strings.HasSuffix(r.URL.Path, "/events") {
			t.Errorf("the driver asked for %s", r.URL)
		}
	}
}

// TestMountPointsBeneathTheVolume mounts beneath the volume in a container, as a container runtime does.
func TestMountPointsBeneathTheVolume(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := shared.describeIn(t, secretVolume(name, false), func(spec *corev1.PodSpec) {
		addScratch(spec)
		spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
			{Name: "ssh", MountPath: "/etc/ssh"},
			{Name: "scratch", MountPath: "/etc/ssh/run", SubPath: "run"},
			{Name: "scratch", MountPath: "/etc/ssh/var/cache/", SubPath: "cache"},
		}
	})
	s := see(t, d, p, v)
	for _, mountPoint := range []string{"run", "var/cache"} {
		at := filepath.Join(s.dir, mountPoint)
		if st, err := os.Lstat(at); err != nil || !st.IsDir() {
			t.Fatalf("the mount point %s is %v, %v; want a directory", mountPoint, st, err)
		}
		if err := unix.Mount(t.TempDir(), at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Errorf("after the update %s is not mounted any more: %v", mountPoint, err)
			}
		}()
		if err := os.WriteFile(filepath.Join(at, "written"), []byte("by the container"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setSecret(t, name, files{"k": "2"})
	holds(t, filepath.Join(s.dir, "k"), "2")
	holds(t, filepath.Join(s.dir, "run", "written"), "by the container")
	holds(t, filepath.Join(s.dir, "var", "cache", "written"), "by the container")
}

// TestASubPathThatNamesNothingIsAnEmptyDirectory shows the directory that kubelet makes in a volume of its own.
func TestASubPathThatNamesNothingIsAnEmptyDirectory(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := shared.describeIn(t, secretVolume(name, false), func(spec *corev1.PodSpec) {
		spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
			{Name: "ssh", MountPath: "/file", SubPath: "k"},
			{Name: "ssh", MountPath: "/missing", SubPath: "not/there"},
		}
	})
	s := see(t, d, p, v)
	for _, value := range []string{"1", "2"} {
		setSecret(t, name, files{"k": value})
		holds(t, filepath.Join(s.dir, "k"), value)
		entries, err := os.ReadDir(filepath.Join(s.dir, "not", "there"))
		if err != nil || len(entries) > 0 {
			t.Errorf("the subPath that names nothing has %v, %v; want an empty directory", entries, err)
		}
	}
}

// TestAPodThatReplacesAnotherIsNotMistakenForIt uses pods with the same name and different volumes.
func TestAPodThatReplacesAnotherIsNotMistakenForIt(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1", "l": "2"})
	make := func(item string) (kubelet.Pod, kubelet.Volume) {
		v := ssh("volume", described)
		volume := corev1.Volume{Name: described, VolumeSource: secretVolume(name, false, items(item, "file")...)}
		return shared.create(t, nodeaccess.Pod(name, v, volume)), v
	}
	first, v := make("k")
	shared.deletePod(first.Name)
	second, _ := make("l")
	if first.Name != second.Name || first.UID == second.UID {
		t.Fatalf("the pods are %+v and %+v", first, second)
	}
	waits(t, d, first, v, codes.NotFound, "another pod of this name")
	see(t, d, second, v).becomes(files{"file": "2"})
}
