// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// barePods returns pods in the form in which people apply them. The API server adds the volume of the service account
// to each.
func barePods() map[string]string {
	return map[string]string{
		"fsUser": `
metadata: {annotations: {fsuser.csi.io/fs-user: "1000"}}
spec:
  containers:
  - name: c
    image: none
    volumeMounts: [{name: ssh, mountPath: /ssh}, {name: conf, mountPath: /conf}]
  volumes:
  - {name: ssh, secret: {secretName: ssh-keys, defaultMode: 0400}}
  - {name: conf, projected: {sources: [{configMap: {name: conf}},
      {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
`,
		"driver": `
spec:
  containers:
  - {name: c, image: none, volumeMounts: [{name: ssh, mountPath: /ssh}]}
  volumes:
  - {name: ssh, csi: {driver: fsuser.csi.io, readOnly: true, volumeAttributes: {secretName: ssh-keys, uid: "1000"}}}
`,
		"short form": `
spec:
  containers:
  - {name: c, image: none, volumeMounts: [{name: ssh, mountPath: /ssh}]}
  volumes:
  - {name: ssh, csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: ssh-keys}}}
`,
		"another volume": `
spec:
  containers:
  - {name: c, image: none, volumeMounts: [{name: ssh, mountPath: /ssh}]}
  volumes:
  - {name: ssh, csi: {driver: fsuser.csi.io, volumeAttributes: {volume: keys, uid: "1000"}}}
  - {name: keys, secret: {secretName: ssh-keys}}
`,
	}
}

// kubectl apply of the manifest of a bare pod, twice, changes nothing, and kubectl diff shows nothing.
func TestApplyTwice(t *testing.T) {
	c := startCluster(t)
	c.install(t, "node")
	c.waitForPolicy(t)
	startFsUser(t, c)
	type applies func(t *testing.T, manifest *unstructured.Unstructured, dryRun ...string) *corev1.Pod
	for how, apply := range map[string]applies{"client-side": c.applyClientSide, "server-side": c.applyServerSide} {
		for what, manifest := range barePods() {
			t.Run(what+", "+how, func(t *testing.T) {
				pod := manifestOf(t, manifest)
				pod.SetName(strings.ReplaceAll(strings.ToLower(what), " ", "-") + "-" + how)
				first := apply(t, pod)
				if v := volumeNamed(t, first, "ssh"); v.CSI == nil || v.CSI.ReadOnly == nil {
					t.Fatalf("the pod did not pass the policies: %s", encode(t, first.Spec.Volumes))
				}
				if diff := apply(t, pod, metav1.DryRunAll); !bytes.Equal(encode(t, diff.Spec), encode(t, first.Spec)) {
					t.Errorf("kubectl diff:\n%s\nbefore\n%s", encode(t, diff.Spec), encode(t, first.Spec))
				}
				second := apply(t, pod)
				if !bytes.Equal(encode(t, second), encode(t, first)) {
					t.Errorf("once\n%s\ntwice\n%s", encode(t, first), encode(t, second))
				}
				pod.SetLabels(map[string]string{"new": "label"})
				third := apply(t, pod)
				if third.Labels["new"] != "label" || !bytes.Equal(encode(t, third.Spec), encode(t, first.Spec)) {
					t.Errorf("with a new label\n%s\nbefore\n%s", encode(t, third), encode(t, first))
				}
			})
		}
	}
}

// A volume that was not moved may not change, with or without the policy.
func TestApplyOfAnotherVolume(t *testing.T) {
	c := startCluster(t)
	startFsUser(t, c)
	pod := manifestOf(t, barePods()["driver"])
	pod.SetName("p")
	c.applyServerSide(t, pod)
	pod = manifestOf(t, strings.Replace(barePods()["fsUser"], "ssh-keys", "other", 1))
	pod.SetName("p")
	if _, err := c.serverSide(t, pod); !apierrors.IsInvalid(err) {
		t.Errorf("a volume of the driver became a Secret: %v", err)
	}
}

