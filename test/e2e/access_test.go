// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// testAccess changes the kind of access as deploy/README.md describes, and tries the actions of an attacker with the
// driver's token.
func testAccess(t *testing.T) {
	// This pod runs all the time, and shows that a change of access does not affect a running pod.
	long := newNamespace(t)
	long.secret("s", "key", "v1")
	long.run(watchingPod("old", `secretName: s`))
	node := newNodeShell(t)
	t.Run("node", func(t *testing.T) {
		since136(t, ConstrainedImpersonation)
		nodeAccess(t, node)
	})
	t.Run("namespaces", func(t *testing.T) {
		if installedFirst == manifestNode {
			change(t, manifestNamespaces, fromNode)
		}
		long.expect("old", "", "cat /v/key", "v1")
		namespacesAccess(t, node)
	})
	t.Run("cluster", func(t *testing.T) {
		change(t, manifestCluster)
		long.t = t
		long.changeSecret("s", "key", "v2")
		long.waitSaid("old", "/v/key v2")
		clusterAccess(t, node)
	})
	t.Run("namespaces are walls, even then", walls)
	if before136() {
		t.Run("back to namespaces", func(t *testing.T) {
			change(t, manifestNamespaces, fromCluster)
			long.t = t
			long.changeSecret("s", "key", "v3") // The namespace has consented.
			long.waitSaid("old", "/v/key v3")
		})
	}
	t.Run("back to node", func(t *testing.T) {
		since136(t, ConstrainedImpersonation)
		n := newNamespace(t)
		n.secret("s", "key", "v1")
		n.run(watchingPod("undeclared", `secretName: s`))
		change(t, manifestNode, fromCluster, toNode)
		long.t = t
		long.changeSecret("s", "key", "v3") // The pod was created while the policy declared objects.
		long.waitSaid("old", "/v/key v3")
		n.changeSecret("s", "key", "v2")
		t.Logf("a pod without a declaration is told: %s",
			n.event("undeclared", "VolumeRefreshFailed", "forbidden", "the pod must declare the object"))
		n.expect("undeclared", "", "cat /v/key", "v1")
	})
}

// change finds the commands of deploy/README.md by these words.
const (
	fromNode    = "clusterrole fsuser-csi-node"
	fromCluster = "clusterrolebinding fsuser-csi-danger"
	toNode      = "clusterrole fsuser-csi-reader"
)

// change applies another manifest, and runs the commands of deploy/README.md that delete the objects of the old one.
func change(t *testing.T, manifest string, deletions ...string) {
	t.Helper()
	old, page := driverPod(t), readPage(t, installPage)
	if err := apply(suite, manifest); err != nil {
		t.Fatal(err)
	}
	for _, words := range deletions {
		shell(t, "", page.command(t, words))
	}
	if err := rolledOut(suite); err != nil {
		t.Fatal(err)
	}
	if err := waitForPolicies(suite, effect(manifest)); err != nil {
		t.Fatal(err)
	}
	if args := strings.Join(driverPod(t).Spec.Containers[0].Args, " "); args == strings.Join(old.Spec.Containers[0].Args,
		" ") && (manifest == manifestNode) != strings.Contains(args, "--access=node") {
		t.Fatalf("the driver still runs with %s", args)
	}
}

// testLeastPower checks the driver's process. Its container is privileged, which mountPropagation: Bidirectional
// requires, but the process is not.
func testLeastPower(t *testing.T) {
	t.Parallel()
	n := newNodeShell(t)
	driverPod(t)
	got := n.do("cat /proc/" + driverPID() +
		`/task/*/status | grep -E '^(Cap|NoNewPrivs|Seccomp:)' | tr -d '\t' | sort -u`)
	const want = "CapAmb:0000000000000000\nCapBnd:000000000020000b\nCapEff:000000000020000b\n" +
		"CapInh:0000000000000000\nCapPrm:000000000020000b\nNoNewPrivs:1\nSeccomp:2"
	if got != want {
		t.Errorf("the threads of the driver have\n%s\nwant\n%s", got, want)
	}
}

// stolen returns the token of the driver's running container, which an attacker who controls the node can read.
func stolen(n nodeShell) string {
	n.t.Helper()
	driverPod(n.t)
	token := n.do("cat /proc/" + driverPID() + "/root/var/run/secrets/kubernetes.io/serviceaccount/token")
	if strings.Count(token, ".") != 2 {
		n.t.Fatalf("that is no token: %d bytes", len(token))
	}
	return token
}

