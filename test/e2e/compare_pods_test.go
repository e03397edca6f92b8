// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

func resources(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu),
		corev1.ResourceMemory: resource.MustParse(memory)}
}

// template returns the pod of a workload. It mounts the Secret of the same name, and its init container prints the
// files.
func template(t *testing.T, name string, annotated bool) corev1.PodTemplateSpec {
	t.Helper()
	pod := parsePod(t, strings.ReplaceAll(`
metadata: {labels: {app: NAME}}
spec:
  initContainers:
  - {name: init, image: `+podImage+`, command: [/pod, list, /v], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, volumeMounts: [{name: v, mountPath: /v}]}
  volumes:
  - {name: v, secret: {secretName: NAME}}`, "NAME", name))
	if annotated {
		annotate(&pod.ObjectMeta)
	}
	return corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}
}

// compareWorkloads compares the pods of a Deployment, a StatefulSet and a Job, each with an init container.
func compareWorkloads(t *testing.T, kubernetes, driver namespace) {
	names := []string{"deployment", "statefulset", "job"}
	for i, n := range []namespace{kubernetes, driver} {
		for _, name := range names {
			secret("k", "1")(n, name)
		}
		meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
		selector := func(name string) *metav1.LabelSelector {
			return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
		}
		_, err := client.AppsV1().Deployments(n.name).Create(suite, &appsv1.Deployment{ObjectMeta: meta("deployment"),
			Spec: appsv1.DeploymentSpec{Selector: selector("deployment"), Template: template(t, "deployment", i == 1)}},
			metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.AppsV1().StatefulSets(n.name).Create(suite, &appsv1.StatefulSet{ObjectMeta: meta("statefulset"),
			Spec: appsv1.StatefulSetSpec{Selector: selector("statefulset"), Template: template(t, "statefulset", i == 1)}},
			metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		job := template(t, "job", i == 1)
		job.Spec.RestartPolicy = corev1.RestartPolicyNever
		job.Spec.Containers[0].Command = []string{"/pod", "list", "/v"}
		_, err = client.BatchV1().Jobs(n.name).Create(suite,
			&batchv1.Job{ObjectMeta: meta("job"), Spec: batchv1.JobSpec{Template: job}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		listings, err := both(kubernetes, driver, func(n namespace) ([2][]tree.Entry, error) { return n.workload(name) })
		if err != nil {
			t.Fatal(err)
		}
		for i, container := range []string{"init", "main"} {
			if files := tree.Files(listings[0][i]); len(files) != 1 || files["k"] != `"1"` {
				t.Errorf("%s, container %s, sees %q in Kubernetes' volume", name, container, files)
			}
			if err := (comparison{}).equal(name+", container "+container, listings[0][i], listings[1][i]); err != nil {
				t.Error(err)
			}
		}
	}
}

// workload waits until a workload's pod is ready, or has succeeded. It returns the files in /v as the pod's init
// container and its container see them.
func (n namespace) workload(app string) (listings [2][]tree.Entry, err error) {
	name := ""
	if _, err = untilErr(n.t, soon, "the pod of "+app, "pods", n.name, "", &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p, ok := e.Object.(*corev1.Pod)
			if !ok || p.Labels["app"] != app {
				return false, nil
			}
			name = p.Name
			return isReady(p) || p.Status.Phase == corev1.PodSucceeded, nil
		}); err != nil {
		return listings, err
	}
	for i, container := range []string{"init", "main"} {
		var listing map[string][]tree.Entry
		if container == "main" && app != "job" {
			listing, err = listingOf(n, name, container, "/v")
		} else {
			var log []byte
			if log, err = client.CoreV1().Pods(n.name).GetLogs(name,
				&corev1.PodLogOptions{Container: container}).DoRaw(suite); err == nil {
				listing, err = parseListing(string(log))
			}
		}
		if err != nil {
			return listings, fmt.Errorf("pod %s, container %s: %w", name, container, err)
		}
		listings[i] = listing["/v"]
	}
	return listings, nil
}

// secretComparison returns a comparison of a secret volume with a file k.
func secretComparison(name, fields string) comparison {
	return comparison{
		name: name, volumes: "- {name: v, secret: {secretName: NAME, " + fields + "}}", before: []edit{secret("k", "1")},
	}
}

// compareEphemeralContainer adds an ephemeral container to running pods after an update.
func compareEphemeralContainer(t *testing.T, kubernetes, driver namespace) {
	c := secretComparison("ephemeral-container", "")
	c.create(t, kubernetes, driver)
	p := pair{t, c, kubernetes, driver}
	for _, n := range []namespace{kubernetes, driver} {
		n.ready(c.name)
		secret("k", "2")(n, c.name)
	}
	p.touch()
	p.agree("after an update", files{"k": "2"})
	listings, err := both(kubernetes, driver, func(n namespace) (map[string][]tree.Entry, error) {
		running := podOf(n, c.name)
		running.Spec.EphemeralContainers = append(running.Spec.EphemeralContainers, corev1.EphemeralContainer{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: podImage, VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/w"}},
			},
		})
		if _, err := client.CoreV1().Pods(n.name).UpdateEphemeralContainers(suite, c.name, running,
			metav1.UpdateOptions{}); err != nil {
			return nil, err
		}
		if _, err := untilErr(t, soon, "an ephemeral container to run", "pods", n.name, c.name, &corev1.Pod{},
			func(e watch.Event) (bool, error) {
				statuses := e.Object.(*corev1.Pod).Status.EphemeralContainerStatuses
				return len(statuses) == 1 && statuses[0].State.Running != nil, nil
			}); err != nil {
			return nil, err
		}
		return listingOf(n, c.name, "debug", "/w")
	})
	if err != nil {
		t.Fatal(err)
	}
	if files := tree.Files(listings[0]["/w"]); len(files) != 1 || files["k"] != `"2"` {
		t.Errorf("the ephemeral container sees %q in Kubernetes' volume", files)
	}
	if err := c.equal("/w", listings[0]["/w"], listings[1]["/w"]); err != nil {
		t.Error(err)
	}
}

// compareMissingSubPath compares a subPath that does not exist, which is an empty directory of the volume. In the
// driver's volume the directory is in each version of the files, so the comparison follows the links.
func compareMissingSubPath(t *testing.T, kubernetes, driver namespace) {
	c := comparison{
		name: "subpath-missing", volumes: "- {name: v, secret: {secretName: NAME, items: [{key: k, path: d/k}]}}",
		spec: func(spec *corev1.PodSpec) {
			spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts,
				corev1.VolumeMount{Name: "v", MountPath: "/sub", SubPath: "missing"},
				corev1.VolumeMount{Name: "v", MountPath: "/deep", SubPath: "one/two"})
		},
		before: []edit{secret("k", "1")},
	}
	c.create(t, kubernetes, driver)
	const look = "ls -A /sub /deep; cd /v; find -L * | sort; stat -L -c '%F' missing one/two"
	const want = "/deep:\n\n/sub:\nd\nd/k\nmissing\none\none/two\ndirectory\ndirectory"
	for _, n := range []namespace{kubernetes, driver} {
		n.ready(c.name)
		n.expect(c.name, "", look, want)
	}
	driver.changeSecret(c.name, "k", "2")
	driver.untilPrints(c.name, "cat /v/d/k", "2")
	driver.expect(c.name, "", look, want)
}

// compareNestedMount compares a volume that a container mounts beneath another volume. It gets its mount point there,
// and stays mounted when the other volume is refreshed.
func compareNestedMount(t *testing.T, kubernetes, driver namespace) {
	pair{t, comparison{
		name: "nested-mount", volumes: `- {name: v, secret: {secretName: NAME}}
  - {name: beneath, emptyDir: {}}`,
		spec: func(spec *corev1.PodSpec) {
			spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts,
				corev1.VolumeMount{Name: "beneath", MountPath: "/v/beneath"},
				corev1.VolumeMount{Name: "beneath", MountPath: "/v/deep/er"})
		},
		before: []edit{secret("k", "1")},
		shows:  files{"k": "1"},
		steps:  []step{{"the keys change", []edit{secret("l", "2")}, nil, files{"l": "2"}}},
		differs: []difference{{"The root of the emptyDir belongs to root in both", func(e tree.Entry) tree.Entry {
			if e.Path == "beneath" || e.Path == "deep/er" {
				e.UID = 0
			}
			return e
		}}},
	}, kubernetes, driver}.start().run()
	for _, n := range []namespace{kubernetes, driver} {
		n.expect("nested-mount", "", "touch /v/beneath/file; ls /v /v/deep/er",
			"/v:\nbeneath\ndeep\nl\n\n/v/deep/er:\nfile")
	}
}

