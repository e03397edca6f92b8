// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

// driverName is the driver's name in pods.
const driverName = "fsuser.csi.io"

// apps is a namespace of applications.
const apps = "apps"

// cluster is a real API server, with a client of an administrator.
type cluster struct {
	*controlplane.ControlPlane
	kubernetes.Interface
	objects dynamic.Interface
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	return startClusterWith(t, controlplane.Options{})
}

func startClusterWith(t *testing.T, options controlplane.Options) *cluster {
	t.Helper()
	cp := controlplane.StartForTest(t, options)
	c := &cluster{ControlPlane: cp}
	var err error
	if c.Interface, err = kubernetes.NewForConfig(cp.AdminConfig()); err != nil {
		t.Fatal(err)
	}
	if c.objects, err = dynamic.NewForConfig(cp.AdminConfig()); err != nil {
		t.Fatal(err)
	}
	c.namespace(t, apps)
	return c
}

// namespace creates a namespace with its service account, because the API server refuses pods without it.
func (c *cluster) namespace(t *testing.T, name string) {
	t.Helper()
	if name != metav1.NamespaceDefault {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := c.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.serviceAccount(t, name, "default", nil)
}

func (c *cluster) serviceAccount(t *testing.T, namespace, name string, annotations map[string]string) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
	if _, err := c.CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// install creates the objects of the chart and its namespace, with more values of the chart.
func (c *cluster) install(t *testing.T, access string, values ...string) {
	t.Helper()
	values = append([]string{"access=" + access, "namespace.create=true"}, values...)
	objects := template(t, "--set", strings.Join(values, ","))
	c.create(t, objects)
}

func (c *cluster) create(t *testing.T, o objects) {
	t.Helper()
	for _, one := range o.all {
		resource, _ := meta.UnsafeGuessKindToResource(one.GroupVersionKind())
		var client dynamic.ResourceInterface = c.objects.Resource(resource)
		if ns := one.GetNamespace(); ns != "" {
			client = c.objects.Resource(resource).Namespace(ns)
		}
		// The creation is strict, as in kubectl.
		if _, err := client.Create(t.Context(), one,
			metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			t.Fatalf("create %s %s: %v", one.GetKind(), one.GetName(), err)
		}
	}
}

// waitForPolicy waits until the API server uses the policy declare-references. The API server learns of it with a
// watch.
func (c *cluster) waitForPolicy(t *testing.T) {
	t.Helper()
	pod := podWith("probe", readOnly(driverVolume("a", "secretName", "a"), nil))
	eventually(t, func() error {
		got, err := c.dryRunPod(t, pod)
		if err == nil && got.Spec.Volumes[0].CSI.ReadOnly != nil {
			return nil
		}
		return errors.Join(errors.New("the policy does nothing"), err)
	})
}

func (c *cluster) createPod(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	got, err := c.CoreV1().Pods(apps).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create pod %s: %v", pod.Name, err)
	}
	return got
}

// eventually repeats a check that depends on a watch of the API server.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after 30 s: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// podWith returns a pod with volumes, without the volume of a token.
func podWith(name string, volumes ...corev1.Volume) *corev1.Pod {
	no := false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			Containers:                   []corev1.Container{{Name: "c", Image: "example.com/i"}},
			Volumes:                      volumes,
		},
	}
	for _, v := range volumes {
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts,
			corev1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	return pod
}

// driverVolume returns a volume of the driver with these attributes: key, value, key, value.
func driverVolume(name string, attributes ...string) corev1.Volume {
	yes := true
	v := corev1.Volume{Name: name}
	v.CSI = &corev1.CSIVolumeSource{Driver: driverName, ReadOnly: &yes}
	for i := 0; i < len(attributes); i += 2 {
		if v.CSI.VolumeAttributes == nil {
			v.CSI.VolumeAttributes = map[string]string{}
		}
		v.CSI.VolumeAttributes[attributes[i]] = attributes[i+1]
	}
	return v
}

func secretVolume(name, secret string) corev1.Volume {
	return corev1.Volume{Name: name,
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}}}
}

func configMapVolume(name, configMap string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: configMap},
	}}}
}

func withSecretRef(v corev1.Volume, secret string) corev1.Volume {
	v.CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: secret}
	return v
}

func isForbidden(err error) bool { return apierrors.IsForbidden(err) }
