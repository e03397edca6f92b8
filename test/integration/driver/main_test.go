// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

const (
	namespace = "default"
	user      = "system:serviceaccount:fsuser-csi:fsuser-csi"
)

// cluster is a control plane, an administrator, and the credentials of a driver that may read Secrets and ConfigMaps in
// one namespace.
type cluster struct {
	*controlplane.ControlPlane
	kubernetes.Interface
	binary string
	// access is the driver's --access, and namespace is the namespace that it may read.
	access, namespace string
	credentials       *rest.Config
	kubeconfig        string
}

// shared is the cluster of all tests. TestMain sets it once.
var shared *cluster

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"exchange": exchange})
	// Tests in parallel wait most of the time.
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	testkit.RunInMountNamespace(inCluster{m})
}

type inCluster struct{ m *testing.M }

// Run starts the cluster, runs the tests and stops it.
func (i inCluster) Run() int {
	dir, err := os.MkdirTemp("", "fsuser-driver-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	cp, err := controlplane.Start(context.Background(), controlplane.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	defer cp.Stop()
	binary, remove, err := testkit.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	defer remove()
	if shared, err = newCluster(cp, binary, dir); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	return i.m.Run()
}

// startCluster starts a cluster only for t, for faults that would disturb other tests.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	c, err := newCluster(controlplane.StartForTest(t, controlplane.Options{}), testkit.BuildDriver(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newCluster creates a cluster with its kubeconfig in dir.
func newCluster(cp *controlplane.ControlPlane, binary, dir string) (*cluster, error) {
	client, err := kubernetes.NewForConfig(cp.AdminConfig())
	if err != nil {
		return nil, err
	}
	c := &cluster{
		ControlPlane: cp, Interface: client, binary: binary, access: "service-account", namespace: namespace,
		kubeconfig: filepath.Join(dir, "kubeconfig"),
	}
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "fsuser-csi"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets", "configmaps"}, Verbs: []string{"get", "list", "watch"}},
			{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}},
			{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		},
	}
	if _, err := client.RbacV1().Roles(namespace).Create(context.Background(), role, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	if err := c.bind(); err != nil {
		return nil, err
	}
	if err := c.letReadNodes(); err != nil {
		return nil, err
	}
	if err := nodeaccess.MakeServiceAccount(context.Background(), client, namespace); err != nil {
		return nil, err
	}
	if err := nodeaccess.MakeNode(context.Background(), client, nodeaccess.Node); err != nil {
		return nil, err
	}
	if c.credentials, err = cp.UserConfig(user); err != nil {
		return nil, err
	}
	return c, cp.Kubeconfig(c.kubeconfig, c.credentials)
}

// asNode returns the cluster for drivers with --access=node. They have the rights of the shipped manifest, and a
// namespace where RBAC gives them none.
func (c *cluster) asNode(t *testing.T) *cluster {
	t.Helper()
	node := *c
	node.access, node.namespace, node.kubeconfig = "node", "node-access", filepath.Join(t.TempDir(), "kubeconfig")
	if err := nodeaccess.Install(deadline(t), c.ControlPlane, c, node.namespace); err != nil {
		t.Fatal(err)
	}
	var err error
	if node.credentials, err = nodeaccess.Config(deadline(t), c.ControlPlane, c, nodeaccess.ServiceAccount); err != nil {
		t.Fatal(err)
	}
	if err := c.Kubeconfig(node.kubeconfig, node.credentials); err != nil {
		t.Fatal(err)
	}
	return &node
}

// pod returns a pod with this volume. With access node, the pod exists until t ends, because the driver may read only
// objects that pods on its node declare.
func (c *cluster) pod(t *testing.T, name string, v kubelet.Volume) kubelet.Pod {
	t.Helper()
	if c.access != "node" {
		p := pod(name)
		p.Namespace = c.namespace
		return p
	}
	return c.create(t, nodeaccess.Pod(name, v))
}

// bind gives the driver the right to read the namespace.
func (c *cluster) bind() error {
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "fsuser-csi"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "fsuser-csi"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
	_, err := c.RbacV1().RoleBindings(namespace).Create(context.Background(), binding, metav1.CreateOptions{})
	return err
}

// letReadNodes gives the driver the right to read its node's allocatable.
func (c *cluster) letReadNodes() error {
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "reads-nodes"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get"}}},
	}
	if _, err := c.RbacV1().ClusterRoles().Create(context.Background(), role, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := c.RbacV1().ClusterRoleBindings().Create(context.Background(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{})
	return err
}

// nothingLeft is testkit.NothingLeft for tests that share the cluster. The cluster's client closes an idle connection,
// and would open another one during the test, so nothingLeft opens it first.
func nothingLeft(t *testing.T) {
	t.Helper()
	if _, err := shared.Discovery().ServerVersion(); err != nil {
		t.Fatal(err)
	}
	testkit.NothingLeft(t)
}
