// SPDX-License-Identifier: Apache-2.0

//go:build cluster && linux

package proof

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
)

// TestPods is a sequence of parts on one cluster, because a start takes a quarter of a minute.
func TestPods(t *testing.T) {
	before := machine(t)
	c := up(t, "pods")
	t.Run("a pod has an address, logs, exec, port-forward and a Secret volume", func(t *testing.T) { testPod(t, c) })
	t.Run("a pod reaches the API server at the service's address", func(t *testing.T) { testService(t, c) })
	t.Run("a pod has a user namespace", func(t *testing.T) { testUserNamespace(t, c) })
	t.Run("a mount propagates from one pod to another", func(t *testing.T) { testPropagation(t, c) })
	t.Run("an image of Debian packages runs", func(t *testing.T) { testDebian(t, c) })
	t.Run("kubelet comes back when it is killed", func(t *testing.T) { testKill(t, c) })
	t.Run("a second cluster runs beside it", func(t *testing.T) {
		second := up(t, "second")
		runPod(t, second, "simple", simplePod)
		if got := kubectl(eachContext(t), t, c, "", "get", "pods", "-o", "name"); strings.Contains(got, "pod/simple") {
			t.Errorf("the first cluster has the pod of the second:\n%s", got)
		}
		if err := second.Down(eachContext(t)); err != nil {
			t.Error(err)
		}
		kubectl(eachContext(t), t, c, "", "exec", "plain", "--", "true")
	})
	t.Run("down leaves nothing", func(t *testing.T) {
		if err := c.Down(eachContext(t)); err != nil {
			t.Fatal(err)
		}
		if left := leftOf(t, c.RunDir(), before); left != "" {
			t.Error(left)
		}
	})
}

const simplePod = `
apiVersion: v1
kind: Pod
metadata: {name: simple}
spec:
  containers:
  - {name: main, image: "fsuser.test/busybox:1", command: [sleep, infinity]}
`

