// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// fleet is many pods that run during an absence of the driver or kubelet. Each Secret has three pods.
type fleet struct {
	namespace
	node    nodeShell
	version int
	// containers has the initial container id of each pod.
	containers map[string]string
}

const (
	fleetPods    = 30
	fleetSecrets = 10
)

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{namespace: newNamespace(t), node: newNodeShell(t), version: 1, containers: map[string]string{}}
	for i := range fleetSecrets {
		f.secret(fmt.Sprintf("s%d", i), "key", "v1")
	}
	for i := range fleetPods {
		f.create(watchingPod(fmt.Sprintf("pod-%d", i), fmt.Sprintf(`secretName: s%d`, i%fleetSecrets)))
	}
	for i := range fleetPods {
		p := f.ready(fmt.Sprintf("pod-%d", i))
		f.containers[p.Name] = p.Status.ContainerStatuses[0].ContainerID
	}
	return f
}

// change gives all Secrets new content.
func (f *fleet) change() {
	f.t.Helper()
	f.version++
	for i := range fleetSecrets {
		f.changeSecret(fmt.Sprintf("s%d", i), "key", fmt.Sprintf("v%d", f.version))
	}
}

// current waits until all containers see the newest content, and returns the time until the last one did.
func (f *fleet) current() time.Duration {
	f.t.Helper()
	begin := time.Now()
	var waiting sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	for pod := range f.containers {
		waiting.Go(func() {
			if _, err := f.said(soon, pod, fmt.Sprintf("/v/key v%d", f.version)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
		})
	}
	waiting.Wait()
	if err := errors.Join(failed...); err != nil {
		f.t.Fatal(err)
	}
	return time.Since(begin)
}

// untouched checks that every pod still runs its initial container.
func (f *fleet) untouched() {
	f.t.Helper()
	pods, err := client.CoreV1().Pods(f.name).List(suite, metav1.ListOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range pods.Items {
		id, ours := f.containers[p.Name]
		if !ours {
			continue
		}
		seen[p.Name] = true
		status := p.Status.ContainerStatuses[0]
		if status.RestartCount != 0 || status.ContainerID != id || status.State.Running == nil {
			f.t.Errorf("container of %s is %s, restarted %d times, state %v; it was %s", p.Name, status.ContainerID,
				status.RestartCount, status.State, id)
		}
	}
	if len(seen) != len(f.containers) {
		f.t.Errorf("%d of %d pods are there", len(seen), len(f.containers))
	}
}

// remove deletes one pod of the fleet and waits until it is gone.
func (f *fleet) remove(pod string) {
	f.t.Helper()
	delete(f.containers, pod)
	f.delete(pod)
}

func (f *fleet) any() string {
	for pod := range f.containers {
		return pod
	}
	f.t.Fatal("no pod is left")
	return ""
}

func testDriverAway(t *testing.T) {
	begin := time.Now()
	f := newFleet(t)
	t.Logf("%d pods ready after %.1f s", fleetPods, time.Since(begin).Seconds())
	f.change()
	t.Logf("all %d pods see a change after %d ms", len(f.containers), f.current().Milliseconds())
	steps := []struct {
		name string
		run  func(*fleet)
	}{
		{"its pod is deleted", (*fleet).deleteDriver},
		{"rollout restart", (*fleet).restartDriver},
		{"SIGKILL", (*fleet).killDriver},
		{"it is gone for a while", (*fleet).withoutDriver},
		{"kubelet is killed", (*fleet).killKubelet},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			// The fleet reports failures to this subtest.
			f.t, f.node.t = t, t
			f.remove(f.any())
			step.run(f)
			// Every pod shows the changes during the absence and afterwards.
			t.Logf("all %d pods are current %d ms later", len(f.containers), f.current().Milliseconds())
			f.change()
			t.Logf("all %d pods see another change after %d ms", len(f.containers), f.current().Milliseconds())
			f.untouched()
			f.remove(f.any())
		})
	}
	t.Run("the rest is deleted at once", func(t *testing.T) {
		begin := time.Now()
		f.t = t
		if err := client.CoreV1().Pods(f.name).DeleteCollection(suite, metav1.DeleteOptions{},
			metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		f.gone("")
		t.Logf("gone after %.1f s", time.Since(begin).Seconds())
	})
}

func (f *fleet) deleteDriver() {
	old := driverPod(f.t)
	if err := client.CoreV1().Pods(driverNamespace).Delete(suite, old.Name, metav1.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
	f.change()
	driverPod(f.t, string(old.UID))
}

func (f *fleet) restartDriver() {
	if _, err := kubectl(suite, "", "-n", driverNamespace, "rollout", "restart", "daemonset/fsuser-csi"); err != nil {
		f.t.Fatal(err)
	}
	f.change()
	if err := rolledOut(suite); err != nil {
		f.t.Fatal(err)
	}
}

// killDriver kills the driver's process. Kubelet restarts the container in the same pod.
func (f *fleet) killDriver() {
	before := driverPod(f.t)
	id := before.Status.ContainerStatuses[0].ContainerID
	f.node.do("kill -9 " + driverPID())
	f.change()
	until(f.t, "the driver to run again", "pods", driverNamespace, before.Name, &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p := e.Object.(*corev1.Pod)
			return isReady(p) && p.Status.ContainerStatuses[0].ContainerID != id, nil
		})
}

// scaleDriver removes the driver from all nodes, or installs it again.
func scaleDriver(t *testing.T, present bool) {
	t.Helper()
	value := `"nowhere"`
	if present {
		value = "null"
	}
	patch := `{"spec":{"template":{"spec":{"nodeSelector":{"fsuser-csi-e2e":` + value + `}}}}}`
	if _, err := client.AppsV1().DaemonSets(driverNamespace).Patch(suite, "fsuser-csi", types.StrategicMergePatchType,
		[]byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if present {
		driverPod(t)
		return
	}
	driver := namespace{driverNamespace, t}
	driver.gone("")
}

// withoutDriver checks that a pod that is deleted or created without the driver waits for the driver.
func (f *fleet) withoutDriver() {
	scaleDriver(f.t, false)
	back := sync.OnceFunc(func() { scaleDriver(f.t, true) })
	defer back()
	f.change()
	deleted := f.any()
	delete(f.containers, deleted)
	if err := client.CoreV1().Pods(f.name).Delete(suite, deleted, metav1.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
	f.create(watchingPod("meanwhile", `secretName: s0`))
	until(f.t, "the deleted pod's container to end", "pods", f.name, deleted, &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			if e.Type == watch.Deleted {
				return false, errors.New("it is gone although nobody can have unmounted its volume")
			}
			p := e.Object.(*corev1.Pod)
			return p.Status.ContainerStatuses[0].State.Terminated != nil, nil
		})
	f.event("meanwhile", "FailedMount", driverName, "not found in the list of registered CSI drivers")
	if err := f.goneWithin(2*time.Second, deleted); err == nil {
		f.t.Errorf("%s is gone although nobody can have unmounted its volume", deleted)
	}
	f.untouched()
	begin := time.Now()
	back()
	f.gone(deleted)
	f.t.Logf("a pod that was deleted meanwhile is gone %.1f s after the driver was asked for", time.Since(begin).Seconds())
	f.waitSaid("meanwhile", fmt.Sprintf("/v/key v%d", f.version))
	f.t.Logf("a pod that was made meanwhile runs after %.1f s", time.Since(begin).Seconds())
}

func (f *fleet) killKubelet() {
	if clusterDir == "" {
		f.t.Skip("kubelet is killed only in a cluster that is the tests' own")
	}
	c, err := cluster.Open(clusterDir)
	if err != nil {
		f.t.Fatal(err)
	}
	before := f.node.do("pidof kubelet")
	if err := c.Kill(suite, "kubelet"); err != nil {
		f.t.Fatal(err)
	}
	f.change()
	deleted := f.any() // while kubelet is stopped
	delete(f.containers, deleted)
	if err := client.CoreV1().Pods(f.name).Delete(suite, deleted, metav1.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
	f.gone(deleted)
	f.run(watchingPod("after-kubelet", `secretName: s1`))
	if after := f.node.do("pidof kubelet"); after == before {
		f.t.Errorf("kubelet is still process %s", before)
	}
}

// testManyPods creates nearly the largest number of pods of a node (110) at once, and deletes them at once.
func testManyPods(t *testing.T) {
	n := newNamespace(t)
	node := newNodeShell(t)
	n.secret("s", "key", "v1")
	const pods = 100
	begin := time.Now()
	for i := range pods {
		n.create(onePod(fmt.Sprintf("pod-%d", i), `secretName: s`))
	}
	for i := range pods {
		name := fmt.Sprintf("pod-%d", i)
		if _, err := untilErr(t, 5*time.Minute, "pod "+name+" to be ready", "pods", n.name, name, &corev1.Pod{},
			func(e watch.Event) (bool, error) {
				return isReady(e.Object.(*corev1.Pod)), nil
			}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d pods ready after %.1f s", pods, time.Since(begin).Seconds())
	// Each volume has a mount, a record, and kubelet's three directories and vol_data.json. So this checks that the script
	// of nothingLeft finds existing traces.
	if got := strings.Count(node.do(volumesOnNode), "\n") + 1; got < 6*pods {
		t.Errorf("on the node are %d traces of %d volumes, want at least six of each", got, pods)
	}
	begin = time.Now()
	if err := client.CoreV1().Pods(n.name).DeleteCollection(suite, metav1.DeleteOptions{},
		metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := n.goneWithin(5*time.Minute, ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("gone after %.1f s", time.Since(begin).Seconds())
}

// volumesOnNode prints the traces of the driver's volumes on the node: mounts, records, kubelet's directories.
const volumesOnNode = `
grep 'kubernetes.io~csi.*/mount' /proc/1/mountinfo
find /proc/1/root/run/fsuser.csi.io -type f ! -name lock
find /proc/1/root/var/lib/kubelet/pods -path '*kubernetes.io~csi*'
true`

// nothingLeft waits until all pods of earlier tests are gone, and then until the node has no trace of a volume.
func nothingLeft(t *testing.T) {
	t.Helper()
	if _, err := kubectl(suite, "", "wait", "--for=delete", "namespace", "-l", testLabel, "--timeout=90s"); err != nil &&
		!strings.Contains(err.Error(), "no matching resources") {
		t.Fatal(err)
	}
	node := newNodeShell(t)
	noTraces(node)
	// The next call of nothingLeft would wait for this pod.
	ctx, cancel := context.WithTimeout(suite, time.Minute)
	defer cancel()
	if err := client.CoreV1().Pods(node.name).Delete(ctx, "node", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// noTraces waits until the node has no trace of a volume. Kubelet removes the directories of a pod some seconds after
// the API server has removed the pod.
func noTraces(node nodeShell) {
	node.t.Helper()
	script := "for i in $(seq 30); do left=$(" + volumesOnNode +
		"); test -z \"$left\" && break; sleep 1; done; echo \"$left\""
	if left := node.do(script); left != "" {
		node.t.Errorf("30 s later there is left on the node:\n%s", left)
	}
}
