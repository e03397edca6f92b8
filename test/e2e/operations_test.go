// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// testTold checks that Events of the pod and `fsuser-csi status` report a failed refresh, and the success of a later
// one.
func testTold(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1", "other", "x")
	n.run(watching(describedPod("told", `secret: {secretName: s, defaultMode: 0400, items: [{key: key, path: key}]}`, "")))
	if s := statusOf(t, n, "told"); s.Stale != "" || !strings.Contains(s.Object, n.name+"/s") || s.UID != 1000 ||
		s.Mode != "0400" || s.ResourceVersion == "" {
		t.Errorf("status: %+v", s)
	}

	n.changeSecret("s", "other", "y")
	t.Logf("a key is gone: %s", n.event("told", "VolumeRefreshFailed", `"v"`, "key"))
	if s := statusOf(t, n, "told"); s.Stale == "" || s.StaleSince == nil {
		t.Errorf("status of a volume that is not current: %+v", s)
	}
	table := statusOutput(t, "table")
	if line := lineWith(table, n.name+"/told"); !strings.Contains(line, "stale for") {
		t.Errorf("status of a volume that is not current:\n%s", table)
	}
	if m := metrics(t, n, "told"); strings.Contains(m, "\nfsuser_stale_volumes 0\n") ||
		!strings.Contains(m, "\nfsuser_stale_volumes ") || !strings.Contains(m, "\nfsuser_volumes ") ||
		strings.Contains(m, "\nfsuser_volumes 0\n") {
		t.Errorf("metrics with a volume that is not current:\n%s", m)
	}
	n.expect("told", "", "cat /v/key", "v1")

	n.changeSecret("s", "key", "v2")
	n.waitSaid("told", "/v/key v2")
	n.event("told", "VolumeRefreshRecovered", `"v"`)

	if err := client.CoreV1().Secrets(n.name).Delete(suite, "s", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the object is deleted: %s", n.event("told", "VolumeObjectMissing", n.name+"/s"))
	n.expect("told", "", "cat /v/key", "v2")
	n.secret("s", "key", "v3")
	n.waitSaid("told", "/v/key v3")
	if s := statusOf(t, n, "told"); s.Stale != "" || s.StaleSince != nil {
		t.Errorf("status of a volume that is current again: %+v", s)
	}
}

// statusOutput runs the status command in the driver's pod.
func statusOutput(t *testing.T, format string) string {
	t.Helper()
	out, err := kubectl(suite, "", "-n", driverNamespace, "exec", driverPod(t).Name, "--", "/fsuser-csi", "status", "-o",
		format)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func statusOf(t *testing.T, n namespace, pod string) status.Volume {
	t.Helper()
	var node status.Node
	text := statusOutput(t, "json")
	if err := json.Unmarshal([]byte(text), &node); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for _, s := range node.Volumes {
		if s.PodNamespace == n.name && s.PodName == pod {
			return s
		}
	}
	t.Fatalf("status has no volume of %s/%s:\n%s", n.name, pod, text)
	return status.Volume{}
}

// buildPlugin returns the path of the plugin.
func buildPlugin(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubectl-fsuser")
	build := exec.CommandContext(suite, "go", "build", "-o", path, "../../cmd/kubectl-fsuser")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kubectl-fsuser: %v\n%s", err, out)
	}
	return path
}

// testKubectlStatus installs the plugin as a user does, in a directory of PATH, and asks the drivers of all nodes.
func testKubectlStatus(t *testing.T) {
	t.Parallel()
	bin := filepath.Dir(buildPlugin(t))
	fsuser := func(args ...string) string {
		t.Helper()
		ctx, cancel := within(t, soon, "kubectl fsuser status")
		defer cancel()
		cmd := exec.CommandContext(ctx, "kubectl", append([]string{"fsuser", "status"}, args...)...)
		cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", cmd, err, &stderr)
		}
		return string(out)
	}
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.run(onePod("one", `secretName: s`))
	n.run(onePod("two", `secretName: s, uid: "7"`))
	var nodes []status.Node
	var all []status.Volume
	text := fsuser("-n", n.name, "-o", "json")
	err := json.Unmarshal([]byte(text), &nodes)
	for _, node := range nodes {
		if node.Access == nil || !node.Access.Ready {
			t.Errorf("node %s has access %+v, want ready", node.Node, node.Access)
		}
		if node.Node == nodeName {
			all = node.Volumes
		}
	}
	if err != nil || len(all) != 2 {
		t.Fatalf("error %v, %d volumes, want 2, in\n%s", err, len(all), text)
	}
	for i, want := range []struct {
		pod string
		uid uint32
	}{{"one", 1000}, {"two", 7}} {
		if v := all[i]; v.PodNamespace != n.name || v.PodName != want.pod || v.UID != want.uid || v.Stale != "" {
			t.Errorf("volume %d is %+v, want that of pod %s on node %s with uid %d", i, v, want.pod, nodeName, want.uid)
		}
	}
	if table := fsuser("-n", n.name, "two"); lineWith(table, n.name+"/two") == "" || lineWith(table, n.name+"/one") != "" {
		t.Errorf("the table of pod two is\n%s", table)
	}
	if line := lineWith(fsuser("-A"), n.name+"/one"); !strings.HasPrefix(line, nodeName) ||
		!strings.Contains(line, "current") {
		t.Errorf("the table of all namespaces has the line %q", line)
	}
}

func lineWith(text, word string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			return line
		}
	}
	return ""
}

// objectsOfDriver returns the names of all objects of the driver, of any kind, and of `helm test`.
func objectsOfDriver(t *testing.T) []string {
	t.Helper()
	kinds, err := kubectl(suite, "", "api-resources", "--verbs=list", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := kubectl(suite, "", "get", strings.Join(strings.Fields(kinds), ","), "-A", "-o", "name",
		"-l", "app.kubernetes.io/name in (fsuser-csi, fsuser-csi-test)")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(objects)
}

func notInstalled(t *testing.T) {
	t.Helper()
	namespace{driverNamespace, t}.gone("")
	until(t, "kubelet to deregister the driver", "csinodes", "", nodeName, &storagev1.CSINode{},
		func(e watch.Event) (bool, error) {
			return !slices.ContainsFunc(e.Object.(*storagev1.CSINode).Spec.Drivers,
				func(d storagev1.CSINodeDriver) bool { return d.Name == driverName }), nil
		})
	if left := objectsOfDriver(t); len(left) > 0 {
		t.Errorf("after the uninstallation there are the objects %q", left)
	}
	node := newNodeShell(t)
	if left := node.do(`cd /proc/1/root; find run/fsuser.csi.io .` + kubeletRoot() + `/plugins/fsuser.csi.io ! -type d
find .` + kubeletRoot() + `/plugins_registry | grep fsuser; true`); left != "" && left != "run/fsuser.csi.io/lock" {
		t.Errorf("on the node is left:\n%s", left)
	}
}

func installed(t *testing.T, manifest string) {
	t.Helper()
	if err := rolledOut(suite); err != nil {
		t.Fatal(err)
	}
	if err := waitForPolicies(suite, effect(manifest)); err != nil {
		t.Fatal(err)
	}
}
