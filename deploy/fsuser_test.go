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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const (
	fsUserAnnotation  = "fsuser.csi.io/fs-user"
	fsGroupAnnotation = "fsuser.csi.io/fs-group"
)

// startFsUser applies the file of the policies of fsUser to a cluster, and gives it a client that keeps warnings.
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
	// The API server learns of each of the three policies with a watch.
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
			return errors.New("the policy that moves does nothing")
		}
		w.take()
		if _, err := c.dryRunPod(t, annotated("1", tokenVolume("t"))); err != nil {
			return err
		}
		if len(w.take()) == 0 {
			return errors.New("the policy that warns does nothing")
		}
		return nil
	})
	return w
}

// tokenVolume returns a volume that only kubelet can make.
func tokenVolume(name string) corev1.Volume {
	return volumeOf(`{"name": "` + name + `", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}`)
}

// warnings are the warnings of the API server.
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

// take returns the warnings of our policies since its last call.
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
	c.install(t, "node") // so that declare-references exists, too
	c.waitForPolicy(t)
	w := startFsUser(t, c)
	t.Run("what is moved", func(t *testing.T) { moves(t, c, w) })
	t.Run("what is left alone", func(t *testing.T) { leftAlone(t, c, w) })
	t.Run("what the API server refuses", func(t *testing.T) { refusedAlike(t, c) })
	t.Run("the pod, else its namespace", func(t *testing.T) { precedence(t, c, w) })
	t.Run("a user that is none", func(t *testing.T) { noUser(t, c) })
	t.Run("pods that nothing is done to", func(t *testing.T) { untouched(t, c, w) })
	t.Run("a volume that another policy adds is rewritten too", func(t *testing.T) { addedLater(t, c, w) })
	t.Run("a service account's mountable Secrets hold", func(t *testing.T) { mountableSecretsAnnotated(t, c) })
}

// With KEP-5936's feature gate, the API server keeps its fields, and validates them itself.
func TestFsUserWithUserFields(t *testing.T) {
	c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--feature-gates=AtomicWriteVolumeUserFields=true"}})
	w := startFsUser(t, c)
	plain, err := c.dryRunPod(t, podWith("plain",
		volumeOf(`{"name": "a", "secret": {"secretName": "x", "defaultUser": 7}}`)))
	if err != nil || plain.Spec.Volumes[0].Secret.DefaultUser == nil {
		t.Fatalf("the gate is not on: %v, %s", err, encode(t, plain.Spec.Volumes))
	}
	t.Run("what is moved", func(t *testing.T) { moves(t, c, w) })
	t.Run("what is left alone", func(t *testing.T) { leftAlone(t, c, w) })
	for _, text := range []string{
		`{"name": "a", "secret": {"secretName": "x", "defaultUser": -1}}`,
		`{"name": "a", "configMap": {"name": "x", "items": [{"key": "k", "path": "k", "user": 2147483648}]}}`,
	} {
		if _, err := c.dryRunPod(t, annotated("1000", volumeOf(text))); !apierrors.IsInvalid(err) ||
			!strings.Contains(err.Error(), "spec.volumes[") {
			t.Errorf("%s: error %v, want the API server's", text, err)
		}
	}
}

