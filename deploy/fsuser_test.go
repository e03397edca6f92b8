// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const (
	fsUserAnnotation  = "fsuser.csi.io/fs-user"
	fsGroupAnnotation = "fsuser.csi.io/fs-group"
)

// startFsUser is a cluster with the policies of fsUser, from the file that is applied, and with a client that keeps warnings.
func startFsUser(t *testing.T, c *cluster) *warnings {
	t.Helper()
	content, err := os.ReadFile(FsUserFile)
	if err != nil {
		t.Fatal(err)
	}
	c.create(t, parse(t, content))
	w := &warnings{}
	config := c.AdminConfig()
	config.WarningHandler = w
	if c.Interface, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	// Each of the three policies, which the API server learns of by a watch.
	eventually(t, func() error {
		_, err := c.dryRunPod(t, annotated("root", secretVolume("s", "s")))
		if err == nil {
			return errors.New("the policy that refuses does nothing")
		}
		got, err := c.dryRunPod(t, annotated("1", secretVolume("s", "s")))
		if err != nil {
			return err
		}
		if got.Spec.Volumes[0].CSI == nil {
			return errors.New("the policy that rewrites does nothing")
		}
		w.take()
		if _, err := c.dryRunPod(t, annotated("1", secretVolume("s", "Upper"))); err != nil {
			return err
		}
		if len(w.take()) == 0 {
			return errors.New("the policy that warns does nothing")
		}
		return nil
	})
	return w
}

// warnings are what the API server said beside its answers.
type warnings struct {
	mu  sync.Mutex
	all []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

// take returns those of our policies since it was last called.
func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.DeleteFunc(w.all, func(text string) bool { return !strings.Contains(text, "fsuser.csi.io") })
	w.all = nil
	return all
}

func annotated(user string, volumes ...corev1.Volume) *corev1.Pod {
	pod := podWith("", volumes...)
	pod.GenerateName, pod.Annotations = "pod-", map[string]string{fsUserAnnotation: user}
	return pod
}

func (c *cluster) dryRunPod(t *testing.T, pod *corev1.Pod) (*corev1.Pod, error) {
	t.Helper()
	return c.CoreV1().Pods(apps).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func TestFsUser(t *testing.T) {
	c := startCluster(t)
	c.install(t, "node") // so that declare-references is there, too
	c.waitForPolicy(t)
	w := startFsUser(t, c)
	t.Run("what is rewritten", func(t *testing.T) { rewrites(t, c, w) })
	t.Run("what is left alone", func(t *testing.T) { leftAlone(t, c, w) })
	t.Run("the pod, else its namespace", func(t *testing.T) { precedence(t, c, w) })
	t.Run("a user that is none", func(t *testing.T) { noUser(t, c) })
	t.Run("pods that nothing is done to", func(t *testing.T) { untouched(t, c, w) })
	t.Run("a volume that another policy adds is rewritten too", func(t *testing.T) { addedLater(t, c, w) })
	t.Run("a service account's mountable Secrets hold", func(t *testing.T) { mountableSecretsAnnotated(t, c) })
}

// With KEP-5936's gate the API server keeps its fields, and says what is wrong with them itself.
func TestFsUserWithUserFields(t *testing.T) {
	c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--feature-gates=AtomicWriteVolumeUserFields=true"}})
	w := startFsUser(t, c)
	plain, err := c.dryRunPod(t, podWith("plain", volumeOf(`{"name": "a", "secret": {"secretName": "x", "defaultUser": 7}}`)))
	if err != nil || plain.Spec.Volumes[0].Secret.DefaultUser == nil {
		t.Fatalf("the gate is not on: %v, %s", err, encode(t, plain.Spec.Volumes))
	}
	t.Run("what is rewritten", func(t *testing.T) { rewrites(t, c, w) })
	t.Run("what is left alone", func(t *testing.T) { leftAlone(t, c, w) })
	for _, text := range []string{
		`{"name": "a", "secret": {"secretName": "x", "defaultUser": -1}}`,
		`{"name": "a", "configMap": {"name": "x", "items": [{"key": "k", "path": "k", "user": 2147483648}]}}`,
	} {
		if _, err := c.dryRunPod(t, annotated("1000", volumeOf(text))); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.volumes[0]") {
			t.Errorf("%s: error %v, want the API server's", text, err)
		}
	}
}

