// SPDX-License-Identifier: Apache-2.0

// Package nodeaccess prepares a real API server for a driver with --access=node in tests that act as kubelet: it
// installs the shipped manifest, creates a Node and the token of the driver's pod on that Node, and creates pods on it.
package nodeaccess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const (
	// Node is the name of the node of testkit's drivers.
	Node = "node-1"
	// System is the driver's namespace in the manifest, and ServiceAccount its service account.
	System         = "fsuser-csi"
	ServiceAccount = "fsuser-csi"
	// Role is the manifest's ClusterRole for acting as the node, and EventsRole the one for Events.
	Role       = "fsuser-csi-node"
	EventsRole = "fsuser-csi"

	driverName = "fsuser.csi.io"
)

// Install applies deploy/fsuser-csi.yaml, creates the Node and a namespace for pods, and waits until the policy
// declares the objects of pods in the namespace.
func Install(ctx context.Context, cp *controlplane.ControlPlane, admin kubernetes.Interface, namespace string) error {
	if err := apply(ctx, cp, func(string) bool { return true }); err != nil {
		return err
	}
	if err := MakeNode(ctx, admin, Node); err != nil {
		return err
	}
	if err := MakeNamespace(ctx, admin, namespace); err != nil {
		return err
	}
	return awaitPolicy(ctx, admin, namespace)
}

// InstallRights applies the objects of deploy/fsuser-csi.yaml that give the driver its rights, and creates the Node. It
// also works with an API server on which access node can't work.
func InstallRights(ctx context.Context, cp *controlplane.ControlPlane, admin kubernetes.Interface) error {
	rights := []string{"Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"}
	if err := apply(ctx, cp, func(kind string) bool { return slices.Contains(rights, kind) }); err != nil {
		return err
	}
	return MakeNode(ctx, admin, Node)
}

// Allocatable returns the node's status.allocatable.
func Allocatable() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("3500m"), corev1.ResourceMemory: resource.MustParse("7Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("90Gi"),
	}
}

// MakeNode creates a Node with its allocatable, if the cluster does not have it.
func MakeNode(ctx context.Context, admin kubernetes.Interface, name string) error {
	nodes := admin.CoreV1().Nodes()
	node, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	node.Status.Allocatable = Allocatable()
	node.Status.Capacity = Allocatable()
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

// MakeNamespace creates a namespace with the service account for pods.
func MakeNamespace(ctx context.Context, admin kubernetes.Interface, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := admin.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	return MakeServiceAccount(ctx, admin, name)
}

// MakeServiceAccount creates the service account "default", which the controller manager would create.
func MakeServiceAccount(ctx context.Context, admin kubernetes.Interface, namespace string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	_, err := admin.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	return err
}

// apply creates the objects of deploy/fsuser-csi.yaml that are of a wanted kind.
func apply(ctx context.Context, cp *controlplane.ControlPlane, wanted func(kind string) bool) error {
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	path := filepath.Join(repository, "deploy", "fsuser-csi.yaml")
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
		if len(object.Object) == 0 || !wanted(object.GetKind()) { // The comment at the head is an empty object.
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

// awaitPolicy waits until the API server applies the policy that declares references. It learns of policies with a
// watch.
func awaitPolicy(ctx context.Context, admin kubernetes.Interface, namespace string) error {
	probe := Pod("probe", kubelet.Volume{Name: "a", Attributes: map[string]string{"secretName": "a"}})
	for {
		pod, err := admin.CoreV1().Pods(namespace).Create(ctx, probe,
			metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
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

// Config creates a pod of the driver on the node, as the DaemonSet would, and returns its client configuration, with a
// token of the service account that is bound to the pod. If the service account is not the manifest's, Config creates
// it, without any right.
func Config(
	ctx context.Context, cp *controlplane.ControlPlane, admin kubernetes.Interface, serviceAccount string,
) (*rest.Config, error) {
	if serviceAccount != ServiceAccount {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: serviceAccount}}
		if _, err := admin.CoreV1().ServiceAccounts(System).Create(ctx, account, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	pod, err := CreateDriverPod(ctx, admin, serviceAccount)
	if err != nil {
		return nil, err
	}
	config := cp.AdminConfig()
	config.BearerToken, err = Token(ctx, admin, pod, 24*time.Hour)
	return config, err
}

// CreateDriverPod creates a pod of the driver on the node, as the DaemonSet would.
func CreateDriverPod(ctx context.Context, admin kubernetes.Interface, serviceAccount string) (*corev1.Pod, error) {
	pod := Pod(serviceAccount, kubelet.Volume{})
	pod.Spec.ServiceAccountName, pod.Spec.Volumes, pod.Spec.Containers[0].VolumeMounts = serviceAccount, nil, nil
	return admin.CoreV1().Pods(System).Create(ctx, pod, metav1.CreateOptions{})
}

// Token returns a new token of a pod's service account, bound to the pod, as kubelet requests it.
func Token(ctx context.Context, admin kubernetes.Interface, pod *corev1.Pod, life time.Duration) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: ptr.To(int64(life.Seconds())),
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
		},
	}}
	accounts := admin.CoreV1().ServiceAccounts(pod.Namespace)
	token, err := accounts.CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return token.Status.Token, nil
}

// CreatePod creates a pod. If its volume names an object itself, the policy adds the declaration of the object.
func CreatePod(
	ctx context.Context, admin kubernetes.Interface, namespace string, pod *corev1.Pod,
) (kubelet.Pod, error) {
	created, err := admin.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return kubelet.Pod{}, err
	}
	return kubelet.Pod{Namespace: namespace, Name: created.Name, UID: string(created.UID)}, nil
}

// DeletePod deletes a pod at once, as if kubelet had ended it. The node loses the rights that it had for the pod.
func DeletePod(ctx context.Context, admin kubernetes.Interface, namespace, name string) error {
	now := int64(0)
	return admin.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}

// Pod returns a pod of the node whose container mounts the volume v. No container mounts the others.
func Pod(name string, v kubelet.Volume, others ...corev1.Volume) *corev1.Pod {
	csi := &corev1.CSIVolumeSource{Driver: driverName, ReadOnly: ptr.To(true), VolumeAttributes: v.Attributes}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: Node, AutomountServiceAccountToken: ptr.To(false),
			Containers: []corev1.Container{{
				Name: "c", Image: "none",
				VolumeMounts: []corev1.VolumeMount{{Name: v.Name, MountPath: "/" + v.Name}},
			}},
			Volumes: append(others, corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{CSI: csi}}),
		},
	}
}
