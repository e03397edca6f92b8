// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

func TestPolicy(t *testing.T) {
	c := startCluster(t)
	other := otherPods()
	before := c.dryRun(t, other)
	c.install(t, "node", "validate.enabled=false") // which would refuse some of these volumes
	c.waitForPolicy(t)

	t.Run("pods without the driver are the same, byte for byte", func(t *testing.T) {
		after := c.dryRun(t, other)
		for i := range before {
			if !bytes.Equal(before[i], after[i]) {
				t.Errorf("before the policy\n%s\nafter\n%s", before[i], after[i])
			}
		}
	})
	t.Run("what is declared", func(t *testing.T) { declarations(t, c) })
	t.Run("csi.readOnly", func(t *testing.T) { completesReadOnly(t, c) })
	t.Run("a pod template is not a pod", func(t *testing.T) { templates(t, c) })
	t.Run("an update of a pod, and of its ephemeral containers", func(t *testing.T) { updates(t, c) })
	t.Run("a volume that another policy adds is declared too, once", func(t *testing.T) { reinvocation(t, c) })
	t.Run("a service account's mountable Secrets hold for the driver", func(t *testing.T) { mountableSecrets(t, c) })
}

// declarations checks the results of the policy. Each result is created again, and must stay unchanged.
func declarations(t *testing.T, c *cluster) {
	for _, test := range []struct {
		name    string
		volumes []corev1.Volume
		// want are the added declarations: secret/name, configMap/name.
		want []string
	}{
		{"a Secret", []corev1.Volume{driverVolume("ssh", "secretName", "ssh-keys", "uid", "1000", "mode", "0600")},
			[]string{"secret/ssh-keys"}},
		{"a ConfigMap", []corev1.Volume{driverVolume("v", "configMapName", "conf")}, []string{"configMap/conf"}},
		{"a Secret and a ConfigMap of one name", []corev1.Volume{
			driverVolume("a", "configMapName", "x"), driverVolume("b", "secretName", "x"),
		}, []string{"secret/x", "configMap/x"}},
		{"two volumes of one Secret", []corev1.Volume{
			driverVolume("a", "secretName", "x"), driverVolume("b", "secretName", "x", "uid", "7"),
		}, []string{"secret/x"}},
		{"declared already", []corev1.Volume{driverVolume("a", "secretName", "x"), secretVolume("mine", "x")}, nil},
		{"declared already, and a ConfigMap too", []corev1.Volume{
			configMapVolume("mine", "y"), driverVolume("a", "secretName", "x"), driverVolume("b", "configMapName", "y"),
			secretVolume("also-mine", "x"),
		}, nil},
		{"a ConfigMap's declaration is none for a Secret", []corev1.Volume{
			driverVolume("a", "secretName", "x"), configMapVolume("mine", "x"),
		}, []string{"secret/x"}},
		{"nodePublishSecretRef", []corev1.Volume{withSecretRef(driverVolume("a"), "x")}, nil},
		{"nodePublishSecretRef of another volume", []corev1.Volume{
			withSecretRef(driverVolume("a", "uid", "7"), "x"), driverVolume("b", "secretName", "x"),
		}, nil},
		{"nodePublishSecretRef of another driver", []corev1.Volume{
			driverVolume("a", "secretName", "x"), withSecretRef(otherDriverVolume("b"), "x"),
		}, nil},
		{"no volumeAttributes", []corev1.Volume{driverVolume("a")}, nil},
		{"attributes without an object", []corev1.Volume{driverVolume("a", "uid", "1000")}, nil},
		{"both, which the driver refuses", []corev1.Volume{driverVolume("a", "secretName", "x", "configMapName", "y")},
			[]string{"secret/x", "configMap/y"}},
		{"no name of an object", []corev1.Volume{
			driverVolume("a", "secretName", ""), driverVolume("b", "secretName", "Upper"),
			driverVolume("c", "secretName", "../x"),
			driverVolume("d", "configMapName", "a'b\"c"), driverVolume("e", "secretName", strings.Repeat("a", 254)),
			driverVolume("f", "secretName", "x\n"),
			driverVolume("g", "secretName", "-x"),
		}, nil},
		{"the longest name, and dots", []corev1.Volume{
			driverVolume("a", "secretName", strings.Repeat("a", 253)), driverVolume("b", "configMapName", "kube-root-ca.crt"),
		}, []string{"secret/" + strings.Repeat("a", 253), "configMap/kube-root-ca.crt"}},
		{"another driver's secretName", []corev1.Volume{
			driverVolume("a", "secretName", "x"), otherDriverVolume("b", "secretName", "y"),
		}, []string{"secret/x"}},
		{"the user has our names", []corev1.Volume{
			secretVolume("fsuser-csi-ref-0", "q"), driverVolume("fsuser-csi-ref-2", "secretName", "x"),
			driverVolume("a", "secretName", "y"),
			driverVolume("b", "configMapName", "x"), driverVolume("fsuser-csi-ref-5", "configMapName", "y"),
		}, []string{"secret/x", "secret/y", "configMap/x", "configMap/y"}},
		{"another volume of the pod", []corev1.Volume{driverVolume("a", "volume", "b", "uid", "7"), secretVolume("b", "x")},
			nil},
		{"30 volumes", numbered(30), numberedSecrets(30)},
		{"300 volumes", numbered(300), numberedSecrets(300)},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := podWith("", test.volumes...)
			pod.GenerateName = "pod-"
			got := c.createPod(t, pod)
			checkDeclared(t, test.volumes, got, test.want)

			again := c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "again-"}, Spec: got.Spec})
			if was, is := encode(t, got.Spec), encode(t, again.Spec); !bytes.Equal(was, is) {
				t.Errorf("once\n%s\ntwice\n%s", was, is)
			}
		})
	}
}

