// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

//go:embed policies.yaml
var policies string

// denied is in the API server's answer when policies.yaml refuses a pod.
const denied = "mounted volumes of Kubernetes itself: "

// testLabel is what the tests' framework labels their namespaces with.
const testLabel = "e2e-run"

const policiesTimeout = time.Minute

// proveStrict returns when the policies hold: in a namespace of the tests a volume is rewritten, and a pod with one that is not is
// refused.
func proveStrict(ctx context.Context, client kubernetes.Interface) (err error) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "policies-hold", Labels: map[string]string{testLabel: "probe"}}}
	err = holds(ctx, func(ctx context.Context) error {
		made, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && made.Annotations[fsUser] != "0" {
			err = errors.New("a namespace of the tests is not annotated")
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = errors.Join(err, client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}))
	}()
	// Before its service account is there, pods are refused for that.
	return holds(ctx, func(ctx context.Context) error { return tryPods(ctx, client, namespace.Name) })
}

// holds tries until there is no error. There is nothing to watch: the API server takes policies up in its own time.
func holds(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, policiesTimeout)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the policies to hold: %w (at last: %w)", context.Cause(ctx), last)
		case <-ticker.C:
		}
	}
}

// tryPods has the API server admit a pod whose volumes are rewritten, and one whose are left alone.
func tryPods(ctx context.Context, client kubernetes.Interface, namespace string) error {
	dryRun := func(annotations map[string]string) (*corev1.Pod, error) {
		return client.CoreV1().Pods(namespace).Create(ctx, probe(annotations), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	}
	made, err := dryRun(nil)
	if err != nil {
		return err
	}
	if ofDriver, inTree := mounted(made.Spec); len(ofDriver) != 4 || len(inTree) != 0 {
		return fmt.Errorf("of four volumes, one of each kind, these are rewritten: %q, and these not: %q", ofDriver, inTree)
	}
	_, err = dryRun(map[string]string{fsUser: "none"})
	if want := denied + "secret, configmap, downward, projected"; err == nil || !strings.Contains(err.Error(), want) {
		return fmt.Errorf("a pod whose volumes are left alone is not refused with %q, but: %v", want, err)
	}
	return nil
}

const fsUser = "fsuser.csi.io/fs-user"

// probe is a pod with a volume of each kind, each mounted by another container.
func probe(annotations map[string]string) *corev1.Pod {
	field := []corev1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}
	object := corev1.LocalObjectReference{Name: "object"}
	container := func(volume string) corev1.Container {
		return corev1.Container{Name: volume, Image: "none", VolumeMounts: []corev1.VolumeMount{{Name: volume, MountPath: "/" + volume}}}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe", Annotations: annotations},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{container("secret"), container("configmap")},
			Containers:     []corev1.Container{container("downward"), container("projected")},
			Volumes: []corev1.Volume{
				{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: object.Name}}},
				{Name: "configmap", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: object}}},
				{Name: "downward", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: field}}},
				{Name: "projected", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{Secret: &corev1.SecretProjection{LocalObjectReference: object}},
					{DownwardAPI: &corev1.DownwardAPIProjection{Items: field}},
				}}}},
			},
		},
	}
}