// The audit log has the volumes that were not moved, and the example is rewritten completely.
func TestFsUserSeen(t *testing.T) {
	dir := t.TempDir()
	rules, log := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(rules, []byte(`{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", `+
		`"rules": [{"level": "Metadata", "resources": [{"resources": ["pods"]}]}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--audit-policy-file=" + rules,
		"--audit-log-path=" + log}})
	w := startFsUser(t, c)
	left := annotated("1000", tokenVolume("left"))
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
			if event.ObjectRef.Name == left.Name && strings.HasPrefix(event.Annotations[key], `volume "left" `) {
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
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		i := slices.IndexFunc(got.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		v := got.Spec.Volumes[i]
		if v.CSI == nil {
			t.Fatalf("volume %s of the example did not move", m.Name)
		}
		spec, errs := attributes.Parse(v.CSI.VolumeAttributes, false)
		if len(errs) > 0 || *spec.UID != 1000 || *spec.GID != 1000 {
			t.Fatalf("volume %s of the example is %s: %v", m.Name, encode(t, v), errs)
		}
		if spec, errs = spec.Describe(&got.Spec, v.Name); len(errs) > 0 || len(spec.Sources) != 1 {
			t.Errorf("volume %s of the example describes %v: %v", m.Name, spec.Sources, errs)
		}
	}
}

// The API server runs policies in random order. A pod that goes through one policy and then through both must be the
// same as in the other order.
func TestOrderOfPolicies(t *testing.T) {
	c := startCluster(t)
	startFsUser(t, c)
	undeclared := readOnly(driverVolume("c", "secretName", "undeclared"), nil)
	pod := annotated("1000", secretVolume("a", "a"), undeclared, configMapVolume("b", "b"),
		driverVolume("d", "secretName", "a"))
	run := func(pod *corev1.Pod, user string) *corev1.Pod {
		t.Helper()
		pod = pod.DeepCopy()
		pod.Annotations[fsUserAnnotation] = user
		got, err := c.dryRunPod(t, pod)
		if err != nil {
			t.Fatal(err)
		}
		return &corev1.Pod{ObjectMeta: pod.ObjectMeta, Spec: got.Spec}
	}
	moved := run(pod, "1000")
	if moved.Spec.Volumes[0].CSI == nil || len(moved.Spec.Volumes) != 6 {
		t.Fatalf("volumes are %s", encode(t, moved.Spec.Volumes))
	}
	c.install(t, "node")
	c.waitForPolicy(t)
	declared := run(pod, "none")
	if declared.Spec.Volumes[0].CSI != nil || len(declared.Spec.Volumes) != 5 {
		t.Fatalf("volumes are %s", encode(t, declared.Spec.Volumes))
	}
	want := encode(t, run(pod, "1000").Spec)
	for name, first := range map[string]*corev1.Pod{"fs-user": moved, "declare-references": declared} {
		if got := encode(t, run(first, "1000").Spec); !bytes.Equal(got, want) {
			t.Errorf("%s first:\n%s\nboth at once:\n%s", name, got, want)
		}
	}
}

func precedence(t *testing.T, c *cluster, w *warnings) {
	type annotations = map[string]string
	const none = "none"
	for _, test := range []struct {
		name           string
		namespace, pod annotations
		// uid and gid are the resulting attributes. The value none of uid means that nothing is rewritten.
		uid, gid string
	}{
		{"neither", nil, nil, none, ""},
		{"the pod", nil, annotations{fsUserAnnotation: "0"}, "0", ""},
		{"the pod, with a group", nil, annotations{fsUserAnnotation: "2147483647", fsGroupAnnotation: "0"}, "2147483647",
			"0"},
		{"the namespace", annotations{fsUserAnnotation: "70"}, nil, "70", ""},
		{"the namespace, with a group", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"},
			annotations{"other": "x"}, "70", "71"},
		{"both", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"},
			annotations{fsUserAnnotation: "80", fsGroupAnnotation: "81"}, "80", "81"},
		{"the user of the pod, the group of the namespace", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"},
			annotations{fsUserAnnotation: "80"}, "80", "71"},
		{"the pod does not want the namespace's group", annotations{fsUserAnnotation: "70", fsGroupAnnotation: "71"},
			annotations{fsGroupAnnotation: none}, "70", ""},
		{"the pod does not want", annotations{fsUserAnnotation: "70"}, annotations{fsUserAnnotation: none}, none, ""},
		{"the namespace does not want, the pod does", annotations{fsUserAnnotation: none},
			annotations{fsUserAnnotation: "80"}, "80", ""},
		{"a malformed one of the namespace, which the pod replaces", annotations{fsUserAnnotation: "root"},
			annotations{fsUserAnnotation: "80"}, "80", ""},
		{"a group alone", nil, annotations{fsGroupAnnotation: "81"}, none, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.annotateNamespace(t, apps, test.namespace)
			pod := podWith("", secretVolume("s", "s"))
			pod.GenerateName, pod.Annotations = "pod-", test.pod
			// The policy learns of the namespace with a watch.
			eventually(t, func() error {
				got, err := c.dryRunPod(t, pod)
				if err != nil {
					return err
				}
				v := got.Spec.Volumes[0]
				want := map[string]string{"uid": test.uid, "volume": "fsuser-csi-source-0"}
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

// noUser checks that the policy refuses the same values of the annotation as the driver refuses for the attribute, with
// the same words.
func noUser(t *testing.T, c *cluster) {
	for _, value := range []string{
		"", "root", "-1", "+1", "01000", "00", "1 000", " 1", "1\n", "1e3", "0x10", "1000.0", "2147483648", "4294967295",
		"99999999999999999999", "١", "None",
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
			if value != "" && !strings.Contains(err.Error(), errs[0].Detail) ||
				!strings.Contains(err.Error(), "metadata.annotations["+annotation+"]:") {
				t.Errorf("%s %q: error %v; want the driver's words: %s", annotation, value, err, errs[0].Detail)
			}
		}
	}
	// For an annotation of the namespace, the message says so.
	c.annotateNamespace(t, apps, map[string]string{fsUserAnnotation: "root"})
	defer c.annotateNamespace(t, apps, nil)
	eventually(t, func() error {
		pod := podWith("p", secretVolume("s", "s"))
		if _, err := c.dryRunPod(t, pod); err == nil ||
			!strings.Contains(err.Error(), "metadata.annotations["+fsUserAnnotation+"] of namespace "+apps+": ") {
			return fmt.Errorf("error %v; want one that names the namespace", err)
		}
		return nil
	})
}

// untouched checks pods for which the annotation has no effect.
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
	for name, pod := range map[string]*corev1.Pod{"mirror": mirror, "mirror with a bad annotation": badMirror,
		"driver": driver, "token": token} {
		w.take()
		if pod.Namespace == "" {
			pod.Namespace = apps
		}
		got, err := c.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod,
			metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
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
	// An update, such as adding a container for debugging, leaves the volumes as they are.
	old := podWith("old", secretVolume("s", "s"))
	got := c.createPod(t, old)
	got.Annotations = map[string]string{fsUserAnnotation: "1000"}
	got, err := c.CoreV1().Pods(apps).Update(t.Context(), got, metav1.UpdateOptions{})
	if err != nil || got.Spec.Volumes[0].CSI != nil {
		t.Errorf("%v; volumes %s", err, encode(t, got.Spec.Volumes))
	}
	pod := c.createPod(t, annotated("1000", secretVolume("s", "s")))
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debug", Image: "example.com/i", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		ImagePullPolicy: corev1.PullAlways,
		VolumeMounts:    []corev1.VolumeMount{{Name: "s", MountPath: "/s"}},
	}}}
	if pod, err = c.CoreV1().Pods(apps).UpdateEphemeralContainers(t.Context(), pod.Name, pod,
		metav1.UpdateOptions{}); err != nil || len(pod.Spec.Volumes) != 2 {
		t.Errorf("%v; volumes %s", err, encode(t, pod.Spec.Volumes))
	}
	// A template is no pod, but its controller makes a pod with the template's annotations.
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}}
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "d"}}
	d.Spec.Template = corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: d.Spec.Selector.MatchLabels,
			Annotations: map[string]string{fsUserAnnotation: "1000"}},
		Spec: podWith("", secretVolume("s", "s")).Spec,
	}
	if d, err = c.AppsV1().Deployments(apps).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if d.Spec.Template.Spec.Volumes[0].CSI != nil {
		t.Error("the template was rewritten")
	}
	made := c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "d-",
		Annotations: d.Spec.Template.Annotations}, Spec: d.Spec.Template.Spec})
	if made.Spec.Volumes[0].CSI == nil {
		t.Error("the pod was not rewritten")
	}
}

// addedLater uses another policy that adds a container and a volume, like a webhook that injects a sidecar.
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
        [JSONPatch{op: 'add', path: '/spec/volumes/-', value: Object.spec.volumes{name: 'injected',
            secret: Object.spec.volumes.secret{secretName: 'injected'}}},
        JSONPatch{op: 'add', path: '/metadata/annotations/seen', value: string(size(object.spec.volumes))},
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
		asked, err := c.plain(t, pod)
		if err != nil {
			return false, err
		}
		checkMoved(t, asked, got.Spec.Volumes, moved{"s": {"uid": "1000"}, "injected": {"uid": "1000"}})
		if told := w.take(); len(told) > 0 {
			t.Errorf("warnings %q", told)
		}
		return got.Annotations["seen"] == "1", nil
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

// moved describes the result for a pod's volumes: it maps each volume that is moved to the attributes of its
// replacement, without the attribute volume.
type moved map[string]map[string]string

// checkMoved checks that each moved volume is the same under another name and follows its replacement, and that all
// other volumes are unchanged.
func checkMoved(t *testing.T, asked, got []corev1.Volume, want moved) {
	t.Helper()
	names := map[string]bool{}
	for _, v := range got {
		if names[v.Name] || len(validation.IsDNS1123Label(v.Name)) > 0 {
			t.Errorf("volume name %q is there twice or no label", v.Name)
		}
		names[v.Name] = true
	}
	for _, v := range asked {
		attributes, moves := want[v.Name]
		if len(got) == 0 || moves && len(got) == 1 {
			t.Fatalf("volume %s or its source is missing", v.Name)
		}
		if !moves {
			if !equality.Semantic.DeepEqual(got[0], v) {
				t.Errorf("volume %s is\n%s\nwant\n%s", v.Name, encode(t, got[0]), encode(t, v))
			}
			got = got[1:]
			continue
		}
		replacement, source := got[0], got[1]
		got = got[2:]
		attributes = maps.Clone(attributes)
		attributes["volume"] = source.Name
		csi := corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
			Driver: driverName, ReadOnly: new(true), VolumeAttributes: attributes,
		}}}
		if !equality.Semantic.DeepEqual(replacement, csi) {
			t.Errorf("volume %s is\n%s\nwant\n%s", v.Name, encode(t, replacement), encode(t, csi))
		}
		if !strings.HasPrefix(source.Name, "fsuser-csi-source-") {
			t.Errorf("the source of %s is named %s", v.Name, source.Name)
		}
		v.Name = source.Name
		if !equality.Semantic.DeepEqual(source.VolumeSource, v.VolumeSource) {
			t.Errorf("the source of %s is\n%s\nwant\n%s", v.Name, encode(t, source), encode(t, v))
		}
	}
	if len(got) > 0 {
		t.Errorf("added: %s", encode(t, got))
	}
}

// plain returns the volumes that the API server stores for a pod without the annotation: with defaults, and without
// fields whose feature is off.
func (c *cluster) plain(t *testing.T, pod *corev1.Pod) ([]corev1.Volume, error) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Annotations = map[string]string{fsUserAnnotation: "none"}
	got, err := c.dryRunPod(t, pod)
	if err != nil {
		return nil, err
	}
	return got.Spec.Volumes, nil
}

func moves(t *testing.T, c *cluster, w *warnings) {
	user := map[string]string{"uid": "1000"}
	all := func(volumes []corev1.Volume) moved {
		want := moved{}
		for _, v := range volumes {
			want[v.Name] = user
		}
		return want
	}
	hard := "\"'{[-&a #é漢😀\n\\: ?%s$(A)"
	for _, test := range []struct {
		name      string
		volumes   []corev1.Volume
		want      moved
		unmounted []string // volumes that no container mounts
	}{
		{"a Secret", []corev1.Volume{secretVolume("s", "ssh-keys")}, moved{"s": user}, nil},
		{"a ConfigMap", []corev1.Volume{configMapVolume("c", "conf")}, moved{"c": user}, nil},
		{"modes, optional, items", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "x", "defaultMode": 256, "optional": true, "items": [
				{"key": "k", "path": "d/k", "mode": 384}, {"key": ".K_1-2", "path": "a b"}, {"key": "k", "path": "d/k"}]}}`),
			volumeOf(`{"name": "b", "configMap": {"name": "y", "defaultMode": 0, "optional": false, ` +
				`"items": [{"key": "k", "path": "k", "mode": 0}]}}`),
		}, moved{"a": user, "b": user}, nil},
		{"paths that are hard to write", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "x", "items": [{"key": "k", "path": ` + string(encode(t, hard)) +
				`}]}}`),
		}, moved{"a": user}, nil},
		{"the user that KEP-5936 gives to a volume or a file", []corev1.Volume{
			volumeOf(`{"name": "a", "secret": {"secretName": "x", "defaultUser": 7, ` +
				`"items": [{"key": "k", "path": "k"}, {"key": "l", "path": "l", "user": 0}]}}`),
			volumeOf(`{"name": "b", "configMap": {"name": "x", "items": [{"key": "l", "path": "l", "user": 8, "mode": 256}]}}`),
			volumeOf(`{"name": "c", "projected": {"defaultUser": 0, ` +
				`"sources": [{"secret": {"name": "x", "items": [{"key": "l", "path": "l", "user": 8}]}}]}}`),
			volumeOf(`{"name": "d", "downwardAPI": {"defaultUser": 3, ` +
				`"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}`),
		}, moved{"a": {"uid": "7"}, "b": user, "c": {"uid": "0"}, "d": {"uid": "3"}}, nil},
		{"projected", []corev1.Volume{
			volumeOf(`{"name": "a", "projected": {"defaultMode": 288, "sources": [
				{"secret": {"name": "s", "optional": true, "items": [{"key": "k", "path": "s/k", "mode": 256}]}},
				{"configMap": {"name": "c"}}, {"secret": {"name": "t"}},
				{"downwardAPI": {"items": [
					{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 292},
					{"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}}]}}`),
			volumeOf(`{"name": "b", "projected": {}}`),
		}, moved{"a": user, "b": user}, nil},
		{"what is no business of the policy", []corev1.Volume{
			withSecretRef(driverVolume("a", "uid", "5"), "y"), volumeOf(`{"name": "b", "emptyDir": {}}`),
			volumeOf(`{"name": "c", "hostPath": {"path": "/x"}}`),
			secretVolume("d", "y"), otherDriverVolume("e", "secretName", "x"),
		}, moved{"d": user}, nil},
		{"volumes that nothing mounts", []corev1.Volume{secretVolume("a", "x"), configMapVolume("b", "x"),
			secretVolume("c", "y")}, moved{"b": user}, []string{"a", "c"}},
		{"the user has our names", []corev1.Volume{
			secretVolume("fsuser-csi-source-0", "x"), secretVolume("a", "y"), configMapVolume("fsuser-csi-source-2", "z"),
		}, moved{"fsuser-csi-source-0": user, "a": user}, []string{"fsuser-csi-source-2"}},
		{"400 volumes", numberedInTree(400), all(numberedInTree(400)), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.take()
			pod := annotated("1000", test.volumes...)
			mounts := &pod.Spec.Containers[0].VolumeMounts
			*mounts = slices.DeleteFunc(*mounts, func(m corev1.VolumeMount) bool {
				return slices.Contains(test.unmounted, m.Name)
			})
			asked, err := c.plain(t, pod)
			if err != nil {
				t.Fatal(err)
			}
			got := c.createPod(t, pod)
			if told := w.take(); len(told) > 0 {
				t.Errorf("warnings: %q", told)
			}
			checkMoved(t, asked, got.Spec.Volumes, test.want)
			again := c.createPod(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "again-",
				Annotations: got.Annotations}, Spec: got.Spec})
			if was, is := encode(t, got.Spec), encode(t, again.Spec); !bytes.Equal(was, is) {
				t.Errorf("once\n%s\ntwice\n%s", was, is)
			}
		})
	}
	t.Run("a group", func(t *testing.T) {
		pod := annotated("1000", secretVolume("s", "s"))
		pod.Annotations[fsGroupAnnotation] = "7"
		asked, err := c.plain(t, pod)
		if err != nil {
			t.Fatal(err)
		}
		checkMoved(t, asked, c.createPod(t, pod).Spec.Volumes, moved{"s": {"uid": "1000", "gid": "7"}})
	})
	t.Run("mounted by an init container, beneath another volume, by subPath", func(t *testing.T) {
		pod := annotated("1000", secretVolume("s", "s"), secretVolume("t", "t"))
		pod.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", VolumeMounts: []corev1.VolumeMount{
			{Name: "s", MountPath: "/a"}, {Name: "t", MountPath: "/a/../a/b", SubPath: "k"},
		}}}
		pod.Spec.Containers[0].VolumeMounts = nil
		asked, err := c.plain(t, pod)
		if err != nil {
			t.Fatal(err)
		}
		checkMoved(t, asked, c.createPod(t, pod).Spec.Volumes, moved{"s": user, "t": user})
	})
}

