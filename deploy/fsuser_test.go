// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
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
func startFsUser(t *testing.T, options controlplane.Options) (*cluster, *warnings) {
	t.Helper()
	c := startClusterWith(t, options)
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
	return c, w
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

// take returns those since it was last called.
func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.all
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
	c, w := startFsUser(t, controlplane.Options{})
	t.Run("what is rewritten", func(t *testing.T) { rewrites(t, c, w) })
	t.Run("what is left alone", func(t *testing.T) { leftAlone(t, c, w) })
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
			volume(`{"name": "a", "secret": {"secretName": "x", "defaultMode": 256, "optional": true, "items": [
				{"key": "k", "path": "d/k", "mode": 384}, {"key": ".K_1-2", "path": "a b"}]}}`),
			volume(`{"name": "b", "configMap": {"name": "y", "defaultMode": 0, "optional": false, "items": [{"key": "k", "path": "k", "mode": 0}]}}`),
			volume(`{"name": "c", "secret": {"secretName": "x", "defaultMode": 511}}`),
			volume(`{"name": "d", "secret": {"secretName": "x", "defaultMode": 8, "items": []}}`),
		}, []attrs{
			{"uid": "1000", "mode": "0400", "secretName": "x", "optional": "true",
				"items": `[{"key":"k","path":"d/k","mode":384},{"key":".K_1-2","path":"a b"}]`},
			{"uid": "1000", "mode": "00", "configMapName": "y", "items": `[{"key":"k","path":"k","mode":0}]`},
			{"uid": "1000", "mode": "0777", "secretName": "x"},
			{"uid": "1000", "mode": "010", "secretName": "x"},
		}, []string{"secret/x", "configMap/y"}, nil},
		{"paths that are hard to write", []corev1.Volume{
			volume(`{"name": "a", "secret": {"secretName": "x", "items": [{"key": "k", "path": "\"'{[-&a #é漢😀"}, {"key": "l", "path": "&b/ - ? x%s$(A)"}]}}`),
		}, []attrs{{"uid": "1000", "mode": "0644", "secretName": "x",
			"items": `[{"key":"k","path":"\"'{[-\u0026a #é漢😀"},{"key":"l","path":"\u0026b/ - ? x%s$(A)"}]`}}, []string{"secret/x"}, nil},
		{"the longest names and paths", []corev1.Volume{
			volume(`{"name": "a", "secret": {"secretName": "` + strings.Repeat("a", 253) + `", "items": [
				{"key": "` + strings.Repeat("k", 253) + `", "path": "` + strings.Repeat("é", 127) + `"}]}}`),
		}, []attrs{{"uid": "1000", "mode": "0644", "secretName": strings.Repeat("a", 253),
			"items": `[{"key":"` + strings.Repeat("k", 253) + `","path":"` + strings.Repeat("é", 127) + `"}]`}}, []string{"secret/" + strings.Repeat("a", 253)}, nil},
		{"the user that KEP-5936 gives to a volume or a file", []corev1.Volume{
			volume(`{"name": "a", "secret": {"secretName": "x", "defaultUser": 7, "items": [{"key": "k", "path": "k"}, {"key": "l", "path": "l", "user": 0}]}}`),
			volume(`{"name": "b", "configMap": {"name": "x", "items": [{"key": "l", "path": "l", "user": 8, "mode": 256}]}}`),
			volume(`{"name": "c", "projected": {"defaultUser": 0, "sources": [{"secret": {"name": "x", "items": [{"key": "l", "path": "l", "user": 8}]}}]}}`),
		}, []attrs{
			{"uid": "7", "mode": "0644", "secretName": "x", "items": `[{"key":"k","path":"k"},{"key":"l","path":"l","uid":0}]`},
			{"uid": "1000", "mode": "0644", "configMapName": "x", "items": `[{"key":"l","path":"l","mode":256,"uid":8}]`},
			{"uid": "0", "mode": "0644", "sources": `[{"secret":{"name":"x","items":[{"key":"l","path":"l","uid":8}]}}]`},
		}, []string{"secret/x", "configMap/x"}, nil},
		{"projected", []corev1.Volume{
			volume(`{"name": "a", "projected": {"defaultMode": 288, "sources": [
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
			volume(`{"name": "a", "downwardAPI": {"defaultMode": 256, "defaultUser": 3, "items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}`),
		}, []attrs{{"uid": "3", "mode": "0400", "sources": `[{"downwardAPI":{"items":[{"fieldRef":{"fieldPath":"metadata.name"},"path":"name"}]}}]`}}, nil, nil},
		{"what is no business of the policy", []corev1.Volume{
			driverVolume("a", "secretName", "x", "uid", "5"), volume(`{"name": "b", "emptyDir": {}}`), volume(`{"name": "c", "hostPath": {"path": "/x"}}`),
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
		{"300 volumes", numberedInTree(300), nil, numberedSecrets(300), nil},
		{"600 items", []corev1.Volume{numberedItems(600)}, nil, []string{"secret/x"}, nil},
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
				if v.CSI.VolumeAttributes["sources"] != "" {
					continue // TODO: the driver on this branch does not know sources yet
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
	got := c.createPod(t, annotated("1", secretVolume("s", "Upper")))
	if told := w.take(); got.Spec.Volumes[0].Secret == nil || len(told) != 1 {
		t.Errorf("warnings: %q, volumes %v", told, got.Spec.Volumes)
	}
}

// volume is one as a manifest has it.
func volume(text string) (v corev1.Volume) {
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

func numberedInTree(n int) (volumes []corev1.Volume) {
	for i := range n {
		volumes = append(volumes, secretVolume(fmt.Sprint("v", i), fmt.Sprint("secret-", i)))
	}
	return volumes
}
