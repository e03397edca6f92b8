// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package gallery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

const podTimeout = 2 * time.Minute

// podOf returns a pod of the image of a suite that runs a script once.
func podOf(name, suite, script string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(user), RunAsGroup: new(user)}
	pod.Spec.Containers = []corev1.Container{{Name: "program", Image: imageName(suite)}}
	runOnce(pod, script)
	return pod
}

// runOnce makes a pod run a script once, in the environment that the image's programs expect.
func runOnce(pod *corev1.Pod, script string) {
	spec, c := &pod.Spec, &pod.Spec.Containers[0]
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.AutomountServiceAccountToken = new(false)
	spec.EnableServiceLinks = new(false)
	spec.TerminationGracePeriodSeconds = new(int64(0))
	c.ImagePullPolicy = corev1.PullNever
	c.Command = []string{"/bin/sh", "-ec", "exec 2>&1\n" + script}
	c.WorkingDir = "/tmp"
	c.Env = append([]corev1.EnvVar{{Name: "HOME", Value: "/home/app"}}, c.Env...)
}

// galleryPod returns the pod of the program's example, with the gallery's Secret, image and script.
func (p program) galleryPod(name, secret string, keys []string) (*corev1.Pod, error) {
	manifest := p.pod(values{Name: name, Image: imageName(p.suite), Secret: secret, Keys: keys})
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(manifest), pod); err != nil {
		return nil, fmt.Errorf("%w in\n%s", err, manifest)
	}
	runOnce(pod, p.script)
	return pod, nil
}

// inTree gives the pod Kubernetes' own volume of the Secret, with the same paths or those of the attempt.
func inTree(pod *corev1.Pod, secret string, keys []string, a attempt) {
	source := &corev1.SecretVolumeSource{SecretName: secret, DefaultMode: new(a.mode)}
	for _, key := range keys {
		path := pathOf(key)
		if a.items != nil {
			path = a.items[key]
		}
		if path != "" {
			source.Items = append(source.Items, corev1.KeyToPath{Key: key, Path: path})
		}
	}
	pod.Spec.Volumes = []corev1.Volume{{Name: volumeName, VolumeSource: corev1.VolumeSource{Secret: source}}}
}

// awaitsUpdate makes the pod ready when the script's file /tmp/ready exists, and gives the script the whole volume.
func awaitsUpdate(pod *corev1.Pod) {
	c := &pod.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volumeName, MountPath: watched})
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{
		Command: []string{"test", "-e", "/tmp/ready"}}}}
}

// endOf waits until a pod has ended, and returns its log and exit code.
func endOf(
	ctx context.Context, client kubernetes.Interface, namespace, name string,
) (log string, code int32, err error) {
	pod, err := waitForPod(ctx, client, namespace, name, "end", ended)
	if err != nil {
		return "", 0, err
	}
	text, err := client.CoreV1().Pods(namespace).GetLogs(name, &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil {
		return "", 0, fmt.Errorf("read the log of pod %s: %w", name, err)
	}
	for _, status := range pod.Status.ContainerStatuses {
		if status.State.Terminated != nil {
			return string(text), status.State.Terminated.ExitCode, nil
		}
	}
	return "", 0, fmt.Errorf("pod %s is %s, and no container has ended: %s", name, pod.Status.Phase, pod.Status.Message)
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// waitForPod waits until a pod fulfills a condition.
func waitForPod(ctx context.Context, client kubernetes.Interface, namespace, name, what string,
	wanted func(*corev1.Pod) bool) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	for {
		// A watch without a version begins with the current state of the pod.
		events, err := client.CoreV1().Pods(namespace).Watch(ctx,
			metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
		if err != nil {
			return nil, fmt.Errorf("wait for the %s of pod %s: %w", what, name, err)
		}
		for event := range events.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && event.Type != watch.Deleted && wanted(pod) {
				events.Stop()
				return pod, nil
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waited %s for the %s of pod %s in vain: %s", podTimeout, what, name,
				troubles(client, namespace, name))
		}
	}
}

// troubles returns the events of a pod.
func troubles(client kubernetes.Interface, namespace, name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events, err := client.CoreV1().Events(namespace).List(ctx,
		metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil {
		return err.Error()
	}
	var lines []string
	for _, event := range events.Items {
		lines = append(lines, event.Reason+": "+event.Message)
	}
	return strings.Join(lines, "\n")
}