func leftAlone(t *testing.T, c *cluster, w *warnings) {
	projected := func(sources string) string { return `{"name": "v", "projected": {"sources": [` + sources + `]}}` }
	onWindows := func(pod *corev1.Pod) { pod.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }
	onWindowsNode := func(pod *corev1.Pod) { pod.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"} }
	for _, test := range []struct {
		name, volume string
		windows      func(*corev1.Pod)
	}{
		{"a token", projected(`{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}, {"secret": {"name": "s"}}`),
			nil},
		{"a trust bundle", projected(`{"secret": {"name": "s"}}, {"clusterTrustBundle": {"name": "b", "path": "t"}}`), nil},
		{"for Windows", `{"name": "v", "secret": {"secretName": "s"}}`, onWindows},
		{"for Windows, by the node", `{"name": "v", "secret": {"secretName": "s"}}`, onWindowsNode},
	} {
		t.Run(test.name, func(t *testing.T) {
			left := volumeOf(test.volume)
			pod := annotated("1000", left, secretVolume("other", "other"))
			want := moved{"other": {"uid": "1000"}}
			if test.windows != nil {
				test.windows(pod)
				want = nil
			}
			w.take()
			got, err := c.dryRunPod(t, pod)
			told := w.take()
			if err != nil {
				t.Fatal(err)
			}
			asked, err := c.plain(t, pod)
			if err != nil {
				t.Fatal(err)
			}
			checkMoved(t, asked, got.Spec.Volumes, want)
			if len(told) != 1 || !strings.Contains(told[0],
				`volume "`+left.Name+`" stays as it is, without fsuser.csi.io/fs-user 1000: only kubelet can make`) ||
				strings.Contains(told[0], `"other"`) != (want == nil) {
				t.Errorf("warnings %q", told)
			}
		})
	}
}

// refusedAlike checks that the API server refuses the same volumes with the annotation as without it.
func refusedAlike(t *testing.T, c *cluster) {
	items := func(item string) string {
		return `{"name": "v", "secret": {"secretName": "s", "items": [` + item + `]}}`
	}
	field := func(f string) string {
		return `{"name": "v", "projected": {"sources": [{"downwardAPI": {"items": [{"path": "p", ` + f + `}]}}]}}`
	}
	for name, volume := range map[string]string{
		"no name of a Secret":      `{"name": "v", "secret": {}}`,
		"no name of a ConfigMap":   `{"name": "v", "configMap": {}}`,
		"a path out of the volume": items(`{"key": "k", "path": "../b"}`),
		"an absolute path":         items(`{"key": "k", "path": "/b"}`),
		"a mode of the volume":     `{"name": "v", "secret": {"secretName": "s", "defaultMode": 1023}}`,
		"a mode of a file":         items(`{"key": "k", "path": "k", "mode": -1}`),
		"two types in one volume":  `{"name": "v", "secret": {"secretName": "s"}, "emptyDir": {}}`,
		"two types, both of files": `{"name": "v", "secret": {"secretName": "s"}, "configMap": {"name": "s"}}`,
		"two types in one source": `{"name": "v", "projected": ` +
			`{"sources": [{"secret": {"name": "s"}, "configMap": {"name": "s"}}]}}`,
		"an environment's field": field(`"fieldRef": {"fieldPath": "status.podIP"}`),
		"another API's field":    field(`"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}`),
		"neither field":          field(`"mode": 292`),
		"no resource":            field(`"resourceFieldRef": {"containerName": "c", "resource": "limits.sugar"}`),
		"a divisor": field(`"resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", ` +
			`"divisor": "2"}`),
		"a volume that is not a name": `{"name": "V", "secret": {"secretName": "s"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			pod := annotated("1000", volumeOf(volume))
			_, err := c.dryRunPod(t, pod)
			_, plainErr := c.plain(t, pod)
			if !apierrors.IsInvalid(err) || !apierrors.IsInvalid(plainErr) || !strings.Contains(err.Error(), "spec.volumes[") {
				t.Errorf("error %v, and without the annotation %v; want both, of the API server", err, plainErr)
			}
		})
	}
}

// volumeOf parses a volume of a manifest.
func volumeOf(text string) (v corev1.Volume) {
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(fmt.Sprintf("%s: %v", text, err))
	}
	return v
}

func numberedInTree(n int) (volumes []corev1.Volume) {
	for i := range n {
		volumes = append(volumes, secretVolume(fmt.Sprint("v", i), fmt.Sprint("secret-", i)))
	}
	return volumes
}