// The audit log has what was left alone, and the example is rewritten whole.
func TestFsUserSeen(t *testing.T) {
	dir := t.TempDir()
	rules, log := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(rules, []byte(`{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata", "resources": [{"resources": ["pods"]}]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--audit-policy-file=" + rules, "--audit-log-path=" + log}})
	w := startFsUser(t, c)
	left := annotated("1000", secretVolume("left", "a..b"))
	left.Name, left.GenerateName = "to-be-audited", ""
	c.createPod(t, left)
	eventually(t, func() error {
		content, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(content)) {
			var event struct {
				ObjectRef   struct{ Name string }
				Annotations map[string]string
			}
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				return err
			}
			const key = "fs-user-left-alone.fsuser.csi.io/left-alone"
			if event.ObjectRef.Name == left.Name && strings.HasPrefix(event.Annotations[key], `volume "left": `) {
				return nil
			}
		}
		return errors.New("the audit log does not have it")
	})

	content, err := os.ReadFile("../examples/fs-user.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	parse(t, content).find(t, "Pod", "fs-user", &pod)
	w.take()
	got, err := c.dryRunPod(t, &pod)
	if told := w.take(); err != nil || len(told) > 0 {
		t.Fatal(err, told)
	}
	for i, v := range got.Spec.Volumes[:2] {
		if v.CSI == nil {
			t.Fatalf("volume %d of the example is %s", i, encode(t, v))
		}
		spec, errs := attributes.Parse(v.CSI.VolumeAttributes, false)
		if len(errs) > 0 || *spec.UID != 1000 || *spec.GID != 1000 {
			t.Errorf("volume %d of the example is %s: %v", i, encode(t, v), errs)
		}
	}
}

// What tests use that put every pod's volumes through the driver.
func TestEveryPod(t *testing.T) {
	content, err := os.ReadFile(FsUserFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := EveryPod(bytes.Replace(content, []byte("'none'"), []byte("'nobody'"), 1), "0"); err == nil {
		t.Error("another manifest is taken")
	}
	if content, err = EveryPod(content, "0"); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t)
	c.create(t, parse(t, content))
	for annotation, want := range map[string]string{"": "0", "1000": "1000", "none": ""} {
		pod := annotated(annotation, secretVolume("s", "s"))
		if annotation == "" {
			pod.Annotations = nil
		}
		eventually(t, func() error {
			got, err := c.dryRunPod(t, pod)
			if err != nil {
				return err
			}
			csi := got.Spec.Volumes[0].CSI
			if (csi == nil) != (want == "") || csi != nil && csi.VolumeAttributes["uid"] != want {
				return fmt.Errorf("annotation %q: the volume is %s", annotation, encode(t, got.Spec.Volumes[0]))
			}
			return nil
		})
	}
}

func precedence(t *testing.T, c *cluster, w *warnings) {
	type annotations = map[string]string
	const none = "none"
	for _, test := range []struct {
		name           string
		namespace, pod annotations
		// What uid and gid become; none as uid: nothing is rewritten.
		uid, gid string
	}{
		{"neither", nil, nil, none, ""},
		{"the pod", nil, annotations{fsUserAnnotation: "0"}, "0", ""},
		{"the pod, with a group", nil, annotations{fsUserAnnotation: "2147483647", fsGroupAnnotation: "0"}, "2147483647", "0"},
		{"the namespace", annotations{fsUserAnnotation: "70"}, nil, "70", ""},
		{"the namespace, with a group", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"}, annotations{"other": "x"}, "70", "71"},
		{"both", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"}, annotations{fsUserAnnotation: "80", fsGroupAnnotation: "81"}, "80", "81"},
		{"the user of the pod, the group of the namespace", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"}, annotations{fsUserAnnotation: "80"}, "80", "71"},
		{"the pod does not want the namespace's group", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"}, annotations{fsGroupAnnotation: none}, "70", ""},
		{"the pod does not want", annotations{fsUserAnnotation: "70"}, annotations{fsUserAnnotation: none}, none, ""},
		{"the namespace does not want, the pod does", annotations{fsUserAnnotation: none}, annotations{fsUserAnnotation: "80"}, "80", ""},
		{"a malformed one of the namespace, which the pod replaces", annotations{fsUserAnnotation: "root"}, annotations{fsUserAnnotation: "80"}, "80", ""},
		{"a group alone", nil, annotations{fsGroupAnnotation: "81"}, none, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.annotateNamespace(t, apps, test.namespace)
			pod := podWith("", secretVolume("s", "s"))
			pod.GenerateName, pod.Annotations = "pod-", test.pod
			// The policy learns of the namespace by a watch.
			eventually(t, func() error {
				got, err := c.dryRunPod(t, pod)
				if err != nil {
					return err
				}
				v := got.Spec.Volumes[0]
				want := map[string]string{"uid": test.uid, "mode": "0644", "secretName": "s"}
				if test.gid != "" {
					want["gid"] = test.gid
				}
				if test.uid == none && v.CSI == nil || v.CSI != nil && maps.Equal(v.CSI.VolumeAttributes, want) {
					return nil
				}
				return fmt.Errorf("the volume is %s", encode(t, v))
			})
		})
	}
	w.take()
	c.annotateNamespace(t, apps, nil)
}

func (c *cluster) annotateNamespace(t *testing.T, name string, annotations map[string]string) {
	t.Helper()
	namespace, err := c.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	namespace.Annotations = annotations
	if _, err := c.CoreV1().Namespaces().Update(t.Context(), namespace, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// noUser: the verdict on an annotation is that of the driver on the attribute, and so are the words.
func noUser(t *testing.T, c *cluster) {
	for _, value := range []string{
		"", "root", "-1", "+1", "01000", "00", "1 000", " 1", "1\n", "1e3", "0x10", "1000.0", "2147483648", "4294967295", "99999999999999999999", "١", "None",
		"0", "1", "2147483647",
	} {
		for annotation, attribute := range map[string]string{fsUserAnnotation: "uid", fsGroupAnnotation: "gid"} {
			pod := annotated("1000", secretVolume("s", "s"))
			pod.Annotations[annotation] = value
			_, err := c.dryRunPod(t, pod)
			_, errs := attributes.Parse(map[string]string{"secretName": "s", attribute: value}, false)
			if (err == nil) != (len(errs) == 0) {
				t.Errorf("%s %q: the policy says %v, the driver %v", annotation, value, err, errs)
			}
			if err == nil {
				continue
			}
			if value != "" && !strings.Contains(err.Error(), errs[0].Detail) || !strings.Contains(err.Error(), "metadata.annotations["+annotation+"]:") {
				t.Errorf("%s %q: error %v; want the driver's words: %s", annotation, value, err, errs[0].Detail)
			}
		}
	}
	// Of a namespace: that is said, too.
	c.annotateNamespace(t, apps, map[string]string{fsUserAnnotation: "root"})
	defer c.annotateNamespace(t, apps, nil)
	eventually(t, func() error {
		pod := podWith("p")
		if _, err := c.dryRunPod(t, pod); err == nil || !strings.Contains(err.Error(), "metadata.annotations["+fsUserAnnotation+"] of namespace "+apps+": ") {
			return fmt.Errorf("error %v; want one that names the namespace", err)
		}
		return nil
	})
}

// untouched are pods for which the annotation does not count.
func untouched(t *testing.T, c *cluster, w *warnings) {
	c.serviceAccount(t, Namespace, "default", nil)
	mirror := annotated("1000", configMapVolume("c", "c"))
	mirror.Annotations[corev1.MirrorPodAnnotationKey] = "x"
	mirror.Spec.NodeName = "node"
	badMirror := mirror.DeepCopy()
	badMirror.Annotations[fsUserAnnotation] = "root"
	driver := annotated("1000", secretVolume("s", "s"))
	driver.Namespace = Namespace
	token := annotated("1000")
	token.Spec.AutomountServiceAccountToken = nil
	for name, pod := range map[string]*corev1.Pod{"mirror": mirror, "mirror with a bad annotation": badMirror, "driver": driver, "token": token} {
		w.take()
		if pod.Namespace == "" {
			pod.Namespace = apps
		}
		got, err := c.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got.Spec.Volumes) != 1 || got.Spec.Volumes[0].CSI != nil {
			t.Errorf("%s: volumes are %s", name, encode(t, got.Spec.Volumes))
		}
		if told := w.take(); len(told) > 0 {
			t.Errorf("%s: warnings %q", name, told)
		}
	}
	// An update, and with it the debugging of a pod, leaves the volumes as they are.
	old := podWith("old", secretVolume("s", "s"))
	got := c.createPod(t, old)
	got.Annotations = map[string]string{fsUserAnnotation: "1000"}
	got, err := c.CoreV1().Pods(apps).Update(t.Context(), got, metav1.UpdateOptions{})
	if err != nil || got.Spec.Volumes[0].CSI != nil {
		t.Errorf("%v; volumes %s", err, encode(t, got.Spec.Volumes))
	}
	pod := c.createPod(t, annotated("1000", secretVolume("s", "s")))
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debug", Image: "example.com/i", TerminationMessagePolicy: corev1.TerminationMessageReadFile, ImagePullPolicy: corev1.PullAlways,
		VolumeMounts: []corev1.VolumeMount{{Name: "s", MountPath: "/s"}},
	}}}
	if pod, err = c.CoreV1().Pods(apps).UpdateEphemeralContainers(t.Context(), pod.Name, pod, metav1.UpdateOptions{}); err != nil || len(pod.Spec.Volumes) != 2 {
		t.Errorf("%v; volumes %s", err, encode(t, pod.Spec.Volumes))
	}
	// A template is not a pod; the pod that its controller makes has the template's annotations.
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}}
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "d"}}
	d.Spec.Template = corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: d.Spec.Selector.MatchLabels, Annotations: map[string]string{fsUserAnnotation: "1000"}},
		Spec:       podWith("", secretVolume("s", "s")).Spec,
	}
	if d, err = c.AppsV1().Deployments(apps).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if d.Spec.Template.Spec.Volumes[0].CSI != nil {
		t.Error("the template was rewritten")
	}
	made := c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "d-", Annotations: d.Spec.Template.Annotations}, Spec: d.Spec.Template.Spec})
	if made.Spec.Volumes[0].CSI == nil {
		t.Error("the pod was not rewritten")
	}
}

// addedLater has another policy add a container and a volume, as a webhook that injects a sidecar would.
func addedLater(t *testing.T, c *cluster, w *warnings) {
	c.create(t, parse(t, []byte(`apiVersion: admissionregistration.k8s.io/v1
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
        [JSONPatch{op: 'add', path: '/spec/volumes/-', value: Object.spec.volumes{name: 'injected', secret: Object.spec.volumes.secret{secretName: 'injected'}}},
        JSONPatch{op: 'add', path: '/spec/containers/-', value: Object.spec.containers{name: 'injected', image: 'i',
          volumeMounts: [Object.spec.containers.volumeMounts{name: 'injected', mountPath: '/x'}]}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata:
  name: zz-inject
spec:
  policyName: zz-inject
`)))
	pod := annotated("1000", secretVolume("s", "s"))
	pod.Labels = map[string]string{"inject": "yes"}
	c.inEachOrder(t, "zz-inject", func() (injectedFirst bool, err error) {
		w.take()
		got, err := c.dryRunPod(t, pod)
		if err != nil {
			return false, err
		}
		if len(got.Spec.Containers) != 2 {
			return false, errors.New("nothing was injected")
		}
		var kinds []string
		for _, v := range got.Spec.Volumes {
			if v.CSI != nil {
				kinds = append(kinds, v.Name+" of "+v.CSI.VolumeAttributes["secretName"])
			} else {
				kinds = append(kinds, v.Name+" declares "+v.Secret.SecretName)
			}
		}
		behind := []string{"s of s", "fsuser-csi-ref-0 declares s", "injected of injected", "fsuser-csi-ref-1 declares injected"}
		before := []string{"s of s", "injected of injected", "fsuser-csi-ref-0 declares s", "fsuser-csi-ref-1 declares injected"}
		injectedFirst = slices.Equal(kinds, before)
		if !injectedFirst && !slices.Equal(kinds, behind) {
			t.Errorf("volumes are %q, want %q or %q", kinds, behind, before)
		}
		if told := w.take(); len(told) > 0 {
			t.Errorf("warnings %q", told)
		}
		return injectedFirst, nil
	})
}

func mountableSecretsAnnotated(t *testing.T, c *cluster) {
	c.serviceAccount(t, apps, "strict", map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"})
	pod := annotated("1000", secretVolume("a", "not-mountable"))
	pod.Spec.ServiceAccountName = "strict"
	if _, err := c.dryRunPod(t, pod); !isForbidden(err) || !strings.Contains(err.Error(), "not-mountable") {
		t.Errorf("error %v; want one that names the Secret", err)
	}
}

func rewrites(t *testing.T, c *cluster, w *warnings) {
	type attrs = map[string]string
	for _, test := range []struct {
		name    string
		volumes []corev1.Volume
		// The attributes of each volume, in the order of the pod's; nil for one that is no business of the policy.
		want []attrs
		// What is declared, as in declarations.
		declared []string
		// Volumes that no container mounts.
		unmounted []string
	}{
		{"a Secret", []corev1.Volume{secretVolume("s", "ssh-keys")},
			[]attrs{{"uid": "1000", "mode": "0644", "secretName": "ssh-keys"}}, []string{"secret/ssh-keys"}, nil},
		{"a ConfigMap", []corev1.Volume{configMapVolume("c", "conf")},
			[]attrs{{"uid": "1000", "mode": "0644", "configMapName": "conf"}}, []string{"configMap/conf"}, nil},
		{"modes, optional, items", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "x", "defaultMode": 256, "optional": true, "items": [
				{"key": "k", "path": "d/k", "mode": 384}, {"key": ".K_1-2", "path": "a b"}]}}`),
			volumeOf(`{"name": "b", "configMap": {"name": "y", "defaultMode": 0, "optional": false, "items": [{"key": "k", "path": "k", "mode": 0}]}}`),
			volumeOf(`{"name": "c", "secret": {"secretName": "x", "defaultMode": 511}}`),
			volumeOf(`{"name": "d", "secret": {"secretName": "x", "defaultMode": 8, "items": []}}`),
		}, []attrs{
			{"uid": "1000", "mode": "0400", "secretName": "x", "optional": "true",
				"items": `[{"key":"k","path":"d/k","mode":384},{"key":".K_1-2","path":"a b"}]`},
			{"uid": "1000", "mode": "00", "configMapName": "y", "items": `[{"key":"k","path":"k","mode":0}]`},
			{"uid": "1000", "mode": "0777", "secretName": "x"},
			{"uid": "1000", "mode": "010", "secretName": "x"},
		}, []string{"secret/x", "configMap/y"}, nil},
		{"paths that are hard to write", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "x", "items": [{"key": "k", "path": "\"'{[-&a #é漢😀"}, {"key": "l", "path": "&b/ - ? x%s$(A)"}]}}`),
		}, []attrs{{"uid": "1000", "mode": "0644", "secretName": "x",
			"items": `[{"key":"k","path":"\"'{[-\u0026a #é漢😀"},{"key":"l","path":"\u0026b/ - ? x%s$(A)"}]`}}, []string{"secret/x"}, nil},
		{"the longest names and paths", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "` + strings.Repeat("a", 253) + `", "items": [
				{"key": "` + strings.Repeat("k", 253) + `", "path": "` + strings.Repeat("é", 127) + `"}]}}`),
		}, []attrs{{"uid": "1000", "mode": "0644", "secretName": strings.Repeat("a", 253),
			"items": `[{"key":"` + strings.Repeat("k", 253) + `","path":"` + strings.Repeat("é", 127) + `"}]`}}, []string{"secret/" + strings.Repeat("a", 253)}, nil},
		{"the user that KEP-5936 gives to a volume or a file", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "x", "defaultUser": 7, "items": [{"key": "k", "path": "k"}, {"key": "l", "path": "l", "user": 0}]}}`),
			volumeOf(`{"name": "b", "configMap": {"name": "x", "items": [{"key": "l", "path": "l", "user": 8, "mode": 256}]}}`),
			volumeOf(`{"name": "c", "projected": {"defaultUser": 0, "sources": [{"secret": {"name": "x", "items": [{"key": "l", "path": "l", "user": 8}]}}]}}`),
		}, []attrs{
			{"uid": "7", "mode": "0644", "secretName": "x", "items": `[{"key":"k","path":"k"},{"key":"l","path":"l","uid":0}]`},
			{"uid": "1000", "mode": "0644", "configMapName": "x", "items": `[{"key":"l","path":"l","mode":256,"uid":8}]`},
			{"uid": "0", "mode": "0644", "sources": `[{"secret":{"name":"x","items":[{"key":"l","path":"l","uid":8}]}}]`},
		}, []string{"secret/x", "configMap/x"}, nil},
		{"projected", []corev1.Volume{
			volumeOf(`{"name": "a", "projected": {"defaultMode": 288, "sources": [
				{"secret": {"name": "s", "optional": true, "items": [{"key": "k", "path": "s/k", "mode": 256}]}},
				{"configMap": {"name": "c"}}, {"secret": {"name": "t"}}, {"configMap": {"name": "d", "optional": false, "items": [{"key": "k", "path": "d&d"}]}},
				{"downwardAPI": {"items": [
					{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 292},
					{"path": "one", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['example.com/It_s.1']"}},
					{"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
					{"path": "memory", "resourceFieldRef": {"containerName": "c", "resource": "requests.memory"}, "user": 5}]}}]}}`),
		}, []attrs{{"uid": "1000", "mode": "0440", "sources": `[{"secret":{"name":"s","optional":true,"items":[{"key":"k","path":"s/k","mode":256}]}},` +
			`{"configMap":{"name":"c"}},{"secret":{"name":"t"}},{"configMap":{"name":"d","items":[{"key":"k","path":"d\u0026d"}]}},` +
			`{"downwardAPI":{"items":[{"fieldRef":{"fieldPath":"metadata.labels"},"path":"labels","mode":292},` +
			`{"fieldRef":{"fieldPath":"metadata.annotations['example.com/It_s.1']"},"path":"one"},` +
			`{"resourceFieldRef":{"containerName":"c","resource":"limits.cpu","divisor":"1m"},"path":"cpu"},` +
			`{"resourceFieldRef":{"containerName":"c","resource":"requests.memory"},"path":"memory","uid":5}]}}]`}},
			[]string{"secret/s", "secret/t", "configMap/c", "configMap/d"}, nil},
		{"the downward API", []corev1.Volume{
			volumeOf(`{"name": "a", "downwardAPI": {"defaultMode": 256, "defaultUser": 3, "items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}`),
		}, []attrs{{"uid": "3", "mode": "0400", "sources": `[{"downwardAPI":{"items":[{"fieldRef":{"fieldPath":"metadata.name"},"path":"name"}]}}]`}}, nil, nil},
		{"what is no business of the policy", []corev1.Volume{
			withSecretRef(driverVolume("a", "uid", "5"), "y"), volumeOf(`{"name": "b", "emptyDir": {}}`), volumeOf(`{"name": "c", "hostPath": {"path": "/x"}}`),
			secretVolume("d", "y"), otherDriverVolume("e", "secretName", "x"),
		}, []attrs{nil, nil, nil, {"uid": "1000", "mode": "0644", "secretName": "y"}, nil}, []string{"secret/y"}, nil},
		{"declared already", []corev1.Volume{
			secretVolume("a", "x"), secretVolume("fsuser-csi-ref-0", "x"), configMapVolume("fsuser-csi-ref-7", "y"), configMapVolume("b", "y"),
			secretVolume("c", "y"),
		}, []attrs{{"uid": "1000", "mode": "0644", "secretName": "x"}, nil, nil, {"uid": "1000", "mode": "0644", "configMapName": "y"},
			{"uid": "1000", "mode": "0644", "secretName": "y"}}, []string{"secret/y"}, []string{"fsuser-csi-ref-0", "fsuser-csi-ref-7"}},
		{"nodePublishSecretRef is no declaration that policies see", []corev1.Volume{
			withSecretRef(driverVolume("a"), "x"), secretVolume("b", "x"),
		}, []attrs{nil, {"uid": "1000", "mode": "0644", "secretName": "x"}}, []string{"secret/x"}, nil},
		{"the user has our names, and mounts one", []corev1.Volume{
			secretVolume("fsuser-csi-ref-0", "x"), secretVolume("fsuser-csi-ref-2", "y"), configMapVolume("fsuser-csi-ref-x", "z"),
		}, []attrs{{"uid": "1000", "mode": "0644", "secretName": "x"}, {"uid": "1000", "mode": "0644", "secretName": "y"},
			{"uid": "1000", "mode": "0644", "configMapName": "z"}}, []string{"secret/x", "secret/y", "configMap/z"}, nil},
		{"not mounted yet", []corev1.Volume{secretVolume("not-mounted", "x")}, []attrs{{"uid": "1000", "mode": "0644", "secretName": "x"}}, []string{"secret/x"}, []string{"not-mounted"}},
		{"mounts of which none is beneath another", []corev1.Volume{secretVolume("a", "x"), secretVolume("ab", "x"), secretVolume("a-b", "x")},
			slices.Repeat([]attrs{{"uid": "1000", "mode": "0644", "secretName": "x"}}, 3), []string{"secret/x"}, nil},
		{"as many volumes as the policy takes", numberedInTree(400), nil, numberedSecrets(400), nil},
		{"as many items as the policy takes", []corev1.Volume{numberedItems(400)}, nil, []string{"secret/x"}, nil},
		{"sources as long as the policy takes", longSources(3, 57), nil, longNames(3 * 57), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.take()
			pod := annotated("1000", test.volumes...)
			mounts := &pod.Spec.Containers[0].VolumeMounts
			*mounts = slices.DeleteFunc(*mounts, func(m corev1.VolumeMount) bool { return slices.Contains(test.unmounted, m.Name) })
			pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
			got := c.createPod(t, pod)
			if told := w.take(); len(told) > 0 {
				t.Errorf("warnings: %q", told)
			}
			for i, want := range test.want {
				v := got.Spec.Volumes[i]
				if want == nil {
					continue
				}
				if v.CSI == nil || v.CSI.Driver != driverName || v.CSI.ReadOnly == nil || !*v.CSI.ReadOnly || !maps.Equal(v.CSI.VolumeAttributes, want) {
					t.Errorf("volume %d is\n%s\nwant attributes\n%v", i, encode(t, v), want)
					continue
				}
				if _, errs := attributes.Parse(v.CSI.VolumeAttributes, false); len(errs) > 0 {
					t.Errorf("the driver refuses volume %d: %v", i, errs)
				}
			}
			checkDeclared(t, test.volumes, got, test.declared)
			again := c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "again-", Annotations: got.Annotations}, Spec: got.Spec})
			if was, is := encode(t, got.Spec), encode(t, again.Spec); !bytes.Equal(was, is) {
				t.Errorf("once\n%s\ntwice\n%s", was, is)
			}
		})
	}
}

