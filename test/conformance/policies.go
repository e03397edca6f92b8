// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/pkg/driver"
)

// annotate is the policy that makes the fs-user policy move the volumes of the tests.
//
//go:embed annotate.yaml
var annotate string

// fsUser is the annotation for moving volumes.
const fsUser = "fsuser.csi.io/fs-user"

// testLabel is the label of the namespaces of the tests.
const testLabel = "e2e-run"

const policiesTimeout = time.Minute

// waitForPolicies waits until all policies are in effect. The API server has no event for that.
func waitForPolicies(ctx context.Context, client kubernetes.Interface) error {
	var last error
	inEffect := func(ctx context.Context) (bool, error) {
		last = tryPolicies(ctx, client)
		return last == nil, nil
	}
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, policiesTimeout, true, inEffect)
	if err != nil {
		return fmt.Errorf("wait for the policies to take effect: %w; the last attempt: %w", err, last)
	}
	return nil
}

// tryPolicies lets the API server admit a namespace of the tests, and a pod with a volume of each kind.
func tryPolicies(ctx context.Context, client kubernetes.Interface) error {
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	meta := metav1.ObjectMeta{Name: "probe", Labels: map[string]string{testLabel: "probe"}}
	namespace, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: meta}, dryRun)
	if err != nil {
		return err
	}
	if namespace.Annotations[fsUser] != "0" {
		return errors.New("a namespace of the tests is not annotated")
	}
	want := probe()
	pod, err := client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, want, dryRun)
	if err != nil {
		return err
	}
	if ofDriver, inTree := mounted(pod.Spec); len(ofDriver) != len(want.Spec.Volumes) || len(inTree) != 0 {
		return fmt.Errorf("the volumes %q are of the driver, and %q of Kubernetes", ofDriver, inTree)
	}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && (v.CSI.ReadOnly == nil || !*v.CSI.ReadOnly) {
			return fmt.Errorf("volume %q is not read-only", v.Name)
		}
	}
	return nil
}

// probe returns a pod that mounts a volume of each kind.
func probe() *corev1.Pod {
	field := []corev1.DownwardAPIVolumeFile{{
		Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"},
	}}
	object := corev1.LocalObjectReference{Name: "object"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe", Annotations: map[string]string{fsUser: "0"}}}
	container := corev1.Container{Name: "probe", Image: "none"}
	for name, source := range map[string]corev1.VolumeSource{
		"secret":    {Secret: &corev1.SecretVolumeSource{SecretName: object.Name}},
		"configmap": {ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: object}},
		"downward":  {DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: field}},
		"projected": {Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: object}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: field}},
		}}},
		"csi": {CSI: &corev1.CSIVolumeSource{
			Driver: driver.Name, VolumeAttributes: map[string]string{"configMapName": object.Name},
		}},
	} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name})
	}
	pod.Spec.Containers = []corev1.Container{container}
	return pod
}
