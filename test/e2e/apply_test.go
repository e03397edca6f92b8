// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// applyTwice applies the manifests of bare Pods twice. The policies change such a pod when it is created, and the
// second kubectl apply changes nothing. kubectl says "configured" of every pod to which admission added a volume, such
// as the volume of the service account's token, so the test compares the pod and not the word.
func applyTwice(t *testing.T, n namespace) {
	n.secret("ssh-keys", "id_ed25519", readmeKey)
	for _, test := range []struct{ name, annotations, volume string }{
		{"csi-pod", `{}`, `csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: ssh-keys, uid: "1000"}}`},
		{"fs-user-pod", `{` + annotationFSUser + `: "1000"}`, `secret: {secretName: ssh-keys, defaultMode: 0400}`},
	} {
		manifest := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations: %s
spec:
  nodeName: %s
  containers:
  - name: main
    image: %s
    volumeMounts: [{name: ssh, mountPath: /ssh}]
  volumes:
  - name: ssh
    %s`, test.name, test.annotations, nodeName, podImage, test.volume)
		n.apply(manifest)
		before := n.ready(test.name)
		n.expect(test.name, "", show("/ssh/id_ed25519"), "1000:0 400\n"+readmeKey)
		n.apply(manifest)
		after := podOf(n, test.name)
		if after.UID != before.UID || !equality.Semantic.DeepEqual(after.Spec, before.Spec) {
			t.Errorf("pod %s after the second kubectl apply is\n%+v\nwas\n%+v", test.name, after.Spec, before.Spec)
		}
		if out, err := kubectl(suite, manifest, "-n", n.name, "diff", "-f", "-"); out != "" || err != nil {
			t.Errorf("kubectl diff of pod %s prints %q, error %v", test.name, out, err)
		}
	}
}

// apply runs kubectl apply on a manifest.
func (n namespace) apply(manifest string, options ...string) {
	n.t.Helper()
	if _, err := kubectl(suite, manifest, append([]string{"-n", n.name, "apply", "-f", "-"}, options...)...); err != nil {
		n.t.Fatal(err)
	}
}

// testExamples checks that the API server accepts each file of examples/, and that in each pod the files have the owner
// and mode of the volume's attributes. The pods run with the image of the tests.
func testExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("examples/ has %d files, error %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n := newNamespace(t)
			n.apply(string(content), "--dry-run=server")
			n.runExample(string(content))
		})
	}
}

// runExample applies an example whose pod does nothing, and checks the files of its volumes.
func (n namespace) runExample(manifest string) {
	n.t.Helper()
	pods := 0
	for document := range strings.SplitSeq(manifest, "\n---\n") {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &meta); err != nil {
			n.t.Fatal(err)
		}
		if meta.Kind != "Pod" {
			n.apply(document)
			continue
		}
		pod := parsePod(n.t, document)
		for i := range pod.Spec.Containers {
			c := &pod.Spec.Containers[i]
			c.Image, c.Command, c.Args = podImage, []string{"/pod"}, nil
		}
		n.createPod(pod)
		n.haveOwners(n.ready(pod.Name))
		pods++
	}
	if pods == 0 {
		n.t.Error("the example has no Pod")
	}
}

// haveOwners checks owner and mode of all files of the driver's volumes in a pod.
func (n namespace) haveOwners(pod *corev1.Pod) {
	n.t.Helper()
	paths := map[string]string{}
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		paths[m.Name] = m.MountPath
	}
	volumes := 0
	for _, v := range pod.Spec.Volumes {
		if v.CSI == nil {
			continue
		}
		volumes++
		format, want := "%u", v.CSI.VolumeAttributes["uid"]
		if mode := v.CSI.VolumeAttributes["mode"]; mode != "" {
			format, want = "%u 0%a", want+" "+mode
		}
		// If the pod mounts the volume with subPath, the path is the path of a file.
		files := "find -L " + paths[v.Name] + " ! -path '" + paths[v.Name] + "/..*' -type f"
		n.expect(pod.Name, "", files+" -exec stat -L -c '"+format+"' {} + | sort -u", want)
	}
	if volumes == 0 {
		n.t.Errorf("pod %s has no volume of the driver", pod.Name)
	}
}