// The API server merges the volumes of two managers by name. So it refuses a volume of the driver in place of a volume
// with the same name that another manager applied, because the volume would have two types. docs/gitops.md names the
// ways out.
func TestApplyAVolumeOfAnotherManager(t *testing.T) {
	c := startCluster(t)
	const inTree = `{name: ssh, secret: {secretName: ssh-keys}}`
	const driver = `csi: {driver: fsuser.csi.io, readOnly: true, volumeAttributes: {secretName: ssh-keys}}}`
	apply := func(manager, name, mount, volumes string) (*appsv1.Deployment, error) {
		text := fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec:
      containers: [{name: c, image: none, volumeMounts: [{name: %s, mountPath: /ssh}]}]
      volumes: [%s]
`, name, mount, volumes)
		manifest, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c.AppsV1().Deployments(apps).Patch(t.Context(), name, types.ApplyPatchType, manifest,
			metav1.PatchOptions{FieldManager: manager, Force: ptr.To(true)})
	}
	for _, test := range []struct{ name, manager, mount, volumes, refused string }{
		{"another-manager", "other", "ssh", "{name: ssh, " + driver,
			"spec.template.spec.volumes[0].csi: Forbidden: may not specify more than 1 volume type"},
		{"same-manager", "git", "ssh", "{name: ssh, " + driver, ""},
		{"another-name", "other", "ssh-fsuser", "{name: ssh-fsuser, " + driver, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := apply("git", test.name, "ssh", inTree); err != nil {
				t.Fatal(err)
			}
			got, err := apply(test.manager, test.name, test.mount, test.volumes)
			switch {
			case test.refused != "":
				if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("the error is %v, want %s", err, test.refused)
				}
			case err != nil:
				t.Error(err)
			case !slices.ContainsFunc(got.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool {
				return v.Name == got.Spec.Template.Spec.Containers[0].VolumeMounts[0].Name && v.CSI != nil && v.Secret == nil
			}):
				t.Errorf("the container mounts no volume of the driver: %s", encode(t, got.Spec.Template.Spec))
			}
		})
	}
}

func manifestOf(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	pod := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &pod.Object); err != nil {
		t.Fatal(err)
	}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetNamespace(apps)
	return pod
}

func volumeNamed(t *testing.T, pod *corev1.Pod, name string) corev1.Volume {
	t.Helper()
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("there is no volume %s: %s", name, encode(t, pod.Spec.Volumes))
	}
	return pod.Spec.Volumes[i]
}

// applyClientSide does the same as kubectl apply: it patches the pod with the difference between the manifest, the
// manifest that was applied last, and the pod.
func (c *cluster) applyClientSide(t *testing.T, manifest *unstructured.Unstructured, dryRun ...string) *corev1.Pod {
	t.Helper()
	applied := manifest.DeepCopy()
	annotations := applied.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[corev1.LastAppliedConfigAnnotation] = string(encode(t, manifest))
	applied.SetAnnotations(annotations)
	pods := c.CoreV1().Pods(apps)
	current, err := pods.Get(t.Context(), manifest.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		pod := &corev1.Pod{}
		convert(t, applied, pod)
		return c.createPod(t, pod)
	}
	if err != nil {
		t.Fatal(err)
	}
	schema, err := strategicpatch.NewPatchMetaFromStruct(corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	last := []byte(current.Annotations[corev1.LastAppliedConfigAnnotation])
	current.APIVersion, current.Kind = "v1", "Pod"
	patch, err := strategicpatch.CreateThreeWayMergePatch(last, encode(t, applied), encode(t, current), schema, true)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pods.Patch(t.Context(), manifest.GetName(), types.StrategicMergePatchType, patch,
		metav1.PatchOptions{DryRun: dryRun})
	if err != nil {
		t.Fatalf("apply %s: %v", patch, err)
	}
	return got
}

// applyServerSide does the same as kubectl apply --server-side.
func (c *cluster) applyServerSide(t *testing.T, manifest *unstructured.Unstructured, dryRun ...string) *corev1.Pod {
	t.Helper()
	got, err := c.serverSide(t, manifest, dryRun...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (c *cluster) serverSide(t *testing.T, manifest *unstructured.Unstructured, dryRun ...string) (*corev1.Pod, error) {
	t.Helper()
	options := metav1.PatchOptions{FieldManager: "kubectl", DryRun: dryRun}
	return c.CoreV1().Pods(apps).Patch(t.Context(), manifest.GetName(), types.ApplyPatchType, encode(t, manifest), options)
}
