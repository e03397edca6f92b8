// SPDX-License-Identifier: Apache-2.0

//go:build alerts

package alerts

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

const (
	namespace = "default"
	volume    = "keys"
	// The ClusterRoles of the drivers.
	reads, writesEvents = "reads", "writes-events"
)

func TestMain(m *testing.M) { testkit.RunInMountNamespace(m) }

// cluster is a real API server with a real Prometheus.
type cluster struct {
	*controlplane.ControlPlane
	kubernetes.Interface
	*prometheus
	binary string
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{
		ControlPlane: controlplane.StartForTest(t, controlplane.Options{}), prometheus: startPrometheus(t),
		binary: testkit.BuildDriverWithoutRace(t),
	}
	var err error
	if c.Interface, err = kubernetes.NewForConfig(c.AdminConfig()); err != nil {
		t.Fatal(err)
	}
	for name, rule := range map[string]rbacv1.PolicyRule{
		reads: {
			APIGroups: []string{""}, Resources: []string{"secrets", "configmaps", "pods", "nodes"},
			Verbs: []string{"get", "list", "watch"},
		},
		writesEvents: {APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	} {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{rule}}
		if _, err := c.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// node is a driver with a user and a connection of its own, so that its faults do not affect other nodes.
type node struct {
	*testkit.Driver
	*cluster
	name string
	// network is between the driver and the API server.
	network *faultproxy.Network
}

// start starts the driver of a new node, which Prometheus scrapes.
func (c *cluster) start(t *testing.T, name string, args ...string) *node {
	t.Helper()
	n := &node{cluster: c, name: name, network: faultproxy.NewRelay(t, c.APIServerAddress())}
	if err := nodeaccess.MakeNode(t.Context(), c, name); err != nil {
		t.Fatal(err)
	}
	n.allow(t, reads)
	n.allow(t, writesEvents)
	credentials, err := c.UserConfig(name)
	if err != nil {
		t.Fatal(err)
	}
	credentials.Host = "https://" + n.network.Addr().String()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.Kubeconfig(kubeconfig, credentials); err != nil {
		t.Fatal(err)
	}
	n.Driver = testkit.StartDriver(t, c.binary, append([]string{
		"--access=service-account", "--kubeconfig=" + kubeconfig, "--node-name=" + name,
	}, args...)...)
	c.scrape(t, name, n.HTTPAddress())
	return n
}

// allow binds a ClusterRole to the node's driver.
func (n *node) allow(t *testing.T, role string) {
	t.Helper()
	_, err := n.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: n.name + "-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: n.name}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) refuse(t *testing.T, role string) {
	t.Helper()
	if err := n.RbacV1().ClusterRoleBindings().Delete(t.Context(), n.name+"-"+role, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// secret creates a Secret of the node.
func (n *node) secret(t *testing.T, name string, size int) {
	t.Helper()
	_, err := n.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: n.name + "-" + name}, Data: map[string][]byte{"key": make([]byte, size)},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) deleteSecret(t *testing.T, name string) {
	t.Helper()
	if err := n.CoreV1().Secrets(namespace).Delete(t.Context(), n.name+"-"+name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// pod returns a pod of the node whose volume shows the node's Secret with this name.
func (n *node) pod(secret string) (kubelet.Pod, kubelet.Volume) {
	return kubelet.Pod{Namespace: namespace, Name: secret, UID: n.name + "-" + secret},
		kubelet.Volume{Name: volume, Attributes: map[string]string{"uid": "1000", "secretName": n.name + "-" + secret}}
}

// tryPublish publishes the volume of a pod.
func (n *node) tryPublish(ctx context.Context, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pod, v := n.pod(secret)
	_, err := n.Publish(ctx, pod, v)
	return err
}

// publish publishes a volume that must come to be, and unpublishes it when t ends.
func (n *node) publish(t *testing.T, secret string) {
	t.Helper()
	if err := n.tryPublish(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.unpublish(t, secret) })
}

// unpublish unpublishes the volume of a pod. Without a volume it does nothing.
func (n *node) unpublish(t *testing.T, secret string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	pod, _ := n.pod(secret)
	if err := n.Unpublish(ctx, pod, volume); err != nil {
		t.Error(err)
	}
	if err := n.RemovePod(pod); err != nil {
		t.Error(err)
	}
}
