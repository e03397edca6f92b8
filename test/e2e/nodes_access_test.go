// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// testNodeTokens tries the token of each node's driver with the objects that the pods of each node declare.
func testNodeTokens(s *spread) {
	since136(s.t, ConstrainedImpersonation)
	n := newNamespace(s.t)
	for _, node := range nodes {
		n.secret("of-"+node.Name(), "key", "v1")
		n.configMap("of-"+node.Name(), "key", "v1")
		pod := parsePod(s.t, describedPod("of-"+node.Name(),
			fmt.Sprintf("projected: {sources: [{secret: {name: of-%[1]s}}, {configMap: {name: of-%[1]s}}]}", node.Name()),
			`uid: "1000"`))
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node.Name()}
		n.createPod(pod)
	}
	for _, node := range nodes {
		n.ready("of-" + node.Name())
	}
	for _, thiefs := range nodes {
		token := driverToken(s.t, thiefs)
		as := thief(s.t, token, thiefs.Name())
		// A pod on each node declares this Secret.
		allowed(s.t, "as "+thiefs.Name(), readings(as, s.name, "s")[0])
		for _, owners := range nodes {
			who := fmt.Sprintf("the token of %s, as %s", thiefs.Name(), thiefs.Name())
			all := append(readings(as, n.name, "of-"+owners.Name()), aboutNode(as, n.name, owners.Name())...)
			if thiefs == owners {
				allowed(s.t, who, all...)
				continue
			}
			refused(s.t, who, all...)
			as := thief(s.t, token, owners.Name())
			who = fmt.Sprintf("the token of %s, as %s", thiefs.Name(), owners.Name())
			refused(s.t, who, append(readings(as, n.name, "of-"+owners.Name()), aboutNode(as, n.name, owners.Name())...)...)
			refused(s.t, who, readings(as, s.name, "s")...)
		}
	}
}

// driverToken returns the token of the driver on a node, which an attacker who controls the node can read.
func driverToken(t *testing.T, node *cluster.Node) string {
	t.Helper()
	token := onNode(t, node,
		"cat /var/lib/kubelet/pods/"+string(driverOn(t, node).UID)+"/volumes/kubernetes.io~projected/*/token")
	if strings.Count(token, ".") != 2 {
		t.Fatalf("that is no token: %d bytes", len(token))
	}
	return token
}

// readings returns the driver's requests for a Secret and a ConfigMap of the same name.
func readings(c kubernetes.Interface, namespace, name string) []attempt {
	one := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	return []attempt{
		{"get Secret " + name, func(ctx context.Context) error {
			_, err := c.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
			return err
		}},
		{"list Secret " + name, func(ctx context.Context) error {
			_, err := c.CoreV1().Secrets(namespace).List(ctx, one)
			return err
		}},
		{"watch Secret " + name, func(ctx context.Context) error {
			w, err := c.CoreV1().Secrets(namespace).Watch(ctx, one)
			if err == nil {
				w.Stop()
			}
			return err
		}},
		{"get ConfigMap " + name, func(ctx context.Context) error {
			_, err := c.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
			return err
		}},
		{"watch ConfigMap " + name, func(ctx context.Context) error {
			w, err := c.CoreV1().ConfigMaps(namespace).Watch(ctx, one)
			if err == nil {
				w.Stop()
			}
			return err
		}},
	}
}

// aboutNode returns the driver's requests for a pod of a node and for the Node.
func aboutNode(c kubernetes.Interface, namespace, node string) []attempt {
	return []attempt{
		{"get pod of-" + node, func(ctx context.Context) error {
			_, err := c.CoreV1().Pods(namespace).Get(ctx, "of-"+node, metav1.GetOptions{})
			return err
		}},
		{"get node " + node, func(ctx context.Context) error {
			_, err := c.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
			return err
		}},
	}
}
