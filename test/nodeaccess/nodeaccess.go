// SPDX-License-Identifier: Apache-2.0

// Package nodeaccess gives tests that play kubelet what a driver with --access=node needs of a real API server: all that the shipped manifest
// installs, a Node, the token that the driver's pod on it has, and pods on it, whose objects the policy of the manifest declares.
package nodeaccess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const (
	// Node is the node's name, as testkit's drivers have it.
	Node = "node-1"
	// System is the namespace that the manifest installs the driver in, and ServiceAccount the driver's in it.
	System         = "fsuser-csi"
	ServiceAccount = "fsuser-csi"
	// Role is the manifest's ClusterRole to act as the node, and EventsRole that of the driver itself, to write Events.
	Role       = "fsuser-csi-node"
	EventsRole = "fsuser-csi"

	driverName = "fsuser.csi.io"
)

// Install applies deploy/fsuser-csi.yaml, makes the Node and a namespace for pods, and waits until pods in it are declared.
func Install(ctx context.Context, cp *controlplane.ControlPlane, admin kubernetes.Interface, namespace string) error {
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	if err := apply(ctx, cp, filepath.Join(repository, "deploy", "fsuser-csi.yaml")); err != nil {
		return err
	}
	if _, err := admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: Node}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := MakeNamespace(ctx, admin, namespace); err != nil {
		return err
	}
	return awaitPolicy(ctx, admin, namespace)
}

// MakeNamespace makes a namespace, with the service account without which pods are refused.
func MakeNamespace(ctx context.Context, admin kubernetes.Interface, name string) error {
	if _, err := admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	_, err := admin.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{})
	return err
}

func apply(ctx context.Context, cp *controlplane.ControlPlane, path string) error {
	client, err := dynamic.NewForConfig(cp.AdminConfig())
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for decoder := yaml.NewYAMLOrJSONDecoder(f, 1<<16); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if len(object.Object) == 0 { // the comment at its head
			continue
		}
		resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		var objects dynamic.ResourceInterface = client.Resource(resource)
		if namespace := object.GetNamespace(); namespace != "" {
			objects = client.Resource(resource).Namespace(namespace)
		}
		if _, err := objects.Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create %s %s of %s: %w", object.GetKind(), object.GetName(), path, err)
		}
	}
}

// awaitPolicy waits until the API server has taken up the policy that declares references, which it learns of by a watch.
func awaitPolicy(ctx context.Context, admin kubernetes.Interface, namespace string) error {
	probe := podOf("probe", kubelet.Volume{Name: "a", Attributes: map[string]string{"secretName": "a"}})
	for {
		pod, err := admin.CoreV1().Pods(namespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && len(pod.Spec.Volumes) > len(probe.Spec.Volumes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the policy that declares references: %w (%w)", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Config makes a pod on the node, as the DaemonSet would, and returns the client configuration that it has: with a token of the service account, bound
// to the pod. One that is not the manifest's is made, too; it has no rights.
func Config(ctx context.Context, cp *controlplane.ControlPlane, admin kubernetes.Interface, serviceAccount string) (*rest.Config, error) {
	accounts := admin.CoreV1().ServiceAccounts(System)
	if serviceAccount != ServiceAccount {
		if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: serviceAccount}}, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	driver := podOf(serviceAccount, kubelet.Volume{})
	driver.Spec.ServiceAccountName, driver.Spec.Volumes = serviceAccount, nil
	pod, err := admin.CoreV1().Pods(System).Create(ctx, driver, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	day := int64(24 * 60 * 60)
	token, err := accounts.CreateToken(ctx, serviceAccount, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &day,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	config := cp.AdminConfig()
	config.BearerToken = token.Status.Token
	return config, nil
}

// CreatePod makes a pod with a volume on the node. The policy adds what declares the volume's objects.
func CreatePod(ctx context.Context, admin kubernetes.Interface, namespace, name string, v kubelet.Volume) (kubelet.Pod, error) {
	pod, err := admin.CoreV1().Pods(namespace).Create(ctx, podOf(name, v), metav1.CreateOptions{})
	if err != nil {
		return kubelet.Pod{}, err
	}
	return kubelet.Pod{Namespace: namespace, Name: name, UID: string(pod.UID)}, nil
}

// DeletePod at once, as if kubelet had ended it. The rights that the node had for it go with it.
func DeletePod(ctx context.Context, admin kubernetes.Interface, namespace, name string) error {
	now := int64(0)
	return admin.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}

func podOf(name string, v kubelet.Volume) *corev1.Pod {
	noToken, readOnly := false, true
	csi := &corev1.CSIVolumeSource{Driver: driverName, ReadOnly: &readOnly, VolumeAttributes: v.Attributes}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: Node, AutomountServiceAccountToken: &noToken,
			Containers: []corev1.Container{{Name: "c", Image: "none"}},
			Volumes:    []corev1.Volume{{Name: v.Name, VolumeSource: corev1.VolumeSource{CSI: csi}}},
		},
	}
}
