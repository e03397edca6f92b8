// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/setup"
)

const (
	// olderCommit is the commit of the driver that TestUpgrade upgrades. There is no release yet.
	olderCommit = "84327c8eb7d5fa56fb304fe584b03a2fa754eadf"
	olderImage  = "fsuser.test/fsuser-csi:older"
	// ref is the suffix of the names of pods with nodePublishSecretRef.
	ref = "-ref"
)

// TestUpgrade replaces an older driver with this one, and this one with the older one, as deploy/README.md describes,
// while pods with each kind of volume run. Each time the volumes stay as they are, and the new driver takes them over.
func TestUpgrade(t *testing.T) {
	older := olderManifest(t)
	today, err := manifest(suite, installedFirst)
	if err != nil {
		t.Fatal(err)
	}
	ofOlder := replaceDriver(t, older, olderImage)
	f := &fleet{namespace: newNamespace(t), node: newNodeShell(t), version: 1, containers: map[string]string{}}
	f.secret("s", "key", "v1")
	f.configMap("c", "key", "v1")
	f.addKinds("held")
	for _, step := range []struct{ name, manifest, image string }{
		{"upgrade", today, image},
		{"downgrade", older, olderImage},
		{"upgrade again", today, image},
	} {
		t.Run(step.name, func(t *testing.T) {
			f.t, f.node.t = t, t
			mounts := f.node.do(mountsOfVolumes)
			objects := replaceDriver(t, step.manifest, step.image)
			t.Logf("objects of the cluster that the older manifest does not have: %s",
				strings.Join(slices.DeleteFunc(objects, func(o string) bool {
					return slices.Contains(ofOlder, o)
				}), ", "))
			status := statusOutput(t, "table")
			for pod := range f.containers {
				if lineWith(status, f.name+"/"+pod) == "" {
					t.Errorf("the driver has not found the volume of pod %s:\n%s", pod, status)
				}
				f.expect(pod, "", show("/v/key"), fmt.Sprintf("1000:0 400\nv%d", f.version))
			}
			f.changeKinds()
			t.Logf("all %d pods see a change %d ms later", len(f.containers), f.current().Milliseconds())
			if got := f.node.do(mountsOfVolumes); got != mounts {
				t.Errorf("the mounts of the volumes are\n%s\nbefore they were\n%s", got, mounts)
			}
			f.untouched()
			f.remove(f.any())
			f.addKinds(strings.ReplaceAll(step.name, " ", "-"))
		})
	}
	f.t, f.node.t = t, t
	for pod := range f.containers {
		f.remove(pod)
	}
	noTraces(f.node)
}

// addKinds runs a pod with each kind of volume.
func (f *fleet) addKinds(prefix string) {
	f.t.Helper()
	const attributes = `uid: "1000", mode: "0400"`
	for _, pod := range []string{
		onePod(prefix+"-secret", "secretName: s, "+attributes),
		onePod(prefix+"-configmap", "configMapName: c, "+attributes),
		describedPod(prefix+"-volume", "secret: {secretName: s}", attributes),
		withCSI(onePod(prefix+ref, attributes), "nodePublishSecretRef: {name: s}"),
	} {
		started := f.run(watching(pod))
		f.containers[started.Name] = started.Status.ContainerStatuses[0].ContainerID
	}
}

// changeKinds replaces the content of both objects. Kubelet sends the content of nodePublishSecretRef when it syncs the
// pod.
func (f *fleet) changeKinds() {
	f.t.Helper()
	f.version++
	content := fmt.Sprintf("v%d", f.version)
	f.changeSecret("s", "key", content)
	patch := fmt.Sprintf(`{"data":{"key":%q}}`, content)
	if _, err := client.CoreV1().ConfigMaps(f.name).Patch(suite, "c", types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		f.t.Fatal(err)
	}
	for pod := range f.containers {
		if strings.HasSuffix(pod, ref) {
			f.touch(pod)
		}
	}
}

// mountsOfVolumes prints the id, device and path of the mount of each volume of the driver.
const mountsOfVolumes = `awk '/kubernetes.io~csi.*\/mount/ {print $1, $3, $5}' /proc/1/mountinfo | sort`

// replaceDriver applies a manifest, waits until the pods of this image have replaced those of another one, and returns
// the names of all objects of the driver except its pods and their revisions.
func replaceDriver(t *testing.T, manifest, image string) []string {
	t.Helper()
	if _, err := kubectl(suite, manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := rolledOut(suite); err != nil {
		t.Fatal(err)
	}
	if err := waitForPolicies(suite, effect(installedFirst)); err != nil {
		t.Fatal(err)
	}
	if got := driverPod(t).Spec.Containers[0].Image; got != image {
		t.Fatalf("the driver's image is %s, want %s", got, image)
	}
	return slices.DeleteFunc(objectsOfDriver(t), func(o string) bool {
		return strings.HasPrefix(o, "pod/") || strings.HasPrefix(o, "controllerrevision.apps/")
	})
}

// olderManifest builds the driver of olderCommit from the history of the repository, imports its image into the
// cluster, and returns its manifest of the same kind of access.
func olderManifest(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := filepath.Join(dir, "older.tar")
	if out, err := exec.CommandContext(suite, "git", "-C", "../..", "archive", "-o", archive,
		olderCommit).CombinedOutput(); err != nil {
		t.Fatalf("the history of the repository has no commit %s (%v: %s); for a shallow clone run: git fetch --unshallow",
			olderCommit, err, out)
	}
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(suite, "tar", "-xf", archive, "-C", tree).CombinedOutput(); err != nil {
		t.Fatalf("unpack the older driver: %v: %s", err, out)
	}
	tar, err := setup.DriverImageOf(suite, tree, filepath.Join(dir, "image"), olderImage)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Open(clusterDir)
	if err != nil {
		t.Fatalf("the image of the older driver can be imported only into a cluster of the tests' own: %v", err)
	}
	if err := c.Import(suite, tar); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(tree, "deploy", filepath.Base(installedFirst)))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`image: ".*"`)
	if n := len(line.FindAll(content, -1)); n != 1 {
		t.Fatalf("the older manifest names an image %d times, want once", n)
	}
	return line.ReplaceAllString(string(content), `image: "`+olderImage+`"`)
}
