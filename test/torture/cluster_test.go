// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

const namespace = "default"

// cluster is a real API server, which the driver reaches through a proxy, and two builds of the driver: one with
// failpoints, and the shipped one.
type cluster struct {
	t             testing.TB
	binary, plain string

	controlPlane *controlplane.ControlPlane
	client       kubernetes.Interface
	// access is the driver's --access, and namespace is the namespace of its pods.
	access, namespace, kubeconfig string
	proxy                         *faultproxy.Proxy
}

func startCluster(t testing.TB, args ...string) *cluster {
	t.Helper()
	cp, err := controlplane.Start(context.Background(), controlplane.Options{ExtraArgs: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cp.Stop)
	config := cp.AdminConfig()
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, binary: buildDriver(t), plain: testkit.BuildDriverWithoutRace(t), controlPlane: cp, client: client,
		access: "service-account", namespace: namespace,
	}
	if err := nodeaccess.MakeServiceAccount(context.Background(), client, namespace); err != nil {
		t.Fatal(err)
	}
	return c
}

// behindProxy returns the cluster with a proxy that ends with t.
func (c *cluster) behindProxy(t testing.TB) *cluster {
	t.Helper()
	behind := *c
	behind.t = t
	behind.startProxy(t, c.controlPlane.AdminConfig())
	return &behind
}

// startProxy starts the proxy with the driver's credentials, and writes the kubeconfig that leads to the proxy.
func (c *cluster) startProxy(t testing.TB, credentials *rest.Config) {
	t.Helper()
	c.proxy = faultproxy.New(t, credentials)
	c.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.controlPlane.Kubeconfig(c.kubeconfig, c.proxy.Config()); err != nil {
		t.Fatal(err)
	}
}

// asNode returns the cluster for drivers with --access=node, which have the rights of the shipped manifest.
func (c *cluster) asNode(t testing.TB) *cluster {
	t.Helper()
	ctx, cancel := bounded(patience, "let a driver act as its node")
	defer cancel()
	node := *c
	node.t, node.access, node.namespace = t, "node", "node-access"
	if err := nodeaccess.Install(ctx, c.controlPlane, c.client, node.namespace); err != nil {
		t.Fatal(err)
	}
	config, err := nodeaccess.Config(ctx, c.controlPlane, c.client, nodeaccess.ServiceAccount)
	if err != nil {
		t.Fatal(err)
	}
	node.startProxy(t, config)
	return &node
}

// set gives an object its version n.
func (c *cluster) set(name string, n int) {
	c.t.Helper()
	if err := c.trySet(name, n); err != nil {
		c.t.Fatal(err)
	}
}

// trySet is set for goroutines other than the test's own.
func (c *cluster) trySet(name string, n int) error {
	meta := metav1.ObjectMeta{Name: name}
	if isConfigMap(name) {
		return set(c.client.CoreV1().ConfigMaps(c.namespace), &corev1.ConfigMap{ObjectMeta: meta, Data: data(n)})
	}
	return set(c.client.CoreV1().Secrets(c.namespace), &corev1.Secret{ObjectMeta: meta, StringData: data(n)})
}

func set[T any](objects interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
}, object T) error {
	_, err := objects.Update(context.Background(), object, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = objects.Create(context.Background(), object, metav1.CreateOptions{})
	}
	return err
}

func (c *cluster) delete(name string) {
	c.t.Helper()
	if err := c.client.CoreV1().Secrets(c.namespace).Delete(context.Background(), name,
		metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// cut breaks all connections between the driver and the API server. New ones can be made.
func (c *cluster) cut() {
	c.proxy.Cut()
	c.proxy.Heal()
}

var errTooLong = errors.New("it took too long")

// bounded returns the context of a step of a test. The context's error contains what.
func bounded(bound time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), bound,
		fmt.Errorf("%w: %s, more than %v", errTooLong, what, bound))
}