// completesReadOnly checks that a volume of the driver without readOnly becomes read-only, and that nothing else
// changes.
func completesReadOnly(t *testing.T, c *cluster) {
	other := otherDriverVolume("other", "secretName", "x")
	other.CSI.ReadOnly = nil
	pod := podWith("p", readOnly(driverVolume("a", "volume", "s"), nil),
		readOnly(driverVolume("b", "volume", "s"), new(false)),
		driverVolume("c", "volume", "s"), other, secretVolume("s", "s"), readOnly(driverVolume("d", "secretName", "s"), nil))
	want := pod.DeepCopy()
	want.Spec.Volumes[0].CSI.ReadOnly = new(true)
	want.Spec.Volumes[5].CSI.ReadOnly = new(true)
	got, err := c.dryRunPod(t, pod)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got.Spec.Volumes {
		if w := want.Spec.Volumes[i]; w.CSI != nil && !equality.Semantic.DeepEqual(v, w) {
			t.Errorf("volume %d is\n%s\nwant\n%s", i, encode(t, v), encode(t, w))
		}
	}
	if len(got.Spec.Volumes) != len(pod.Spec.Volumes) {
		t.Errorf("volumes are %s", encode(t, got.Spec.Volumes))
	}
}

// With the other kinds of access, declarations are not required, but csi.readOnly is completed.
func TestPolicyOfOtherAccess(t *testing.T) {
	c := startCluster(t)
	c.install(t, "namespaces", "validate.enabled=false")
	c.waitForPolicy(t)
	completesReadOnly(t, c)
	got := c.createPod(t, podWith("p", readOnly(driverVolume("a", "secretName", "x"), nil)))
	if len(got.Spec.Volumes) != 1 || !*got.Spec.Volumes[0].CSI.ReadOnly {
		t.Errorf("volumes are %s", encode(t, got.Spec.Volumes))
	}
}

