// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
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

// cluster is a real API server, which the driver reaches through a proxy, and the driver with failpoints and as it ships.
type cluster struct {
	t             testing.TB
	binary, plain string

	controlPlane *controlplane.ControlPlane
	client       kubernetes.Interface
	// access is the driver's --access, and namespace where its pods are.
	access, namespace, kubeconfig string
	proxy                         *proxy
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
		access: "service-account", namespace: namespace, proxy: startProxy(t, cp.APIServerAddress()),
	}
	c.writeKubeconfig(t, cp.AdminConfig())
	return c
}

// writeKubeconfig writes one for the driver, which goes through the proxy.
func (c *cluster) writeKubeconfig(t testing.TB, config *rest.Config) {
	t.Helper()
	config.Host = "https://" + c.proxy.listener.Addr().String()
	c.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.controlPlane.Kubeconfig(c.kubeconfig, config); err != nil {
		t.Fatal(err)
	}
}

// asNode is the cluster for drivers with --access=node, which have the rights of the shipped manifest.
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
	node.writeKubeconfig(t, config)
	return &node
}

// counted is the cluster for a driver whose requests are counted.
func (c *cluster) counted(t testing.TB) (*cluster, *faultproxy.Proxy) {
	t.Helper()
	asked := faultproxy.New(t, c.controlPlane.AdminConfig())
	counted := *c
	counted.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.controlPlane.Kubeconfig(counted.kubeconfig, asked.Config()); err != nil {
		t.Fatal(err)
	}
	return &counted, asked
}

// set gives an object its version n.
func (c *cluster) set(name string, n int) {
	c.t.Helper()
	meta := metav1.ObjectMeta{Name: name}
	var err error
	if isConfigMap(name) {
		err = set(c.client.CoreV1().ConfigMaps(c.namespace), &corev1.ConfigMap{ObjectMeta: meta, Data: data(n)})
	} else {
		err = set(c.client.CoreV1().Secrets(c.namespace), &corev1.Secret{ObjectMeta: meta, StringData: data(n)})
	}
	if err != nil {
		c.t.Fatal(err)
	}
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
	if err := c.client.CoreV1().Secrets(c.namespace).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// proxy hands connections on to the API server, and cuts them.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	open     map[net.Conn]bool
	running  sync.WaitGroup
}

func startProxy(t testing.TB, server string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, open: map[net.Conn]bool{}}
	p.running.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return // closed
			}
			p.running.Go(func() { p.hand(from, server) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		p.cut()
		p.running.Wait()
	})
	return p
}

func (p *proxy) hand(from net.Conn, server string) {
	to, err := net.DialTimeout("tcp", server, 10*time.Second)
	if err != nil {
		from.Close()
		return
	}
	p.mu.Lock()
	p.open[from], p.open[to] = true, true
	p.mu.Unlock()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			// Hidden, or Go has splice(2) do it, and keeps the pipes for that until they are collected.
			_, _ = io.Copy(struct{ io.Writer }{pair[0]}, struct{ io.Reader }{pair[1]})
			pair[0].Close()
			pair[1].Close()
		})
	}
	both.Wait()
	p.mu.Lock()
	delete(p.open, from)
	delete(p.open, to)
	p.mu.Unlock()
}

// cut closes all connections. New ones are let through.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.open {
		conn.Close()
	}
}

var errTooLong = errors.New("it took too long")

// bounded is the context of a step of a test, with what it is for.
func bounded(bound time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), bound, fmt.Errorf("%w: %s, more than %v", errTooLong, what, bound))
}