// thief returns a client with the stolen token. If asNode is set, the client acts as that node.
func thief(t *testing.T, token, asNode string) kubernetes.Interface {
	t.Helper()
	if asNode != "" {
		asNode = "system:node:" + asNode
	}
	c, err := kubernetes.NewForConfig(clientConfig(token, asNode))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type attempt struct {
	name string
	do   func(context.Context) error
}

// thefts returns requests that only an administrator or the owner of the namespace should be able to make.
func thefts(c kubernetes.Interface, namespace, secret string) []attempt {
	get, list := metav1.GetOptions{}, metav1.ListOptions{}
	return []attempt{
		{"get Secret " + namespace + "/" + secret, func(ctx context.Context) error {
			_, err := c.CoreV1().Secrets(namespace).Get(ctx, secret, get)
			return err
		}},
		{"get ConfigMap " + namespace + "/" + secret, func(ctx context.Context) error {
			_, err := c.CoreV1().ConfigMaps(namespace).Get(ctx, secret, get)
			return err
		}},
		{"list Secrets of " + namespace, func(ctx context.Context) error {
			_, err := c.CoreV1().Secrets(namespace).List(ctx, list)
			return err
		}},
		{"watch Secrets of " + namespace, func(ctx context.Context) error {
			w, err := c.CoreV1().Secrets(namespace).Watch(ctx, list)
			if err == nil {
				w.Stop()
			}
			return err
		}},
		{"list all Secrets", func(ctx context.Context) error {
			_, err := c.CoreV1().Secrets("").List(ctx, list)
			return err
		}},
		{"list ConfigMaps of " + namespace, func(ctx context.Context) error {
			_, err := c.CoreV1().ConfigMaps(namespace).List(ctx, list)
			return err
		}},
	}
}

func refused(t *testing.T, who string, attempts ...attempt) {
	t.Helper()
	ctx, cancel := within(t, soon, "the API server's answers")
	defer cancel()
	for _, a := range attempts {
		if err := a.do(ctx); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %s: error %v, want forbidden", who, a.name, err)
		}
	}
}

func allowed(t *testing.T, who string, attempts ...attempt) {
	t.Helper()
	ctx, cancel := within(t, soon, "the API server's answers")
	defer cancel()
	for _, a := range attempts {
		if err := a.do(ctx); err != nil {
			t.Errorf("%s: %s: %v", who, a.name, err)
		}
	}
}

// checkCluster checks that the plugin's check finds that the installed driver works.
func checkCluster(t *testing.T) {
	t.Helper()
	plugin := buildPlugin(t)
	ctx, cancel := within(t, soon, "kubectl fsuser check")
	defer cancel()
	out, err := exec.CommandContext(ctx, plugin, "check").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "The installed driver works.") {
		t.Errorf("kubectl fsuser check: %v\n%s", err, out)
	}
}

