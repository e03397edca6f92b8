// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
)

const (
	startupTaint         = "fsuser.csi.io/agent-not-ready"
	startupTaintManifest = "../../deploy/startup-taint.yaml"
	kubectlImage         = "fsuser.test/kubectl:1"
)

var registryImage = regexp.MustCompile(`image: registry\.k8s\.io/(kubectl|pause):\S+`)

// testStartupTaint follows docs/operations.md: a new node accepts no pods until the driver has registered there.
func testStartupTaint(s *spread) {
	node := nodes[len(nodes)-1]
	scaleDriver(s.t, false) // so that the driver does not register yet
	registerDriver := sync.OnceFunc(func() { scaleDriver(s.t, true) })
	defer registerDriver()
	installStartupTaint(s.t)
	addNewNode(s.t, node)

	n := newNamespace(s.t)
	n.secret("s", "key", "v1")
	pod := parsePod(s.t, onePod("waits", `secretName: s`))
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node.Name()}
	n.createPod(pod)
	until(s.t, "the pod to be kept from the node", "pods", n.name, "waits", &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			for _, c := range e.Object.(*corev1.Pod).Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable &&
					strings.Contains(c.Message, "untolerated taint") {
					s.t.Logf("the pod is told: %s", c.Message)
					return true, nil
				}
			}
			return false, nil
		})
	onlyItsTaint(s.t, node)

	begin := time.Now()
	registerDriver()
	n.ready("waits")
	s.t.Logf("the pod was ready %.1f s after the driver was asked for", time.Since(begin).Seconds())
	n.expect("waits", "", show("/v/key"), "1000:0 400\nv1")
	now, err := client.CoreV1().Nodes().Get(suite, node.Name(), metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if slices.ContainsFunc(now.Spec.Taints, func(t corev1.Taint) bool { return t.Key == startupTaint }) {
		s.t.Errorf("the node has the taints %v", now.Spec.Taints)
	}
	if _, err := kubectl(suite, "", "-n", driverNamespace, "rollout", "status", "daemonset/startup-taint",
		"--timeout=60s"); err != nil {
		s.t.Error(err) // also on the other nodes, which never had the taint
	}
}

// installStartupTaint applies the shipped manifest, with an image of the cluster's own kubectl.
func installStartupTaint(t *testing.T) {
	t.Helper()
	own, err := cluster.Open(clusterDir)
	if err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(t.TempDir(), "kubectl.tar")
	if err := images.Build(tar, images.Image{
		Name:       kubectlImage,
		Files:      []images.File{{Path: "/bin/kubectl", Source: filepath.Join(own.Bin(), "kubectl"), Mode: 0o755}},
		Entrypoint: []string{"/bin/kubectl"},
	}); err != nil {
		t.Fatal(err)
	}
	if err := own.Import(suite, tar); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(startupTaintManifest)
	if err != nil {
		t.Fatal(err)
	}
	manifest := registryImage.ReplaceAllStringFunc(string(content), func(image string) string {
		if strings.Contains(image, "/pause:") {
			return "image: " + images.PauseName
		}
		return "image: " + kubectlImage
	})
	if _, err := kubectl(suite, manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := kubectl(context.Background(), manifest, "delete", "--ignore-not-found", "--timeout=60s", "-f",
			"-"); err != nil {
			t.Error(err)
		}
	})
}

// addNewNode replaces a node with a new one, which has the startup taint.
func addNewNode(t *testing.T, node *cluster.Node) {
	t.Helper()
	if err := node.PowerOff(suite); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().Nodes().Delete(suite, node.Name(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// The garbage collector deletes the CSINode, which still lists the driver.
	if _, err := kubectl(suite, "", "wait", "--for=delete", "csinode/"+node.Name(), "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	if err := node.Boot(suite, "--register-with-taints="+startupTaint+"=:NoSchedule"); err != nil {
		t.Fatal(err)
	}
}

// onlyItsTaint tries the actions of an attacker with the pod's token on a node. The registration of the driver shows
// that the token can remove the taint.
func onlyItsTaint(t *testing.T, node *cluster.Node) {
	t.Helper()
	pod := until(t, "the pod that removes the taint", "pods", driverNamespace, "", &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p, ok := e.Object.(*corev1.Pod)
			return ok && e.Type != watch.Deleted && p.DeletionTimestamp == nil && p.Spec.NodeName == node.Name() &&
				p.Spec.ServiceAccountName == "startup-taint", nil
		})
	token, err := client.CoreV1().ServiceAccounts(driverNamespace).CreateToken(suite, "startup-taint",
		&authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{
				BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
			},
		}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := kubernetes.NewForConfig(clientConfig(token.Status.Token, ""))
	if err != nil {
		t.Fatal(err)
	}
	own, dry := node.Name(), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
	for _, attempt := range []struct{ what, node, patch string }{
		{"change another node", nodes[0].Name(),
			`{"spec":{"taints":[{"key":"` + startupTaint + `","effect":"NoSchedule"}]}}`},
		{"add another taint", own,
			`{"spec":{"taints":[{"key":"` + startupTaint + `","effect":"NoSchedule"},{"key":"other","effect":"NoExecute"}]}}`},
		{"cordon the node", own, `{"spec":{"unschedulable":true}}`},
		{"label the node", own, `{"metadata":{"labels":{"a":"b"}}}`},
		{"annotate the node", own, `{"metadata":{"annotations":{"a":"b"}}}`},
	} {
		_, err := c.CoreV1().Nodes().Patch(suite, attempt.node, types.MergePatchType, []byte(attempt.patch), dry)
		if err == nil || !strings.Contains(err.Error(), "startup-taint.fsuser.csi.io") {
			t.Errorf("%s: error %v, want that of the policy", attempt.what, err)
		}
	}
}
