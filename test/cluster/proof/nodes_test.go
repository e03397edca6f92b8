// SPDX-License-Identifier: Apache-2.0

//go:build cluster && linux

package proof

import (
	"context"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// TestNodes is a sequence of parts on a cluster of three nodes.
func TestNodes(t *testing.T) {
	before := machine(t)
	c := upNodes(t, "nodes", 3)
	nodes, err := c.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	w := startWeb(t, c)
	if got, want := slices.Sorted(maps.Keys(w.pods)), []string{"node", "node-2", "node-3"}; !slices.Equal(got, want) {
		t.Fatalf("pods run on %q, want %q", got, want)
	}
	t.Run("pods reach each other and the service", w.reach)
	t.Run("a command runs on its node", func(t *testing.T) { testCommand(t, nodes) })
	t.Run("a node is cut off and connected again", func(t *testing.T) { w.cutOff(t, nodes[1]) })
	t.Run("a node is powered off and booted", func(t *testing.T) { w.reboot(t, nodes[2]) })
	t.Run("the first node stays", func(t *testing.T) {
		if err := nodes[0].PowerOff(eachContext(t)); err == nil {
			t.Error("the node of the control plane was powered off")
		}
	})
	t.Run("nothing is left when keep is killed", func(t *testing.T) {
		if err := syscall.Kill(findProcess(t, c.RunDir(), "keep"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitNothingLeft(t, c.RunDir(), before)
	})
}

// web is a DaemonSet whose pods answer with the name of their node, and a Service for the pods.
type web struct {
	cluster *cluster.Cluster
	service string // the address of the Service
	pods    map[string]webPod
}

type webPod struct{ name, address string }

func startWeb(t *testing.T, c *cluster.Cluster) *web {
	t.Helper()
	ctx := eachContext(t)
	kubectl(ctx, t, c, `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: fsuser.test/busybox:1
        command: [sh, -c, 'mkdir -p /www; echo "$NODE" >/www/node; exec httpd -f -p 80 -h /www']
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {port: 80, path: /node}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`, "apply", "-f", "-")
	w := &web{cluster: c}
	w.ready(t)
	w.service = kubectl(ctx, t, c, "", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	return w
}

// ready waits until all pods are Ready, and records them by node.
func (w *web) ready(t *testing.T) {
	t.Helper()
	ctx := eachContext(t)
	kubectl(ctx, t, w.cluster, "", "rollout", "status", "daemonset/web", "--timeout=50s")
	const each = `jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIP}{"\n"}{end}`
	w.pods = make(map[string]webPod)
	for line := range strings.Lines(kubectl(ctx, t, w.cluster, "", "get", "pods", "-l", "app=web", "-o", each)) {
		if fields := strings.Fields(line); len(fields) == 3 {
			w.pods[fields[0]] = webPod{fields[1], fields[2]}
		}
	}
}

// get returns the answers to a client in the pod of a node. The answer to a failed request is empty.
func (w *web) get(ctx context.Context, t *testing.T, from string, addresses ...string) []string {
	t.Helper()
	// The addresses are numbers, because wget of a static busybox crashes when it resolves a name.
	script := "for a in " + strings.Join(addresses, " ") + `; do
		echo "$(printf 'GET /node HTTP/1.0\r\n\r\n' | nc -w 2 $a 80 2>/dev/null | tail -n 1)"
	done`
	output := kubectl(ctx, t, w.cluster, "", "exec", w.pods[from].name, "--", "sh", "-c", script)
	return strings.Split(strings.TrimSuffix(output, "\n"), "\n")
}

func (w *web) reach(t *testing.T) {
	ctx := eachContext(t)
	var nodes, addresses []string
	for node, pod := range w.pods {
		nodes, addresses = append(nodes, node), append(addresses, pod.address)
	}
	for from := range w.pods {
		if got := w.get(ctx, t, from, addresses...); !slices.Equal(got, nodes) {
			t.Errorf("from %s the pods of %q answer %q", from, nodes, got)
		}
		// Each request reaches a random pod. The probability that one of three pods gets no request is one in three million.
		got := w.get(ctx, t, from, slices.Repeat([]string{w.service}, 40)...)
		slices.Sort(got)
		if got, want := slices.Compact(got), slices.Sorted(maps.Keys(w.pods)); !slices.Equal(got, want) {
			t.Errorf("from %s the service leads to %q, want %q", from, got, want)
		}
	}
}

// testCommand checks that each node has a name, mounts and a folder /run of its own.
func testCommand(t *testing.T, nodes []*cluster.Node) {
	ctx := eachContext(t)
	for _, node := range nodes {
		if got := run(t, node, "hostname"); got != node.Name() {
			t.Errorf("the host name of %s is %q", node.Name(), got)
		}
		run(t, node, "mkdir /run/own && mount -t tmpfs own-"+node.Name()+" /run/own")
		if got := kubectl(ctx, t, nodes[0].Cluster(), "", "get", "node", node.Name(), "-o", "name"); got != run(t, node,
			"kubectl get node $(hostname) -o name")+"\n" {
			t.Errorf("kubectl on %s says something else than %q", node.Name(), got)
		}
	}
	for _, node := range nodes {
		if got := run(t, node, "grep -o 'own-node[^ ]*' /proc/self/mountinfo"); got != "own-"+node.Name() {
			t.Errorf("%s has the mounts %q of the test, want its own", node.Name(), got)
		}
	}
}

func run(t *testing.T, node *cluster.Node, script string) string {
	t.Helper()
	output, err := node.Run(eachContext(t), "sh", "-c", script)
	if err != nil {
		t.Fatalf("on %s: %v", node.Name(), err)
	}
	return strings.TrimSpace(output)
}

func (w *web) cutOff(t *testing.T, node *cluster.Node) {
	ctx := eachContext(t)
	if err := node.CutOff(ctx); err != nil {
		t.Fatal(err)
	}
	address := w.pods[node.Name()].address
	if got := w.get(ctx, t, "node", address); got[0] != "" {
		t.Errorf("the pod of a node that is cut off answers %q", got)
	}
	if err := node.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	for w.get(ctx, t, "node", address)[0] != node.Name() { // Each request waits for up to two seconds.
		if ctx.Err() != nil {
			t.Fatalf("the pod of %s does not answer again: %v", node.Name(), context.Cause(ctx))
		}
	}
}

// reboot checks that files on the disk stay after a reboot, and that files in memory are gone.
func (w *web) reboot(t *testing.T, node *cluster.Node) {
	ctx := eachContext(t)
	run(t, node, "touch /run/in-memory "+cluster.KubeletRoot+"/on-disk")
	if err := node.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Command(ctx, "true"); err == nil {
		t.Error("a node that is off takes a command")
	}
	if got := w.get(ctx, t, "node", w.pods[node.Name()].address); got[0] != "" {
		t.Errorf("the pod of a node that is off answers %q", got)
	}
	if err := node.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := node.Boot(ctx); err == nil {
		t.Error("a node that is on was booted")
	}
	if got := run(t, node, "cd "+cluster.KubeletRoot+
		"; ls on-disk; ls /run/in-memory /run/own 2>&-; true"); got != "on-disk" {
		t.Errorf("after the boot there is %q of the test's files, want the file on the disk", got)
	}
	kubectl(ctx, t, w.cluster, "", "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod", "-l",
		"app=web",
		"--field-selector=spec.nodeName="+node.Name(), "--timeout=50s")
	w.ready(t)
	w.reach(t)
}