func leftAlone(t *testing.T, c *cluster, w *warnings) {
	const hugePath = "mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm"
	item := func(key, path string) string {
		return fmt.Sprintf(`{"name": "v", "secret": {"secretName": "x", "items": [{"key": "a", "path": "a"}, {"key": %s, "path": %s}]}}`,
			encode(t, key), encode(t, path))
	}
	projected := func(sources string) string { return `{"name": "v", "projected": {"sources": [` + sources + `]}}` }
	field := func(f string) string { return projected(`{"downwardAPI": {"items": [{"path": "p", ` + f + `}]}}`) }
	for _, test := range []struct {
		name, volume string
		// A part of the reason. Empty: the API server refuses the pod for what it would refuse it for without us.
		why string
		// What makes the pod: more than the volume.
		change func(*corev1.Pod)
	}{
		{"a token", projected(`{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}, {"secret": {"name": "s"}}`), "a serviceAccountToken", nil},
		{"a trust bundle", projected(`{"clusterTrustBundle": {"name": "b", "path": "t"}}`), "clusterTrustBundle", nil},
		{"no source", `{"name": "v", "projected": {}}`, "without content", nil},
		{"nothing of the downward API", projected(`{"secret": {"name": "s"}}, {"downwardAPI": {}}`), "without content", nil},
		{"too many sources", projected(strings.Repeat(`{"secret": {"name": "s"}},`, 64) + `{"secret": {"name": "t"}}`), "64 sources", nil},
		{"no name of a Secret", `{"name": "v", "secret": {"secretName": "Upper"}}`, "no Secret", nil},
		{"no name of a ConfigMap", `{"name": "v", "configMap": {"name": "a..b"}}`, "no Secret", nil},
		{"no name of a Secret in a list", projected(`{"secret": {"name": "s/t"}}`), "no Secret", nil},
		{"a name that is too long", `{"name": "v", "secret": {"secretName": "` + strings.Repeat("a", 254) + `"}}`, "no Secret", nil},
		{"a key that can't be", item("a/b", "b"), "key", nil},
		{"a key of dots", item("..a", "b"), "key", nil},
		{"a path with a colon", item("b", "a:b"), "path", nil},
		{"a path with a backslash", item("b", `a\b`), "path", nil},
		{"a path with a line break", item("b", "a\nb"), "path", nil},
		{"a path with a line separator of YAML", item("b", "a\u2028b"), "path", nil},
		{"a path with a dot", item("b", "d/./b"), "path", nil},
		{"a path with an empty element", item("b", "d//b"), "path", nil},
		{"a path that ends with a slash", item("b", "d/"), "path", nil},
		{"a path with a long element", item("b", strings.Repeat("é", 128)), "path", nil},
		{"a long path", item("b", strings.Repeat(hugePath+"/", 64)), "path", nil},
		{"two of a path", item("b", "a"), "same path", nil},
		{"one below another", item("b", "a/b"), "same path", nil},
		{"one below another, with one between that is not", `{"name": "v", "secret": {"secretName": "x", "items": [
			{"key": "b", "path": "a/b"}, {"key": "c", "path": "a-b"}, {"key": "a", "path": "a"}]}}`, "same path", nil},
		{"one below another, in two sources", projected(`{"secret": {"name": "s", "items": [{"key": "a", "path": "a"}]}}, {"configMap": {"name": "s", "items": [{"key": "a", "path": "a/b"}]}}`), "same path", nil},
		{"a limit that is not set", field(`"resourceFieldRef": {"containerName": "c", "resource": "limits.memory"}`), "limit", nil},
		{"a limit of nothing", field(`"resourceFieldRef": {"containerName": "c", "resource": "limits.ephemeral-storage"}`), "limit", func(pod *corev1.Pod) {
			pod.Spec.Containers[0].Resources.Limits[corev1.ResourceEphemeralStorage] = resource.MustParse("0")
		}},
		{"a container that is not there", field(`"resourceFieldRef": {"containerName": "d", "resource": "requests.memory"}`), "limit", nil},
		{"no huge page", field(`"resourceFieldRef": {"containerName": "c", "resource": "requests.hugepages-x"}`), "field", nil},
		{"another volume beneath", `{"name": "v", "secret": {"secretName": "s"}}`, "mounted beneath", func(pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, volumeOf(`{"name": "e", "emptyDir": {}}`))
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
				{Name: "e", MountPath: "/a/./b//c/"}, {Name: "e", MountPath: "/a/b-c"}, {Name: "v", MountPath: "/a/b/"}, {Name: "e", MountPath: "/a/b.c"},
			}
		}},
		{"another volume beneath, in an init container", `{"name": "v", "secret": {"secretName": "s"}}`, "mounted beneath", func(pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, volumeOf(`{"name": "e", "emptyDir": {}}`))
			pod.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/a"}, {Name: "e", MountPath: "/a/b"}}}}
		}},
		{"itself beneath", `{"name": "v", "secret": {"secretName": "s"}}`, "mounted beneath", func(pod *corev1.Pod) {
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/a"}, {Name: "v", MountPath: "/a/b", SubPath: "k"}}
		}},
		{"a path that goes up", `{"name": "v", "secret": {"secretName": "s"}}`, "has .. in it", func(pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, volumeOf(`{"name": "e", "emptyDir": {}}`))
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/a"}, {Name: "e", MountPath: "/x/../a/b"}}
		}},
		{"an optional object by subPath", `{"name": "v", "secret": {"secretName": "s", "optional": true}}`, "mounted by subPath", func(pod *corev1.Pod) {
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/a", SubPath: "k"}}
		}},
		{"an optional source by subPathExpr", `{"name": "v", "projected": {"sources": [{"configMap": {"name": "s", "optional": true}}]}}`, "mounted by subPath", func(pod *corev1.Pod) {
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/a", SubPathExpr: "k"}}
		}},
		{"for Windows", `{"name": "v", "secret": {"secretName": "s"}}`, "Windows", func(pod *corev1.Pod) { pod.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }},
		{"for Windows, by the node", `{"name": "v", "secret": {"secretName": "s"}}`, "Windows", func(pod *corev1.Pod) {
			pod.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"}
		}},
		{"too many items", string(encode(t, numberedItems(401))), "too much", nil},
		{"too many volumes", `{"name": "v", "secret": {"secretName": "s"}}`, "too much", func(pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, numberedInTree(400)...)
		}},
		{"too many mounts", `{"name": "v", "secret": {"secretName": "s"}}`, "too much", func(pod *corev1.Pod) {
			for i := range 400 {
				pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: fmt.Sprint("/many/", i)})
			}
		}},
		{"paths that are too long", string(encode(t, itemsOfLength(17, 1, 4090))), "too much", nil},
		{"items that are too long for the driver", string(encode(t, itemsOfLength(200, 253, 150))), "longer than the 64 KiB", nil},
		{"sources that are too long together", string(encode(t, longSources(1, 57)[0])), "too much", func(pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, longSources(7, 57)[1:]...)
		}},
		{"no name", `{"name": "v", "secret": {}}`, "", nil},
		{"no name of a ConfigMap at all", `{"name": "v", "configMap": {}}`, "", nil},
		{"a path out of the volume", item("b", "../b"), "", nil},
		{"an absolute path", item("b", "/b"), "", nil},
		{"a mode of the volume", `{"name": "v", "secret": {"secretName": "s", "defaultMode": 1023}}`, "", nil},
		{"a mode of a file", `{"name": "v", "secret": {"secretName": "s", "items": [{"key": "k", "path": "k", "mode": -1}]}}`, "", nil},
		{"two kinds in one volume", `{"name": "v", "secret": {"secretName": "s"}, "emptyDir": {}}`, "", nil},
		{"two kinds in one volume, both ours", `{"name": "v", "secret": {"secretName": "s"}, "configMap": {"name": "s"}}`, "", nil},
		{"two kinds in one source", projected(`{"secret": {"name": "s"}, "configMap": {"name": "s"}}`), "", nil},
		{"an environment's field", field(`"fieldRef": {"fieldPath": "status.podIP"}`), "", nil},
		{"no field", field(`"fieldRef": {"fieldPath": "metadata.labels['a b']"}`), "", nil},
		{"another API's field", field(`"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}`), "", nil},
		{"two fields", field(`"fieldRef": {"fieldPath": "metadata.name"}, "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}`), "", nil},
		{"neither field", field(`"mode": 292`), "", nil},
		{"no resource", field(`"resourceFieldRef": {"containerName": "c", "resource": "limits.sugar"}`), "", nil},
		{"a divisor", field(`"resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "2"}`), "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			left := volumeOf(test.volume)
			// Beside it one that is rewritten, unless the reason concerns the pod.
			pod := annotated("1000", left, secretVolume("other", "other"))
			pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
			if test.change != nil {
				test.change(pod)
			}
			w.take()
			got, err := c.dryRunPod(t, pod)
			told := w.take()
			plain := pod.DeepCopy()
			plain.Annotations = nil
			want, wantErr := c.dryRunPod(t, plain)
			if test.why == "" {
				if err == nil || wantErr == nil || !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.volumes[0]") {
					t.Errorf("error %v, and without the annotation %v; want both, of the API server", err, wantErr)
				}
				return
			}
			if err != nil || wantErr != nil {
				t.Fatalf("%v; without the annotation %v", err, wantErr)
			}
			if !equality.Semantic.DeepEqual(got.Spec.Volumes[0], want.Spec.Volumes[0]) {
				t.Errorf("it is\n%s\nnot\n%s", encode(t, got.Spec.Volumes[0]), encode(t, want.Spec.Volumes[0]))
			}
			other := slices.IndexFunc(got.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "other" })
			wholePod := test.why == "Windows" || test.why == "too much"
			if rewritten := got.Spec.Volumes[other].CSI != nil; rewritten == wholePod {
				t.Errorf("the other volume is rewritten: %v", rewritten)
			}
			if len(told) != 1 || !strings.Contains(told[0], `volume "`+left.Name+`": `) || !strings.Contains(told[0], test.why) ||
				strings.Contains(told[0], `"other"`) != wholePod || !strings.Contains(told[0], "fs-user 1000 does not hold") {
				t.Errorf("warnings %q, want one that says %q", told, test.why)
			}
		})
	}
}

