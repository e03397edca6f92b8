// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"testing"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestEachSourceComesAndGoesByItsOwnRules(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	p, v := pod("sources"), ssh("sources", `
- secret: {name: `+name+`}
- configMap: {name: `+name+`, items: [{key: a, path: conf/a}, {key: b, path: conf/b}]}
- configMap: {name: `+name+`-optional, optional: true}`)
	setSecret(t, name, files{"k": "1"})
	waits(t, d, p, v, codes.NotFound, `ConfigMap "default/`+name+`"`)
	setConfigMap(t, name, files{"a": "1", "b": "1"}, nil)
	s := see(t, d, p, v)
	s.becomes(files{"k": "1", "conf/a": "1", "conf/b": "1"})
	setConfigMap(t, name+"-optional", files{"o": "1"}, nil)
	s.becomes(files{"k": "1", "conf/a": "1", "conf/b": "1", "o": "1"})
	// What can't be brought up to date keeps all files, those of the other sources among them.
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

// Kubelet takes the last source's.
func TestAKeyThatTwoSourcesHaveIsRefused(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "of the Secret"})
	setConfigMap(t, name, files{"k": "of the ConfigMap"}, nil)
	v := ssh("sources", `[{secret: {name: `+name+`}}, {configMap: {name: `+name+`}}]`)
	waits(t, d, pod("waits"), v, codes.FailedPrecondition, `"k"`, "Secret", "ConfigMap", "items")
	setConfigMap(t, name, files{"l": "1"}, nil)
	testkit.Eventually(t, soon, "the publish to succeed", func() bool {
		_, err := d.Publish(deadline(t), pod("waits"), v)
		return err == nil
	})
	s := see(t, d, pod("waits"), v)
	s.becomes(files{"k": "of the Secret", "l": "1"})
	setConfigMap(t, name, files{"k": "of the ConfigMap"}, nil)
	s.stale()
	s.stays(files{"k": "of the Secret", "l": "1"})
}

// TestFieldsFollowThePod has a real pod, which no node runs.
func TestFieldsFollowThePod(t *testing.T) {
	nothingLeft(t)
	d := shared.start(t)
	shared.defaultServiceAccount(t)
	made, err := shared.CoreV1().Pods(namespace).Create(deadline(t), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: objectName(t), Labels: map[string]string{"b": "2", "a": "1"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")},
		}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now := int64(0)
		if err := shared.CoreV1().Pods(namespace).Delete(deadline(t), made.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Error(err)
		}
	})
	p := kubelet.Pod{Namespace: namespace, Name: made.Name, UID: string(made.UID)}
	// Only kubelet knows what the node would give.
	waits(t, d, p, ssh("sources", `[{downwardAPI: {items: [{path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu}}]}}]`),
		codes.FailedPrecondition, `no limits.cpu for container "c"`)
	s := see(t, d, p, ssh("sources", `
- downwardAPI:
    items:
    - {path: name, fieldRef: {fieldPath: metadata.name}}
    - {path: uid, fieldRef: {fieldPath: metadata.uid}}
    - {path: labels, fieldRef: {fieldPath: metadata.labels}}
    - {path: one/label, fieldRef: {fieldPath: "metadata.labels['a']"}}
    - {path: annotation, fieldRef: {fieldPath: "metadata.annotations['example.com/x']"}}
    - {path: address, fieldRef: {fieldPath: status.podIP}}
    - {path: cpu, resourceFieldRef: {containerName: c, resource: requests.cpu, divisor: 1m}}`))
	want := files{"name": made.Name, "uid": string(made.UID), "labels": "a=\"1\"\nb=\"2\"", "one/label": "1", "annotation": "", "address": "", "cpu": "1500"}
	s.becomes(want)
	patch := func(patch string, subresource ...string) {
		t.Helper()
		if _, err := shared.CoreV1().Pods(namespace).Patch(deadline(t), made.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, subresource...); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"metadata":{"labels":{"a":null},"annotations":{"example.com/x":"two\nlines"}}}`)
	want["labels"], want["one/label"], want["annotation"] = `b="2"`, "", "two\nlines"
	s.becomes(want)
	patch(`{"status":{"podIP":"10.1.2.3","podIPs":[{"ip":"10.1.2.3"}]}}`, "status")
	want["address"] = "10.1.2.3"
	s.becomes(want)
}
