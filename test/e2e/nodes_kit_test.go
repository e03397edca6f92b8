// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"bufio"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// spread is a DaemonSet with a pod on each node. All pods watch one Secret, whose two keys always have the same value.
type spread struct {
	namespace
	version int
	pods    map[string]spreadPod // by node
}

type spreadPod struct{ name, uid, container string }

const spreadManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: watch}
spec:
  selector: {matchLabels: {app: watch}}
  template:
    metadata: {labels: {app: watch}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000}
      containers:
      - name: main
        image: %s
        command: [/pod, watch, /v/key]
        volumeMounts: [{name: v, mountPath: /v}]
      volumes: [{name: v, csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s}}}]`

func newSpread(t *testing.T) *spread {
	t.Helper()
	s := &spread{namespace: newNamespace(t)}
	s.secret("s", "key", "v0", "other", "v0")
	if _, err := kubectl(suite, fmt.Sprintf(spreadManifest, podImage), "-n", s.name, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := kubectl(suite, "", "-n", s.name, "rollout", "status", "daemonset/watch", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	s.note()
	return s
}

// note records the pods and their containers.
func (s *spread) note() {
	s.t.Helper()
	pods, err := client.CoreV1().Pods(s.name).List(suite, metav1.ListOptions{LabelSelector: "app=watch"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.pods = map[string]spreadPod{}
	for _, p := range pods.Items {
		s.pods[p.Spec.NodeName] = spreadPod{p.Name, string(p.UID), p.Status.ContainerStatuses[0].ContainerID}
	}
	if len(s.pods) != len(nodes) || len(pods.Items) != len(nodes) {
		s.t.Fatalf("%d pods on %d nodes, want one on each of %d", len(pods.Items), len(s.pods), len(nodes))
	}
}

// change replaces the content of the Secret.
func (s *spread) change() {
	s.t.Helper()
	s.version++
	s.changeSecret("s", "key", s.content(), "other", s.content())
}

// content returns the newest value of both keys.
func (s *spread) content() string { return fmt.Sprintf("v%d", s.version) }

// current waits until the pods on these nodes, or on all nodes, have seen the newest content. No pod may have seen an
// older version after a newer one.
func (s *spread) current(on ...string) {
	s.t.Helper()
	for node, pod := range s.pods {
		if len(on) > 0 && !slices.Contains(on, node) {
			continue
		}
		s.waitSaid(pod.name, "/v/key "+s.content())
		s.expect(pod.name, "", show("/v/key")+"; "+show("/v/other"),
			fmt.Sprintf("1000:0 400\n%[1]s\n1000:0 400\n%[1]s", s.content()))
		s.forward(pod.name)
	}
}

// forward checks that the content that a container has seen never became older.
func (s *spread) forward(pod string) {
	s.t.Helper()
	stream, err := client.CoreV1().Pods(s.name).GetLogs(pod, &corev1.PodLogOptions{}).Stream(suite)
	if err != nil {
		s.t.Fatal(err)
	}
	defer stream.Close()
	last := -1
	for lines := bufio.NewScanner(stream); lines.Scan(); {
		var version int
		if _, err := fmt.Sscanf(lines.Text(), "/v/key v%d", &version); err != nil || version < last {
			s.t.Errorf("%s saw %q after version %d", pod, lines.Text(), last)
		}
		last = version
	}
	if last != s.version {
		s.t.Errorf("the last version that %s saw is %d, want %d", pod, last, s.version)
	}
}

// untouched checks that the containers on these nodes, or on all nodes, are the recorded ones.
func (s *spread) untouched(on ...string) {
	s.t.Helper()
	before := s.pods
	s.note()
	for node, pod := range before {
		if (len(on) == 0 || slices.Contains(on, node)) && s.pods[node] != pod {
			s.t.Errorf("on %s runs %+v, want %+v", node, s.pods[node], pod)
		}
	}
}

// onNode returns the output of a script on a node, with kubelet's mounts.
func onNode(t *testing.T, node *cluster.Node, script string) string {
	t.Helper()
	ctx, cancel := within(t, soon, "a script on "+node.Name())
	defer cancel()
	out, err := node.Run(ctx, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// volumesOf returns a script that prints the traces of a pod's volumes on a node.
func volumesOf(uid string) string {
	return "grep " + uid + " /proc/self/mountinfo; find /var/lib/kubelet/pods/" + uid +
		" -path '*kubernetes.io~csi*' 2>&-; " +
		"grep -rl " + uid + " /run/fsuser.csi.io 2>&-; true"
}

// noVolumesOf waits until a node has no trace of a pod's volumes.
func noVolumesOf(t *testing.T, node *cluster.Node, uid string) {
	t.Helper()
	left := onNode(t, node,
		"for i in $(seq 600); do left=$("+volumesOf(uid)+`); test -z "$left" && break; sleep 0.1; done; echo "$left"`)
	if left != "" {
		t.Errorf("a minute later %s still has of pod %s:\n%s", node.Name(), uid, left)
	}
}

// driverOn waits for a ready pod of the driver on a node. Its uid is not in the list.
func driverOn(t *testing.T, node *cluster.Node, not ...string) *corev1.Pod {
	t.Helper()
	return until(t, "the driver's pod on "+node.Name(), "pods", driverNamespace, "", &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p, ok := e.Object.(*corev1.Pod)
			return ok && e.Type != watch.Deleted && p.Spec.NodeName == node.Name() && isReady(p) && p.DeletionTimestamp == nil &&
				!slices.Contains(not, string(p.UID)), nil
		})
}

// mover is a Deployment with one pod, which prefers the last node and leaves a lost node at once.
type mover struct{ namespace }

const moverManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: mover}
spec:
  replicas: 1
  selector: {matchLabels: {app: mover}}
  template:
    metadata: {labels: {app: mover}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000}
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}
      containers:
      - name: main
        image: %s
        command: [/pod, watch, /v/key]
        volumeMounts: [{name: v, mountPath: /v}]
      volumes: [{name: v, csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s}}}]`

func newMover(t *testing.T) (mover, *corev1.Pod) {
	t.Helper()
	m := mover{newNamespace(t)}
	m.secret("s", "key", "v1")
	last := nodes[len(nodes)-1].Name()
	if _, err := kubectl(suite, fmt.Sprintf(moverManifest, last, podImage), "-n", m.name, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	pod := m.next()
	if pod.Spec.NodeName != last {
		t.Fatalf("the pod runs on %s, want %s", pod.Spec.NodeName, last)
	}
	m.waitSaid(pod.Name, "/v/key v1")
	return m, pod
}

// next waits for a ready pod of the Deployment other than these pods.
func (m mover) next(not ...*corev1.Pod) *corev1.Pod {
	m.t.Helper()
	return until(m.t, "another pod of the Deployment", "pods", m.name, "", &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p, ok := e.Object.(*corev1.Pod)
			return ok && e.Type != watch.Deleted && isReady(p) && p.DeletionTimestamp == nil &&
				!slices.ContainsFunc(not, func(old *corev1.Pod) bool { return old.UID == p.UID }), nil
		})
}
