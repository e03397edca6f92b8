// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

func fullPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-0", Namespace: "shop", UID: "u-1", ResourceVersion: "7",
			Labels:      map[string]string{"b": "2", "app.kubernetes.io/name": "web"},
			Annotations: map[string]string{"note": "two\nlines \"and\" é"},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "robot",
			InitContainers: []corev1.Container{{Name: "init"}},
			Containers: []corev1.Container{{Name: "app", Resources: corev1.ResourceRequirements{
				Limits:   corev1.ResourceList{"cpu": resource.MustParse("1500m"), "hugepages-2Mi": resource.MustParse("4Mi")},
				Requests: corev1.ResourceList{"memory": resource.MustParse("100Mi")},
			}}},
		},
		Status: corev1.PodStatus{
			HostIP: "10.0.0.1", HostIPs: []corev1.HostIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			PodIP: "10.1.0.5", PodIPs: []corev1.PodIP{{IP: "10.1.0.5"}, {IP: "fd01::5"}},
		},
	}
}

// The format is kubelet's (pkg/fieldpath FormatMap).
func TestFieldsOfAPodAreWhatKubeletShows(t *testing.T) {
	want := map[string]string{
		"metadata.name": "web-0", "metadata.namespace": "shop", "metadata.uid": "u-1",
		"metadata.labels":                           "app.kubernetes.io/name=\"web\"\nb=\"2\"",
		"metadata.labels['b']":                      "2",
		"metadata.labels['app.kubernetes.io/name']": "web",
		"metadata.annotations":                      `note="two\nlines \"and\" é"`,
		"metadata.annotations['note']":              "two\nlines \"and\" é",
		"init/":                                     "", "app/": "", "app/limits.cpu": "1500m",
		"app/limits.hugepages-2Mi": "4Mi", "app/requests.memory": "100Mi",
	}
	content, ok := contentOf(attributes.Pod, fullPod())
	if !ok || content.UID != "u-1" || content.ResourceVersion != "7" {
		t.Fatalf("got %+v, %v", content, ok)
	}
	for path, text := range want {
		if got, ok := content.Data[path]; !ok || string(got) != text {
			t.Errorf("%s: got %q, %v, want %q", path, got, ok, text)
		}
	}
	for path, text := range content.Data {
		if _, known := want[path]; !known {
			t.Errorf("%s: %q is not expected", path, text)
		}
	}
}

func TestAPodIsTheSameVersionWhileItsFieldsAre(t *testing.T) {
	of := func(change func(*corev1.Pod)) Content {
		pod := fullPod()
		pod.ResourceVersion = "8"
		change(pod)
		content, _ := contentOf(attributes.Pod, pod)
		return content
	}
	was, _ := contentOf(attributes.Pod, fullPod())
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		same   bool
	}{
		"only its status":      {func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, true},
		"a label":              {func(p *corev1.Pod) { p.Labels["b"] = "3" }, false},
		"a label that is gone": {func(p *corev1.Pod) { delete(p.Labels, "b") }, false},
		"an annotation":        {func(p *corev1.Pod) { p.Annotations["x"] = "" }, false},
		"its address":          {func(p *corev1.Pod) { p.Status.PodIP = "10.1.0.6" }, true}, // no volume can show it
		"a resource of it": {func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits["cpu"] = resource.MustParse("2")
		}, false},
		"another pod, all equal": {func(p *corev1.Pod) { p.UID = "u-2" }, false},
	} {
		if got := was.SameVersion(of(c.change)); got != c.same {
			t.Errorf("%s: same version is %v, want %v", name, got, c.same)
		}
	}
}
