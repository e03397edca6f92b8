// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const (
	// watches is the line of inotifywait after it has set its watches.
	watches = "Watches established."
	// second is the content of the key after a change. It is longer than the first, so a file that keeps its inode grows.
	second = "v2, longer"
	// newKey is the output of the examples of docs/reload.md for second.
	newKey = "the key is " + second
)

// reloadExample returns the example of docs/reload.md with this name.
func reloadExample(t *testing.T, name string) string {
	t.Helper()
	return readPage(t, reloadPage).example(t, "\n  name: "+name+"\n")
}

// reloadPod returns an example with only its images replaced.
func reloadPod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod := parsePod(t, reloadExample(t, name))
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			containers[i].Image = podImage
		}
	}
	return pod
}

// testReload runs the examples of docs/reload.md except that of testSubPath.
func testReload(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("app-keys", "key", "v1")
	n.apply(reloadExample(t, "reloader"), "--dry-run=server")

	links, files := watchFile(reloadPod(t, "links")), watchFile(reloadPod(t, "files"))
	signal := reloadPod(t, "signal")
	signal.Spec.Containers[0].Command = []string{"app", "reload", "/keys/key"}
	for _, pod := range []*corev1.Pod{links, files, signal} {
		n.createPod(pod)
	}
	for _, container := range []string{"links/app", "links/lost", "files/app", "files/lost", "signal/reload"} {
		n.waitSaid(container, watches)
	}
	n.waitSaid("signal/app", "/keys/key v1")

	n.changeSecret("app-keys", "key", second)
	n.waitSaid("links/app", newKey)
	n.waitSaid("files/app", newKey)
	n.waitSaid("signal/app", "/keys/key "+second)
	n.waitSaid("links/lost", "DELETE_SELF")
	n.waitSaid("files/lost", "DELETE_SELF")
	n.changeSecret("app-keys", "key", "v3")
	for _, pod := range []string{"links", "files"} {
		n.waitSaid(pod+"/app", "the key is v3")
		if log, err := kubectl(suite, "", "-n", n.name, "logs", pod, "-c", "lost"); err != nil {
			t.Error(err)
		} else if !strings.HasSuffix(log, "DELETE_SELF\n") {
			t.Errorf("pod %s: a watch on the file itself reports\n%s\nwant DELETE_SELF, and nothing after that", pod, log)
		}
	}
}

// watchFile adds a container that watches the file itself and loses it with the first change.
func watchFile(pod *corev1.Pod) *corev1.Pod {
	lost := pod.Spec.Containers[0]
	lost.Name, lost.Args = "lost", []string{"inotifywait --monitor --format %e /keys/key"}
	pod.Spec.Containers = append(pod.Spec.Containers, lost)
	return pod
}

// testSubPath runs the example of docs/reload.md with a subPath. The pod also mounts a file and a directory by subPath
// from a volume of Kubernetes and from each layout of the driver, and the test checks the page's table.
func testSubPath(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("app-keys", "key", "v1")
	pod := reloadPod(t, "in-place")
	mountBeside(t, &pod.Spec, `
- {name: in-tree, secret: {secretName: app-keys, items: [{key: key, path: d/key}]}}
- {name: links, csi: {driver: fsuser.csi.io, volumeAttributes: {volume: in-tree}}}
- {name: files, csi: {driver: fsuser.csi.io, volumeAttributes: {volume: in-tree, layout: files}}}
- {name: in-place, csi: {driver: fsuser.csi.io, volumeAttributes: {volume: in-tree, layout: in-place}}}`)
	n.createPod(pod)
	n.waitSaid("in-place", watches)
	const mounted = `cd /etc/app
for f in app.conf key in-tree links files in-place; do echo $f: $(cat $f); done
for d in in-tree links files in-place; do
  echo directory $d: $(cd /directories/$d; [ -f key ] && cat key || echo empty$(ls))
done`
	n.expect("in-place", "", mounted, `app.conf: of the image
key: v1
in-tree: v1
links: v1
files: v1
in-place: v1
directory in-tree: v1
directory links: v1
directory files: v1
directory in-place: v1`)

	seen := n.onLine("in-place", newKey)
	begin := time.Now()
	n.changeSecret("app-keys", "key", second)
	t.Logf("a watch on a file mounted by subPath has reported a change after at most %d ms",
		n.wait(seen, newKey).Sub(begin).Milliseconds())
	n.touch("in-place")
	n.untilPrints("in-place", "cd /volumes; cat in-tree/d/key links/d/key files/d/key in-place/d/key",
		strings.Repeat(second, 4))
	n.expect("in-place", "", mounted, `app.conf: of the image
key: v2, longer
in-tree: v1
links: v1
files: v1
in-place: v2, longer
directory in-tree: empty
directory links: empty
directory files: v2, longer
directory in-place: v2, longer`)
}

// mountBeside adds volumes that have the file d/key. It mounts each whole at /volumes/NAME, and by subPath its file at
// /etc/app/NAME and its directory at /directories/NAME.
func mountBeside(t *testing.T, spec *corev1.PodSpec, manifest string) {
	t.Helper()
	var volumes []corev1.Volume
	if err := yaml.UnmarshalStrict([]byte(manifest), &volumes); err != nil {
		t.Fatal(err)
	}
	spec.Volumes = append(spec.Volumes, volumes...)
	main := &spec.Containers[0]
	for _, v := range volumes {
		main.VolumeMounts = append(main.VolumeMounts,
			corev1.VolumeMount{Name: v.Name, MountPath: "/volumes/" + v.Name},
			corev1.VolumeMount{Name: v.Name, MountPath: "/etc/app/" + v.Name, SubPath: "d/key"},
			corev1.VolumeMount{Name: v.Name, MountPath: "/directories/" + v.Name, SubPath: "d"})
	}
}