// compareSameKeyTwice checks that the later source wins if two sources of a projected volume have the same key.
func compareSameKeyTwice(t *testing.T, kubernetes, driver namespace) {
	pair{t, comparison{
		name:    "same-key-twice",
		volumes: "- {name: v, projected: {sources: [{secret: {name: NAME}}, {configMap: {name: NAME}}]}}",
		before:  []edit{secret("k", "of the Secret"), configMap("k", "of the ConfigMap")},
		shows:   files{"k": "of the ConfigMap"},
		steps: []step{
			{"the later source loses the key", []edit{configMap("other", "1")}, nil,
				files{"k": "of the Secret", "other": "1"}},
			{"and has it again", []edit{configMap("k", "2")}, nil, files{"k": "2"}},
		},
	}, kubernetes, driver}.start().run()
}

// compareToken checks that the annotation does not move a volume with a service account token, which only kubelet can
// make.
func compareToken(t *testing.T, _, driver namespace) {
	pod := parsePod(t, `
metadata: {name: token}
spec:
  containers: [{name: main, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes:
  - {name: v, projected: {sources: [{serviceAccountToken: {path: token}}]}}`)
	annotate(&pod.ObjectMeta)
	if made := driver.createPod(pod); made.Spec.Volumes[0].Projected == nil {
		t.Errorf("the annotation moved the volume: %+v", made.Spec.Volumes[0])
	}
	driver.ready("token")
	driver.expect("token", "", "ls /v", "token")
}

