// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/access"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

const accessReady = "fsuser_access_ready"

// accessKnown is the longest time to a result, because a refusal is confirmed after ten seconds.
const accessKnown = 60 * time.Second

// withRights starts a cluster in which a pod of the driver has the rights of the shipped manifest.
func withRights(t *testing.T, o controlplane.Options) (*cluster, event.Pod) {
	t.Helper()
	cp := controlplane.StartForTest(t, o)
	c, err := newCluster(cp, testkit.BuildDriver(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := nodeaccess.InstallRights(t.Context(), cp, c); err != nil {
		t.Fatal(err)
	}
	if err := nodeaccess.MakeServiceAccount(t.Context(), c, nodeaccess.System); err != nil {
		t.Fatal(err)
	}
	c.access, c.kubeconfig = "node", filepath.Join(t.TempDir(), "kubeconfig")
	if c.credentials, err = nodeaccess.Config(t.Context(), cp, c, nodeaccess.ServiceAccount); err != nil {
		t.Fatal(err)
	}
	if err := c.Kubeconfig(c.kubeconfig, c.credentials); err != nil {
		t.Fatal(err)
	}
	pod, err := c.CoreV1().Pods(nodeaccess.System).Get(t.Context(), nodeaccess.ServiceAccount, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c, event.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
}

// startAsPod starts a driver that knows its pod from the environment variables of the DaemonSet.
func (c *cluster) startAsPod(t *testing.T, pod event.Pod) *testkit.Driver {
	t.Helper()
	d := c.start(t)
	if _, metrics := d.Get("/metrics"); strings.Contains(metrics, "\n"+accessReady) {
		t.Errorf("a driver that does not know its pod has %s", accessReady)
	}
	d.Stop()
	d.Env = []string{"POD_NAMESPACE=" + pod.Namespace, "POD_NAME=" + pod.Name, "POD_UID=" + pod.UID}
	d.StartAgain()
	return d
}

func awaitAccess(t *testing.T, d *testkit.Driver, want float64) {
	t.Helper()
	var got float64
	var err error
	testkit.Eventually(t, accessKnown, accessReady, func() bool {
		got, err = d.TryMetric(accessReady)
		return err == nil
	})
	if got != want {
		t.Fatalf("%s is %v, want %v", accessReady, got, want)
	}
}

// refusedAccess checks that the driver reports everywhere that its access does not work.
func refusedAccess(t *testing.T, c *cluster, d *testkit.Driver, pod event.Pod, words ...string) {
	t.Helper()
	awaitAccess(t, d, 0)
	e := c.event(t, kubelet.Pod{Namespace: pod.Namespace, Name: pod.Name}, "AccessNotReady")
	if e.Type != "Warning" || string(e.InvolvedObject.UID) != pod.UID {
		t.Errorf("the Event is %+v", e)
	}
	for where, text := range map[string]string{"the Event": e.Message, "the log": d.Log(), "the status": d.Status()} {
		for _, word := range append(words, "access", "--set access=namespaces") {
			if !strings.Contains(text, word) {
				t.Errorf("%s does not say %q:\n%s", where, word, text)
			}
		}
	}
	if status, body := d.Get("/readyz"); status != 200 {
		t.Errorf("/readyz: %d %s; readiness does not depend on the access", status, body)
	}
}

func TestAccessIsReady(t *testing.T) {
	t.Parallel() // A refusal is confirmed after ten seconds.
	c, pod := withRights(t, controlplane.Options{})
	d := c.startAsPod(t, pod)
	awaitAccess(t, d, 1)
	if text := d.Status(); strings.Contains(text, "access") {
		t.Errorf("the status of a driver whose access works is\n%s", text)
	}
	inOneProcess(t, c, pod)

	// inOneProcess has withdrawn the right to act as the node.
	d.Stop()
	d.StartAgain()
	refusedAccess(t, c, d, pod, "the driver may not act as its node", "ClusterRole fsuser-csi-node")

	// With access service-account, the driver reads its Node.
	c.access, c.kubeconfig = "service-account", filepath.Join(t.TempDir(), "kubeconfig")
	credentials, err := c.UserConfig(user)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Kubeconfig(c.kubeconfig, credentials); err != nil {
		t.Fatal(err)
	}
	other := c.start(t)
	awaitAccess(t, other, 1)
	if err := c.RbacV1().ClusterRoleBindings().Delete(t.Context(), "reads-nodes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	other.Stop()
	other.StartAgain()
	awaitAccess(t, other, 0)
	if text := other.Status(); !strings.Contains(text, "ClusterRole must allow it to get nodes") {
		t.Errorf("the status is\n%s", text)
	}
	// From here on there is only an outage.
	if err := c.StopAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// inOneProcess checks the access at short intervals while the driver loses its right, and during an outage.
func inOneProcess(t *testing.T, c *cluster, pod event.Pod) {
	t.Helper()
	api, err := source.NewAPI(c.credentials, source.Options{NodeName: nodeaccess.Node, Impersonate: true})
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	var outages, others atomic.Int64
	checker := access.New(access.Config{
		Interval: 200 * time.Millisecond,
		Read: func(ctx context.Context) error {
			_, err := api.Pod(ctx, pod.Namespace, pod.Name, pod.UID)
			if errors.Is(err, source.ErrUnavailable) {
				outages.Add(1)
			} else {
				others.Add(1)
			}
			return err
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { checker.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	await := func(what string, ready bool) {
		t.Helper()
		testkit.Eventually(t, accessKnown, what, func() bool { s := checker.Status(); return s != nil && s.Ready == ready })
	}
	away := func(ready bool) {
		t.Helper()
		if err := c.StopAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		outages.Store(0)
		testkit.Eventually(t, accessKnown, "three checks in an outage", func() bool { return outages.Load() >= 3 })
		if s := checker.Status(); s.Ready != ready {
			t.Errorf("in an outage the result is %+v; it was %v before", s, ready)
		}
		if err := c.StartAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	await("the access to work", true)
	away(true)
	others.Store(0)
	testkit.Eventually(t, accessKnown, "a check after the outage", func() bool { return others.Load() > 0 })
	await("the access to work after the outage", true)
	if err := c.RbacV1().ClusterRoleBindings().Delete(t.Context(), nodeaccess.Role, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("the access to be refused", false)
	away(false)
}

func TestAccessInAClusterThatLacksWhatItNeeds(t *testing.T) {
	for name, test := range map[string]struct {
		cluster controlplane.Options
		says    string
	}{
		"before 1.36": {
			controlplane.Options{ExtraArgs: []string{"--emulated-version=1.35"}}, "access node needs Kubernetes 1.36",
		},
		"without the Node authorizer": {
			controlplane.Options{AuthorizationMode: "RBAC"}, "access node needs the Node authorizer",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // A refusal is confirmed after ten seconds.
			c, pod := withRights(t, test.cluster)
			refusedAccess(t, c, c.startAsPod(t, pod), pod, test.says)
		})
	}
}