func testPod(t *testing.T, c *cluster.Cluster) {
	ctx := eachContext(t)
	runPod(t, c, "plain", `
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {key: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: word, secret: {secretName: word}}]
  containers:
  - name: main
    image: fsuser.test/busybox:1
    command: [sh, -c, "echo started; exec httpd -f -p 8080 -h /word"]
    volumeMounts: [{name: word, mountPath: /word}]
    readinessProbe: {httpGet: {port: 8080, path: /key}, periodSeconds: 1}
`)
	if got := kubectl(ctx, t, c, "", "get", "pod", "plain", "-o", "jsonpath={.status.podIP}"); !strings.HasPrefix(got,
		"10.244.0.") {
		t.Errorf("address of the pod %q, want one of 10.244.0.0/24", got)
	}
	if got := kubectl(ctx, t, c, "", "logs", "plain"); got != "started\n" {
		t.Errorf("log %q, want %q", got, "started\n")
	}
	if got := kubectl(ctx, t, c, "in", "exec", "-i", "plain", "--", "sh", "-c", "cat /word/key -"); got != "sesamein" {
		t.Errorf("exec printed %q, want the secret's value and its input", got)
	}
	forward := kubectlCommand(ctx, t, c, "port-forward", "pod/plain", ":8080")
	output, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = forward.Process.Kill()
		_ = forward.Wait()
	}()
	line, err := bufio.NewReader(output).ReadString('\n')
	var port int
	if _, scanErr := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d ->", &port); scanErr != nil {
		t.Fatalf("port-forward printed %q: %v, %v", line, err, scanErr)
	}
	response, err := (&http.Client{Timeout: eachTimeout}).Get(fmt.Sprintf("http://127.0.0.1:%d/key", port))
	if err != nil {
		t.Fatalf("get through port-forward: %v", err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "sesame" {
		t.Errorf("got %q, %v through port-forward, want the secret's value", body, err)
	}
}

// testService runs kubectl in a pod. kubectl finds the address of the API server and the credentials in the places for
// pods.
func testService(t *testing.T, c *cluster.Cluster) {
	ctx := eachContext(t)
	const name = "fsuser.test/kubectl:1"
	tar := filepath.Join(t.TempDir(), "kubectl.tar")
	if err := images.Build(tar, images.Image{
		Name:  name,
		Files: []images.File{{Path: "/kubectl", Source: filepath.Join(c.Bin(), "kubectl"), Mode: 0o755}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(ctx, tar); err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, c, `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: `+name+`
    command: [/kubectl, auth, whoami, --v=6]
`, "apply", "-f", "-")
	kubectl(ctx, t, c, "", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/client", "--timeout=50s")
	log := kubectl(ctx, t, c, "", "logs", "client")
	for _, want := range []string{"https://10.96.0.1:443/", "system:serviceaccount:default:default"} {
		if !strings.Contains(log, want) {
			t.Errorf("the client's log has no %s:\n%s", want, log)
		}
	}
}

func testUserNamespace(t *testing.T, c *cluster.Cluster) {
	runPod(t, c, "mapped", `
apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 0
  volumes: [{name: word, secret: {secretName: word}}]
  containers:
  - name: main
    image: fsuser.test/busybox:1
    command: [sleep, infinity]
    volumeMounts: [{name: word, mountPath: /word}]
`)
	got := strings.Fields(kubectl(eachContext(t), t, c, "", "exec", "mapped", "--", "cat", "/proc/self/uid_map",
		"/word/key"))
	if len(got) != 4 || got[0] != "0" || got[1] == "0" || got[2] != "65536" || got[3] != "sesame" {
		t.Errorf("uid map and secret are %q, want 65536 users that are others outside, and the value", got)
	}
}

func testPropagation(t *testing.T, c *cluster.Cluster) {
	const shared = cluster.KubeletRoot + "/plugins/proof"
	for name, pod := range map[string]struct{ propagation, privileged string }{
		"mounter": {"Bidirectional", "true"},
		"watcher": {"HostToContainer", "false"},
	} {
		runPod(t, c, name, `
apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: shared, hostPath: {path: `+shared+`, type: DirectoryOrCreate}}]
  containers:
  - name: main
    image: fsuser.test/busybox:1
    command: [sleep, infinity]
    securityContext: {privileged: `+pod.privileged+`}
    volumeMounts: [{name: shared, mountPath: /shared, mountPropagation: `+pod.propagation+`}]
`)
	}
	ctx := eachContext(t)
	kubectl(ctx, t, c, "", "exec", "mounter", "--", "sh", "-c",
		"mkdir /shared/m && mount -t tmpfs tmpfs /shared/m && echo yes >/shared/m/file")
	if got := kubectl(ctx, t, c, "", "exec", "watcher", "--", "cat", "/shared/m/file"); got != "yes\n" {
		t.Errorf("the other pod reads %q, want %q", got, "yes\n")
	}
	inside, err := c.Run(ctx, "cat", "/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(inside, " "+shared+"/m ") {
		t.Error("kubelet's namespace does not see the mount")
	}
	if strings.Contains(inside, filepath.Join(c.RunDir(), "data", "kubelet", "plugins")) {
		t.Error("the mount is seen in the run folder, too")
	}
	outside, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(outside), shared) || strings.Contains(string(outside), c.RunDir()) {
		t.Error("the machine sees a mount of the cluster")
	}
}

// testDebian runs a Debian program with shared libraries and dependencies.
func testDebian(t *testing.T, c *cluster.Cluster) {
	ctx := eachContext(t)
	root, err := images.Unpack(ctx, filepath.Join(filepath.Dir(filepath.Dir(c.RunDir())), "debian"), "openssh-client",
		"dash")
	if err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(t.TempDir(), "ssh.tar")
	if err := images.Build(tar, images.Image{
		Name: "fsuser.test/ssh:1", Root: root, Entrypoint: []string{"/bin/sh", "-c"},
		Cmd: []string{"ssh -V 2>&1; exec ssh-keygen -A"},
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(ctx, tar); err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, c, `
apiVersion: v1
kind: Pod
metadata: {name: ssh}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "fsuser.test/ssh:1"}]
`, "apply", "-f", "-")
	kubectl(ctx, t, c, "", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/ssh", "--timeout=50s")
	if log := kubectl(ctx, t, c, "", "logs", "ssh"); !strings.HasPrefix(log, "OpenSSH_") {
		t.Errorf("log %q, want the version of ssh", log)
	}
}

func testKill(t *testing.T, c *cluster.Cluster) {
	ctx := eachContext(t)
	if err := c.Kill(ctx, "kubelet"); err != nil {
		t.Fatal(err)
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		// kubectl exec requires kubelet.
		if output, err := kubectlCommand(ctx, t, c, "exec", "plain", "--", "true").CombinedOutput(); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatalf("wait for kubelet to come back: %v\n%s", err, output)
		}
		<-ticker.C
	}
}