// compareWrite checks that root in a container can neither write nor change a mode.
func compareWrite(t *testing.T, kubernetes, driver namespace) {
	c := secretComparison("write", "defaultMode: 0600")
	c.create(t, kubernetes, driver)
	for _, n := range []namespace{kubernetes, driver} {
		n.ready(c.name)
		n.expect(c.name, "", "cd /v; touch new; echo x > k; chmod 644 k; rm k; mkdir d; ln -s a b; cat k; echo",
			`touch: new: Read-only file system
sh: can't create k: Read-only file system
chmod: k: Read-only file system
rm: can't remove 'k': Read-only file system
mkdir: can't create directory 'd': Read-only file system
ln: b: Read-only file system
1`)
	}
}

// compareStatistics checks that kubelet counts bytes and inodes of both volumes. Kubelet counts once a minute.
func compareStatistics(t *testing.T, kubernetes, driver namespace) {
	c := secretComparison("statistics", "")
	c.create(t, kubernetes, driver)
	for _, n := range []namespace{kubernetes, driver} {
		n.ready(c.name)
	}
	for _, n := range []namespace{kubernetes, driver} {
		stats := n.statistics(c.name, "v")
		t.Logf("kubelet says of the volume: %+v", stats)
		if stats.InodesUsed > 100 || stats.UsedBytes > 1<<20 {
			t.Errorf("that is more than a small Secret takes: %+v", stats)
		}
	}
}

// volumeStatistics are the statistics of a volume in kubelet's summary.
type volumeStatistics struct {
	Name                                         string
	UsedBytes, CapacityBytes, InodesUsed, Inodes uint64
}

// statistics waits until kubelet's summary has the bytes and inodes of a pod's volume. It polls, because there is
// nothing to watch.
func (n namespace) statistics(pod, volume string) volumeStatistics {
	n.t.Helper()
	ctx, cancel := within(n.t, 4*time.Minute, "kubelet's statistics of pod "+pod)
	defer cancel()
	for {
		text, err := client.CoreV1().RESTClient().Get().Resource("nodes").Name(nodeName).
			SubResource("proxy").Suffix("stats/summary").DoRaw(ctx)
		var summary struct {
			Pods []struct {
				PodRef struct{ Name, Namespace string }
				Volume []volumeStatistics
			}
		}
		if err == nil {
			err = json.Unmarshal(text, &summary)
		}
		if err != nil && ctx.Err() == nil {
			n.t.Fatal(err)
		}
		for _, p := range summary.Pods {
			for _, v := range p.Volume {
				if p.PodRef.Namespace == n.name && p.PodRef.Name == pod && v.Name == volume && v.UsedBytes > 0 && v.InodesUsed > 0 {
					return v
				}
			}
		}
		select {
		case <-ctx.Done():
			n.t.Fatalf("%v (last answer: %s)", context.Cause(ctx), text)
		case <-time.After(2 * time.Second):
		}
	}
}