// volumeOf is one as a manifest has it.
func volumeOf(text string) (v corev1.Volume) {
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(fmt.Sprintf("%s: %v", text, err))
	}
	return v
}

func numberedItems(n int) corev1.Volume {
	v := secretVolume("a", "x")
	for i := range n {
		v.Secret.Items = append(v.Secret.Items, corev1.KeyToPath{Key: fmt.Sprint("a-key-of-usual-length-", i), Path: fmt.Sprint("a-key-of-usual-length-", i)})
	}
	return v
}

func itemsOfLength(n, key, path int) corev1.Volume {
	v := secretVolume("a", "x")
	for i := range n {
		v.Secret.Items = append(v.Secret.Items, corev1.KeyToPath{Key: strings.Repeat("k", key), Path: pathOfLength(path, i)})
	}
	return v
}

// pathOfLength is about that long.
func pathOfLength(length, i int) string {
	return strings.Repeat(strings.Repeat("a", 49)+"/", length/50) + fmt.Sprint(i)
}

// longSources are projected volumes of Secrets and ConfigMaps, whose names and keys are as long as they may be.
func longSources(volumes, sources int) (all []corev1.Volume) {
	names := longNames(volumes * sources)
	for i := range volumes {
		v := corev1.Volume{Name: fmt.Sprint("v", i)}
		v.Projected = &corev1.ProjectedVolumeSource{}
		for n := range sources {
			kind, name, _ := strings.Cut(names[i*sources+n], "/")
			object := corev1.LocalObjectReference{Name: name}
			items := []corev1.KeyToPath{{Key: strings.Repeat("k", 253), Path: pathOfLength(150, n), Mode: new(int32(0o400))}}
			if kind == "secret" {
				v.Projected.Sources = append(v.Projected.Sources, corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: object, Items: items}})
			} else {
				v.Projected.Sources = append(v.Projected.Sources, corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: object, Items: items}})
			}
		}
		all = append(all, v)
	}
	return all
}

// longNames are of Secrets, then of as many ConfigMaps.
func longNames(n int) (names []string) {
	for i := range n {
		kind := "secret/"
		if i >= n/2 {
			kind = "configMap/"
		}
		names = append(names, kind+strings.Repeat("a", 249)+fmt.Sprintf("%04d", i))
	}
	return names
}

func numberedInTree(n int) (volumes []corev1.Volume) {
	for i := range n {
		volumes = append(volumes, secretVolume(fmt.Sprint("v", i), fmt.Sprint("secret-", i)))
	}
	return volumes
}