func nodeAccess(t *testing.T, node nodeShell) {
	node.t = t
	checkCluster(t)
	n, other := newNamespace(t), newNamespace(t)
	for _, ns := range []namespace{n, other} {
		ns.t = t
		ns.secret("s", "key", "v1")
		ns.secret("undeclared", "key", "v1")
		ns.configMap("undeclared", "key", "v1")
	}
	n.run(onePod("declared", `secretName: s`))
	withoutPolicy(n)
	token := stolen(node)
	as, itself := thief(t, token, nodeName), thief(t, token, "")
	declared := thefts(as, n.name, "s")[0]
	allowed(t, "as the node, what a pod on it declares", declared)
	refused(t, "as the node", thefts(as, n.name, "undeclared")...)
	refused(t, "as the node, the same name elsewhere", thefts(as, other.name, "s")[0])
	refused(t, "as itself", thefts(itself, n.name, "s")...)
	refused(t, "as another node", thefts(thief(t, token, "another"), n.name, "s")...)
	admin := clientConfig(token, "admin")
	admin.Impersonate.Groups = []string{"system:masters"}
	c, err := kubernetes.NewForConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, "as system:masters", thefts(c, n.name, "s")...)
	// The right to act as the node includes reading, but not the node's other rights.
	refused(t, "as the node", attempt{"make a mirror pod", func(ctx context.Context) error {
		pod := parsePod(t, onePod("mirror", `secretName: undeclared`))
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		pod.Spec.NodeName = nodeName
		_, err := as.CoreV1().Pods(n.name).Create(ctx, pod, metav1.CreateOptions{})
		return err
	}}, attempt{"change the node", func(ctx context.Context) error {
		_, err := as.CoreV1().Nodes().Patch(ctx, nodeName, types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`),
			metav1.PatchOptions{})
		return err
	}}, attempt{"delete a pod", func(ctx context.Context) error {
		return as.CoreV1().Pods(n.name).Delete(ctx, "declared", metav1.DeleteOptions{})
	}}, attempt{"list the pods of all nodes", func(ctx context.Context) error {
		_, err := as.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		return err
	}})
	// When no pod declares the object any more, it can't be read any more.
	n.delete("declared")
	ctx, cancel := within(t, soon, "the API server to forget the pod")
	defer cancel()
	for !apierrors.IsForbidden(declared.do(ctx)) {
		if ctx.Err() != nil {
			t.Fatal(context.Cause(ctx))
		}
	}
}

// consentCommand returns the command of deploy/README.md for the owner of a namespace.
func consentCommand(n namespace) string {
	return strings.ReplaceAll(readPage(n.t, installPage).command(n.t, "create rolebinding"), "NAMESPACE", n.name)
}

func consent(n namespace) {
	n.t.Helper()
	shell(n.t, "", consentCommand(n))
}

// withoutPolicy checks that a pod without a declaration gets an Event with the remedy. A pod whose volume is described
// by a secret volume requires no declaration.
func withoutPolicy(n namespace) {
	n.t.Helper()
	const binding = "declare-references.fsuser.csi.io"
	if _, err := kubectl(suite, "", "delete", "mutatingadmissionpolicybinding", binding); err != nil {
		n.t.Fatal(err)
	}
	defer func() {
		if err := install(suite, manifestNode); err != nil {
			n.t.Fatal(err)
		}
	}()
	if err := waitForPolicies(suite, mutation{}); err != nil {
		n.t.Fatal(err)
	}
	// No pod has declared this Secret.
	n.create(withCSI(onePod("alone", `secretName: undeclared, uid: "1000"`), "readOnly: true"))
	n.t.Logf("a pod without a declaration is told: %s", n.event("alone", "FailedMount", "PermissionDenied",
		"is the declare-references policy installed", "secretName: undeclared"))
	n.secret("described", "key", "v1")
	n.run(withCSI(describedPod("described", `secret: {secretName: described}`, `mode: "0400"`), "readOnly: true"))
	n.expect("described", "", show("/v/key"), "1000:0 400\nv1")
	n.delete("alone", "described")
}

func namespacesAccess(t *testing.T, node nodeShell) {
	node.t = t
	checkCluster(t)
	n, other := withoutConsent(t), withoutConsent(t)
	n.secret("s", "key", "v1")
	n.configMap("s", "key", "v1")
	other.secret("s", "key", "v1")
	// Without uid, the driver first reads the pod, which also requires consent.
	n.create(watchingPod("waits", `secretName: s`))
	t.Logf("a pod in a namespace that has not consented is told: %s",
		n.event("waits", "FailedMount", "PermissionDenied", n.name+"/waits", consentCommand(n)))
	consent(n)
	n.ready("waits")
	n.expect("waits", "", show("/v/key"), "1000:0 400\nv1")
	n.changeSecret("s", "key", "v2")
	n.waitSaid("waits", "/v/key v2")
	token := stolen(node)
	allowed(t, "where it has consent", thefts(thief(t, token, ""), n.name, "s")[:3]...)
	refused(t, "where it has none", thefts(thief(t, token, ""), other.name, "s")...)
	refused(t, "as the node", thefts(thief(t, token, nodeName), n.name, "s")...)
	// A nodePublishSecretRef requires no right of the driver.
	other.run(withCSI(onePod("ref", `uid: "1000"`), "nodePublishSecretRef: {name: s}"))
	other.expect("ref", "", show("/v/key"), "1000:0 400\nv1")
	// The owner withdraws the consent, and the files stay.
	if _, err := kubectl(suite, "", "-n", n.name, "delete", "rolebinding", "fsuser-csi"); err != nil {
		t.Fatal(err)
	}
	n.expect("waits", "", "cat /v/key", "v2")
	// If another pod of the node shows an object, the driver still watches the object until the API server ends the watch.
	// For other objects, the API server refuses requests.
	n.secret("unseen", "key", "v1")
	n.create(onePod("late", `secretName: unseen, uid: "1000"`))
	n.event("late", "FailedMount", "PermissionDenied", consentCommand(n))
}

func clusterAccess(t *testing.T, node nodeShell) {
	node.t = t
	checkCluster(t)
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.configMap("s", "key", "v1")
	n.run(onePod("any", `secretName: s`))
	n.expect("any", "", show("/v/key"), "1000:0 400\nv1")
	token := stolen(node)
	allowed(t, "as itself", thefts(thief(t, token, ""), n.name, "s")...)
	refused(t, "as the node", thefts(thief(t, token, nodeName), n.name, "s")...)
	refused(t, "as itself", attempt{"delete a Secret", func(ctx context.Context) error {
		return thief(t, token, "").CoreV1().Secrets(n.name).Delete(ctx, "s", metav1.DeleteOptions{})
	}})
}

// walls checks that no attribute lets a pod reach a Secret of another namespace, although the driver can read every
// Secret now.
func walls(t *testing.T) {
	victim, n := newNamespace(t), newNamespace(t, uncheckedLabel+"=true")
	victim.secret("treasure", "key", "v1")
	owner := victim.run(onePod("owner", `secretName: treasure`))
	forged := fmt.Sprintf(`csi.storage.k8s.io/pod.namespace: %s, csi.storage.k8s.io/pod.name: %s, `+
		`csi.storage.k8s.io/pod.uid: %s, csi.storage.k8s.io/ephemeral: "true"`,
		victim.name, owner.Name, owner.UID)
	for i, test := range []struct {
		attributes string
		words      []string
	}{
		{`secretName: treasure`, []string{"NotFound", n.name + "/treasure"}},
		{`secretName: treasure, ` + forged, []string{"NotFound", n.name + "/treasure"}}, // kubelet's values override these
		{`secretName: ` + victim.name + `/treasure`, []string{"InvalidArgument"}},
		{`secretName: ../` + victim.name + `/treasure`, []string{"InvalidArgument"}},
		{`secretName: treasure, namespace: ` + victim.name, []string{"InvalidArgument", "namespace"}},
		{`secretName: treasure, secretNamespace: ` + victim.name, []string{"InvalidArgument", "secretNamespace"}},
		{`secretName: "treasure?fieldSelector="`, []string{"InvalidArgument"}},
	} {
		kept(n, fmt.Sprintf("thief-%d", i), test.attributes, test.words)
	}
	// Without podInfoOnMount, kubelet forwards the pod's own values.
	podInfo(t, false)
	restore := func() { podInfo(t, true) }
	defer restore()
	kept(n, "forger", `uid: "1000", secretName: treasure, `+forged,
		[]string{"InvalidArgument", "does not belong to target_path"})
	kept(n, "half-a-forger", `uid: "1000", secretName: treasure, csi.storage.k8s.io/pod.namespace: `+victim.name,
		[]string{"InvalidArgument", "podInfoOnMount"})
	kept(n, "nobody", `uid: "1000", secretName: treasure`, []string{"InvalidArgument", "podInfoOnMount"})
	victim.expect("owner", "", "cat /v/key", "v1")
	podInfo(t, true)
	victim.run(onePod("again", `secretName: treasure`))
}

// kept checks that a pod gets an Event with these words, and does not start.
func kept(n namespace, name, attributes string, words []string) {
	n.t.Helper()
	n.create(onePod(name, attributes))
	message := n.event(name, "FailedMount", words...)
	p, err := client.CoreV1().Pods(n.name).Get(suite, name, metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	if p.Status.Phase != corev1.PodPending {
		n.t.Errorf("%s is %s after: %s", name, p.Status.Phase, message)
	}
}

func podInfo(t *testing.T, on bool) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"podInfoOnMount":%t}}`, on)
	if _, err := client.StorageV1().CSIDrivers().Patch(suite, driverName, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}