// checkDeclared checks that the pod has its own volumes, first and unchanged, and then exactly those declarations.
func checkDeclared(t *testing.T, asked []corev1.Volume, pod *corev1.Pod, want []string) {
	t.Helper()
	volumes := pod.Spec.Volumes
	names := map[string]bool{}
	for i, v := range volumes {
		if names[v.Name] || len(validation.IsDNS1123Label(v.Name)) > 0 {
			t.Errorf("volume name %q is there twice or no label", v.Name)
		}
		names[v.Name] = true
		if i < len(asked) && v.Name != asked[i].Name {
			t.Errorf("volume %d is %s, was %s", i, v.Name, asked[i].Name)
		}
	}
	var got []string
	for _, v := range volumes[len(asked):] {
		switch {
		case v.Secret != nil && *v.Secret.Optional && v.Secret.Items == nil:
			got = append(got, "secret/"+v.Secret.SecretName)
		case v.ConfigMap != nil && *v.ConfigMap.Optional && v.ConfigMap.Items == nil:
			got = append(got, "configMap/"+v.ConfigMap.Name)
		default:
			t.Errorf("added: %+v", v)
		}
		for _, m := range pod.Spec.Containers[0].VolumeMounts {
			if m.Name == v.Name {
				t.Errorf("%s is mounted", v.Name)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("declared %v, want %v", got, want)
	}
}

func numbered(n int) (volumes []corev1.Volume) {
	for i := range n {
		volumes = append(volumes, driverVolume(fmt.Sprint("v", i), "secretName", fmt.Sprint("secret-", i)))
	}
	return volumes
}

func numberedSecrets(n int) (want []string) {
	for i := range n {
		want = append(want, fmt.Sprint("secret/secret-", i))
	}
	return want
}

func otherDriverVolume(name string, attributes ...string) corev1.Volume {
	v := driverVolume(name, attributes...)
	v.CSI.Driver = "other.example.com"
	return v
}

// otherPods returns pods without volumes of the driver.
func otherPods() []*corev1.Pod {
	return []*corev1.Pod{
		podWith("plain"),
		podWith("volumes", secretVolume("s", "s"), configMapVolume("c", "c"),
			corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}),
		podWith("other-driver", otherDriverVolume("o", "secretName", "s", "configMapName", "c"),
			withSecretRef(otherDriverVolume("p"), "s")),
	}
}

// dryRun returns the objects that the API server would store, without the parts that differ each time.
func (c *cluster) dryRun(t *testing.T, pods []*corev1.Pod) (all [][]byte) {
	t.Helper()
	for _, pod := range pods {
		got, err := c.CoreV1().Pods(apps).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		got.UID, got.CreationTimestamp = "", metav1.Time{}
		for i := range got.ManagedFields {
			got.ManagedFields[i].Time = nil
		}
		all = append(all, encode(t, got))
	}
	return all
}

func templates(t *testing.T, c *cluster) {
	labels := map[string]string{"app": "a"}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	d.Spec.Template = corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: podWith("", driverVolume("a", "secretName", "x")).Spec}
	got, err := c.AppsV1().Deployments(apps).Create(t.Context(), d, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Spec.Template.Spec.Volumes); n != 1 {
		t.Errorf("the template has %d volumes", n)
	}
	// This is the pod that its ReplicaSet would create.
	pod := c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "a-"}, Spec: got.Spec.Template.Spec})
	checkDeclared(t, d.Spec.Template.Spec.Volumes, pod, []string{"secret/x"})
}

