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

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const namespace = "default"

// cluster is a real API server, which the driver reaches through a proxy, and the driver with failpoints and as it ships.
type cluster struct {
	t             testing.TB
	binary, plain string

	client     kubernetes.Interface
	kubeconfig string
	proxy      *proxy
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
	c := &cluster{t: t, binary: buildDriver(t), plain: testkit.BuildDriverWithoutRace(t), client: client, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"), proxy: startProxy(t, cp.APIServerAddress())}
	config = cp.AdminConfig()
	config.Host = "https://" + c.proxy.listener.Addr().String()
	if err := cp.Kubeconfig(c.kubeconfig, config); err != nil {
		t.Fatal(err)
	}
	return c
}

// set gives a Secret its version n.
func (c *cluster) set(name string, n int) {
	c.t.Helper()
	secrets := c.client.CoreV1().Secrets(namespace)
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data(n)}
	_, err := secrets.Update(context.Background(), s, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(context.Background(), s, metav1.CreateOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) delete(name string) {
	c.t.Helper()
	if err := c.client.CoreV1().Secrets(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
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
