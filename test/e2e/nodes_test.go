// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// testNodes runs the tests that require several nodes of the tests' own cluster.
func testNodes(t *testing.T) {
	s := newSpread(t)
	for _, test := range []struct {
		name string
		run  func(*spread)
	}{
		{"each node's token reads what its pods declare", testNodeTokens},
		{"a rolling update", testRollingUpdate},
		{"a node is drained", testDrain},
		{"a node is cut off", testCutOff},
		{"a node reboots", testReboot},
		{"a node is lost and returns", testLostNode},
		{"two API servers disagree", testReplica},
		{"a new node waits for the driver", testStartupTaint},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t // The pods report failures to this subtest.
			test.run(s)
		})
	}
}

// testRollingUpdate updates the driver. Each node is without the driver for a moment.
func testRollingUpdate(s *spread) {
	rolled := make(chan error, 1)
	if _, err := kubectl(suite, "", "-n", driverNamespace, "rollout", "restart", "daemonset/fsuser-csi"); err != nil {
		s.t.Fatal(err)
	}
	go func() { rolled <- rolledOut(suite) }()
	for changes := 1; ; changes++ {
		s.change()
		s.current()
		select {
		case err := <-rolled:
			if err != nil {
				s.t.Fatal(err)
			}
			s.untouched()
			s.t.Logf("all pods saw each of %d changes", changes)
			return
		default:
		}
	}
}

// testDrain drains a node: the pod moves to another node, and back.
func testDrain(s *spread) {
	m, old := newMover(s.t)
	node := nodes[len(nodes)-1]
	// The other tests' pods on the node belong to DaemonSets.
	if _, err := kubectl(suite, "", "drain", node.Name(), "--ignore-daemonsets", "--timeout=60s"); err != nil {
		s.t.Fatal(err)
	}
	moved := m.next(old)
	if moved.Spec.NodeName == node.Name() {
		s.t.Errorf("the pod is on %s, which is drained", node.Name())
	}
	m.waitSaid(moved.Name, "/v/key v1")
	m.gone(old.Name)
	noVolumesOf(s.t, node, string(old.UID))
	s.change()
	s.current() // also on the drained node
	s.untouched()

	if _, err := kubectl(suite, "", "uncordon", node.Name()); err != nil {
		s.t.Fatal(err)
	}
	m.changeSecret("s", "key", "v2")
	if err := client.CoreV1().Pods(m.name).Delete(suite, moved.Name, metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
	back := m.next(old, moved)
	if back.Spec.NodeName != node.Name() {
		s.t.Errorf("the pod is on %s, want %s", back.Spec.NodeName, node.Name())
	}
	m.waitSaid(back.Name, "/v/key v2")
	m.gone(moved.Name)
	for _, other := range nodes {
		if other.Name() == moved.Spec.NodeName {
			noVolumesOf(s.t, other, string(moved.UID))
		}
	}
}

// testCutOff cuts off a node: it keeps its files, and the other nodes do not wait for it.
func testCutOff(s *spread) {
	node := nodes[1]
	pod := s.pods[node.Name()]
	before := s.content()
	if err := node.CutOff(suite); err != nil {
		s.t.Fatal(err)
	}
	connected := false
	connect := func() {
		if !connected {
			connected = true
			if err := node.Connect(suite); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	defer connect()
	if got := onNode(s.t, node,
		"kubectl get --raw /version --request-timeout=2s >/dev/null 2>&1 || echo cut off"); got != "cut off" {
		s.t.Fatalf("the node reaches the API server: %q", got)
	}
	others := slices.DeleteFunc(nodeNames(), func(name string) bool { return name == node.Name() })
	for range 2 {
		s.change()
		s.current(others...)
	}
	volume := "/var/lib/kubelet/pods/" + pod.uid + "/volumes/kubernetes.io~csi/v/mount/"
	if got, want := onNode(s.t, node, "cd "+volume+" && cat key && echo && cat other"), before+"\n"+before; got != want {
		s.t.Errorf("the files on the node that is cut off are %q, want %q", got, want)
	}
	connect()
	begin := time.Now()
	s.current(node.Name())
	s.t.Logf("the node was current %.1f s after it was connected", time.Since(begin).Seconds())
	s.untouched()
}

func nodeNames() (names []string) {
	for _, node := range nodes {
		names = append(names, node.Name())
	}
	return names
}

// testReboot reboots a node before Kubernetes regards it as lost. Everything in memory is gone: /run with the driver's
// records, the mounts, and the containers.
func testReboot(s *spread) {
	node := nodes[1]
	if err := node.PowerOff(suite); err != nil {
		s.t.Fatal(err)
	}
	s.change()
	begin := time.Now()
	if err := node.Boot(suite); err != nil {
		s.t.Fatal(err)
	}
	s.restarted(node.Name())
	s.t.Logf("the pod ran again, with the newest content, %.1f s after the start of the boot", time.Since(begin).Seconds())
	s.change()
	s.current()
}

// restarted waits until the pod of a node runs in another container, with the newest content. All other pods stay.
func (s *spread) restarted(node string) {
	s.t.Helper()
	old := s.pods[node]
	until(s.t, "the container of "+old.name+" to run again", "pods", s.name, old.name, &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p := e.Object.(*corev1.Pod)
			return isReady(p) && p.Status.ContainerStatuses[0].ContainerID != old.container, nil
		})
	s.untouched(slices.DeleteFunc(nodeNames(), func(name string) bool { return name == node })...)
	if s.pods[node].uid != old.uid {
		s.t.Errorf("on %s runs pod %s, want %s", node, s.pods[node].uid, old.uid)
	}
	s.current()
}

// testLostNode loses a node: the pod is replaced on another node. The leftovers of the old pod are removed when the
// node returns.
func testLostNode(s *spread) {
	m, lost := newMover(s.t)
	node := nodes[len(nodes)-1]
	if err := node.PowerOff(suite); err != nil {
		s.t.Fatal(err)
	}
	begin := time.Now()
	m.changeSecret("s", "key", "v2")
	s.change()
	s.current(slices.DeleteFunc(nodeNames(), func(name string) bool { return name == node.Name() })...)
	replacement := m.next(lost)
	if replacement.Spec.NodeName == node.Name() {
		s.t.Errorf("the pod is on %s, which is lost", node.Name())
	}
	m.waitSaid(replacement.Name, "/v/key v2")
	s.t.Logf("the pod was replaced %.1f s after the node was lost", time.Since(begin).Seconds())

	begin = time.Now()
	if err := node.Boot(suite); err != nil {
		s.t.Fatal(err)
	}
	m.gone(lost.Name)
	noVolumesOf(s.t, node, string(lost.UID))
	s.t.Logf("the old pod and its volume were gone %.1f s after the start of the boot", time.Since(begin).Seconds())
	s.restarted(node.Name())
	m.expect(replacement.Name, "", "cat /v/key", "v2")
}