func updates(t *testing.T, c *cluster) {
	pod := c.createPod(t, podWith("updated", driverVolume("a", "secretName", "x")))
	pod.Labels = map[string]string{"new": "label"}
	pod, err := c.CoreV1().Pods(apps).Update(t.Context(), pod, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debug", Image: "example.com/i", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		ImagePullPolicy: corev1.PullAlways,
		VolumeMounts:    []corev1.VolumeMount{{Name: "a", MountPath: "/a"}},
	}}}
	if pod, err = c.CoreV1().Pods(apps).UpdateEphemeralContainers(t.Context(), pod.Name, pod,
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(pod.Spec.Volumes) != 2 {
		t.Errorf("volumes are %v", pod.Spec.Volumes)
	}
	// It must stay possible to change pods from before the policy existed.
	if err := c.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Delete(t.Context(),
		"declare-references.fsuser.csi.io", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var old *corev1.Pod
	eventually(t, func() error {
		old = c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "old-"},
			Spec: podWith("", driverVolume("a", "secretName", "x")).Spec})
		if len(old.Spec.Volumes) != 1 {
			return fmt.Errorf("the policy is still there")
		}
		return nil
	})
	binding := &admissionv1.MutatingAdmissionPolicyBinding{}
	template(t).find(t, "MutatingAdmissionPolicyBinding", "declare-references.fsuser.csi.io", binding)
	if _, err := c.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Create(t.Context(), binding,
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.waitForPolicy(t)
	old.Labels = map[string]string{"new": "label"}
	if old, err = c.CoreV1().Pods(apps).Update(t.Context(), old, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(old.Spec.Volumes) != 1 {
		t.Errorf("an update changed the volumes: %v", old.Spec.Volumes)
	}
}

// reinvocation uses another policy, which runs after ours and adds a volume, like a webhook.
func reinvocation(t *testing.T, c *cluster) {
	const manifest = `apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata:
  name: zz-inject
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  matchConditions:
  - {name: labelled, expression: "object.metadata.?labels.?inject.orValue('') == 'yes'"}
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: >-
        [JSONPatch{op: 'add', path: '/spec/volumes/-', value: Object.spec.volumes{name: 'injected',
            csi: Object.spec.volumes.csi{
          driver: 'fsuser.csi.io', readOnly: true, volumeAttributes: {'secretName': 'injected'}}}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata:
  name: zz-inject
spec:
  policyName: zz-inject
`
	c.create(t, parse(t, []byte(manifest)))
	pod := podWith("", driverVolume("a", "secretName", "x"), secretVolume("fsuser-csi-ref-0", "q"))
	pod.GenerateName, pod.Labels = "injected-", map[string]string{"inject": "yes"}
	c.inEachOrder(t, "zz-inject", func() (injectedFirst bool, err error) {
		got := c.createPod(t, pod)
		index := slices.IndexFunc(got.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "injected" })
		if index < 0 {
			return false, errors.New("nothing was injected")
		}
		var declared []string
		for _, v := range got.Spec.Volumes {
			if strings.HasPrefix(v.Name, "fsuser-csi-ref-") {
				declared = append(declared, v.Name+"="+v.Secret.SecretName)
			}
		}
		if want := []string{"fsuser-csi-ref-0=q", "fsuser-csi-ref-1=x", "fsuser-csi-ref-2=injected"}; !slices.Equal(declared,
			want) {
			t.Errorf("declared %v, want %v", declared, want)
		}
		return index < slices.IndexFunc(got.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "fsuser-csi-ref-1" }),
			nil
	})
}

// inEachOrder repeats a check until it has seen a policy both before and after ours. The API server runs policies in
// the order of a map, which is random. It creates the map again, within a second, after each change of a policy or a
// binding.
func (c *cluster) inEachOrder(t *testing.T, binding string, check func() (first bool, err error)) {
	t.Helper()
	const bound = 2 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	seen := map[bool]bool{}
	for touched := 0; ; touched++ {
		first, err := check()
		if err == nil {
			seen[first] = true
		}
		if len(seen) == 2 {
			return
		}
		patch := fmt.Sprintf(`{"metadata": {"annotations": {"touched": "%d"}}}`, touched)
		if _, err := c.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Patch(t.Context(), binding,
			types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %v: seen before ours %t, behind ours %t; last error %v", bound, seen[true], seen[false], err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// mountableSecrets checks that declared volumes are subject to the admission of service accounts, which does not see
// volumeAttributes.
func mountableSecrets(t *testing.T, c *cluster) {
	c.serviceAccount(t, apps, "strict", map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"})
	pod := podWith("strict", driverVolume("a", "secretName", "not-mountable"))
	pod.Spec.ServiceAccountName = "strict"
	_, err := c.CoreV1().Pods(apps).Create(t.Context(), pod, metav1.CreateOptions{})
	if !isForbidden(err) || !strings.Contains(err.Error(), "not-mountable") {
		t.Errorf("error %v; want one that names the Secret", err)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
