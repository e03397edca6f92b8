// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

// checked is a real API server, and a kubeconfig of its administrator.
type checked struct {
	*controlplane.ControlPlane
	kubernetes.Interface
	kubeconfig string
}

func startChecked(t *testing.T, o controlplane.Options) *checked {
	t.Helper()
	c := &checked{ControlPlane: controlplane.StartForTest(t, o)}
	c.kubeconfig = c.kubeconfigOf(t, c.AdminConfig())
	var err error
	if c.Interface, err = kubernetes.NewForConfig(c.AdminConfig()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *checked) kubeconfigOf(t *testing.T, config *rest.Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.Kubeconfig(path, config); err != nil {
		t.Fatal(err)
	}
	return path
}

// expect runs the check. Each line of want is a regular expression for one line of the output.
func (c *checked) expect(t *testing.T, kubeconfig string, code int, want string) {
	t.Helper()
	got := tool(t, t.TempDir(), "", "check", "--kubeconfig", kubeconfig)
	lines, wanted := strings.Split(strings.TrimSpace(got.stdout), "\n"), strings.Split(strings.TrimSpace(want), "\n")
	same := len(lines) == len(wanted)
	for i := range min(len(lines), len(wanted)) {
		line := strings.Join(strings.Fields(lines[i]), " ")
		if !regexp.MustCompile("^" + wanted[i] + "$").MatchString(line) {
			t.Errorf("line %d is\n%s\nwant\n%s", i+1, line, wanted[i])
			same = false
		}
	}
	if got.code != code || !same || (code == 0) != (got.stderr == "") {
		t.Errorf("exit code %d, want %d\n%s%s", got.code, code, got.stdout, got.stderr)
	}
}

// These are the lines of a cluster in which everything works.
const (
	goodVersion       = `ok Kubernetes version v1\.37\.\d+`
	goodImpersonation = `ok constrained impersonation the feature is on`
	goodAuthorizer    = `ok Node authorizer a node may read only what its pods declare`
	goodMutating      = `ok mutating policies .* has mutatingadmissionpolicies`
	goodValidating    = `ok validating policies .* has validatingadmissionpolicies`
	goodQuota         = `ok quota the priority class "system-node-critical" needs no ResourceQuota in namespace fsuser-csi`
	goodSCC           = `ok SecurityContextConstraints the cluster has none`

	head         = "RESULT CHECK FOUND"
	notInstalled = "ok driver not installed"
)

func lines(all ...string) string { return strings.Join(all, "\n") }

// refusal returns the line of a check whose result is no.
func refusal(check, found, remedy string) string {
	return regexp.QuoteMeta("no " + check + " " + found + "; " + remedy)
}

func TestCheckBeforeTheInstallation(t *testing.T) {
	const namespaces = "install with --set access=namespaces"
	worksNot := "Access node does not work in this cluster: " + namespaces
	featureIsOff := refusal("constrained impersonation", "the feature ConstrainedImpersonation is off", namespaces)
	for name, test := range map[string]struct {
		options controlplane.Options
		code    int
		want    string
	}{
		"1.37": {code: 0, want: lines(head, notInstalled, goodVersion, goodImpersonation, goodAuthorizer, goodMutating,
			goodValidating, goodQuota, goodSCC, "Access node works in this cluster: install with --set access=node")},
		"1.35": {controlplane.Options{ExtraArgs: []string{"--emulated-version=1.35"}}, 1, lines(head, notInstalled,
			`no Kubernetes version v1\.37\.\d+ as 1\.35; access node needs 1\.36; `+namespaces, featureIsOff, goodAuthorizer,
			refusal("mutating policies", "admissionregistration.k8s.io/v1 has no mutatingadmissionpolicies",
				namespaces+", and write csi.readOnly: true in volumes"),
			goodValidating, goodQuota, goodSCC, worksNot)},
		"1.37 without the feature": {
			controlplane.Options{ExtraArgs: []string{"--feature-gates=ConstrainedImpersonation=false"}}, 1,
			lines(head, notInstalled, goodVersion, featureIsOff, goodAuthorizer, goodMutating, goodValidating, goodQuota,
				goodSCC, worksNot),
		},
		"1.37 without the Node authorizer": {controlplane.Options{AuthorizationMode: "RBAC"}, 1, lines(
			head, notInstalled, goodVersion, goodImpersonation, refusal("Node authorizer",
				"a node may not read its own Node: the API server has no Node authorizer", namespaces),
			goodMutating, goodValidating, goodQuota, goodSCC, worksNot)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startChecked(t, test.options)
			c.expect(t, c.kubeconfig, test.code, test.want)
		})
	}
}

// For each request that the API server refuses, the output names the right.
func TestCheckWithFewRights(t *testing.T) {
	t.Parallel()
	c := startChecked(t, controlplane.Options{})
	user, err := c.UserConfig("somebody")
	if err != nil {
		t.Fatal(err)
	}
	lacks := func(name, right string) string { return "unknown " + name + " you do not have the right to " + right }
	c.expect(t, c.kubeconfigOf(t, user), 1, lines(head,
		lacks("driver", `list daemonsets\.apps`), goodVersion, lacks("constrained impersonation", "get the URL /metrics .*"),
		lacks("Node authorizer", `create subjectaccessreviews\.authorization\.k8s\.io`), goodMutating, goodValidating,
		lacks("quota", "list resourcequotas"), goodSCC, `Access node is not known to work in this cluster\. `+
			`Install with --set access=node, and run this check again: then it asks the driver`))
}

// bind binds a ClusterRole. With rules, it creates the ClusterRole first.
func (c *checked) bind(t *testing.T, role string, subject rbacv1.Subject, rules ...rbacv1.PolicyRule) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: role}
	if len(rules) > 0 {
		_, err := c.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules},
			metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	meta.Name = "test-" + role
	subject.APIGroup = rbacv1.GroupName
	_, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, Subjects: []rbacv1.Subject{subject},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// says waits until check exits with this code and prints all parts. The API server learns of rights with a watch.
func (c *checked) says(t *testing.T, kubeconfig string, code int, parts ...string) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, fmt.Sprintf("check to say %q", parts), func() bool {
		got := tool(t, t.TempDir(), "", "check", "--kubeconfig", kubeconfig)
		return got.code == code && !slices.ContainsFunc(parts, func(part string) bool {
			return !strings.Contains(got.stdout, part)
		})
	})
}

// If each node may read every Secret, the Node authorizer has no effect.
func TestCheckNodesThatMayReadEverything(t *testing.T) {
	t.Parallel()
	c := startChecked(t, controlplane.Options{})
	c.bind(t, "cluster-admin", rbacv1.Subject{Kind: rbacv1.GroupKind, Name: "system:nodes"})
	c.says(t, c.kubeconfig, 1, "so each node can read every Secret; remove the rule that allows it, or install with "+
		"--set access=namespaces")
}

// install installs the driver as the manifest does, and creates the objects that the controllers, the scheduler and
// kubelet would create.
func (c *checked) install(t *testing.T) *fakeCluster {
	t.Helper()
	ctx := t.Context()
	if err := nodeaccess.Install(ctx, c.ControlPlane, c, "team"); err != nil {
		t.Fatal(err)
	}
	if err := nodeaccess.MakeServiceAccount(ctx, c, nodeaccess.System); err != nil {
		t.Fatal(err)
	}
	c.patchDaemonSet(t, 1)
	node := &fakeCluster{t: t, answers: map[string]status.Node{}}
	node.setAnswer("driver", status.Node{Node: nodeaccess.Node, Access: &status.Access{Ready: true}})
	c.makeNode(t, node)
	pod := nodeaccess.Pod("driver", kubelet.Volume{})
	pod.Labels = map[string]string{"app.kubernetes.io/name": "fsuser-csi"}
	pod.Spec.ServiceAccountName, pod.Spec.Volumes, pod.Spec.Containers[0].VolumeMounts = "fsuser-csi", nil, nil
	pod.Spec.Containers[0].Name = driverContainer
	made, err := c.CoreV1().Pods(nodeaccess.System).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Status.Phase = corev1.PodRunning
	if _, err := c.CoreV1().Pods(nodeaccess.System).UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return node
}

func (c *checked) patchDaemonSet(t *testing.T, ready int32) {
	t.Helper()
	sets := c.AppsV1().DaemonSets(nodeaccess.System)
	d, err := sets.Get(t.Context(), "fsuser-csi", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Status.DesiredNumberScheduled, d.Status.NumberReady, d.Status.ObservedGeneration = 1, ready, d.Generation
	if _, err := sets.UpdateStatus(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// makeNode starts a server that answers exec in place of the node's kubelet, and registers the driver.
func (c *checked) makeNode(t *testing.T, kubelet *fakeCluster) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", kubelet.exec)
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	ctx, nodes := t.Context(), c.CoreV1().Nodes()
	node, err := nodes.Patch(ctx, nodeaccess.Node, types.MergePatchType,
		[]byte(`{"metadata": {"labels": {"kubernetes.io/os": "linux"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(number)
	if _, err := nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StorageV1().CSINodes().Create(ctx, &storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: nodeaccess.Node},
		Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: driverName, NodeID: nodeaccess.Node}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

const (
	goodDriver       = `ok driver DaemonSet fsuser-csi/fsuser-csi: 1 of 1 pods are ready`
	goodCSIDriver    = `ok CSIDriver fsuser\.csi\.io`
	goodPolicies     = `ok driver's policies declare-references\.fsuser\.csi\.io, attributes\.fsuser\.csi\.io`
	goodRegistration = `ok registration 1 of 1 Linux node`
	goodAccess       = `ok driver's access it works on 1 of 1 node`
)

func TestCheckAfterTheInstallation(t *testing.T) {
	t.Parallel()
	c := startChecked(t, controlplane.Options{})
	node := c.install(t)
	c.expect(t, c.kubeconfig, 0, lines(head, goodDriver, goodVersion, goodImpersonation, goodAuthorizer, goodMutating,
		goodValidating, goodQuota, goodSCC, goodCSIDriver, goodPolicies, goodRegistration, goodAccess,
		`The installed driver works\.`))
	got := tool(t, t.TempDir(), "", "check", "--kubeconfig", c.kubeconfig, "-o", "json")
	var report checkReport
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil || got.code != 0 {
		t.Fatalf("as JSON: %v\n%s%s", err, got.stdout, got.stderr)
	}
	if !report.Works || !report.Installed || !slices.Equal(report.Set, []string{"access=node"}) ||
		len(report.Checks) != 12 || report.Checks[1].Check != "Kubernetes version" || report.Checks[1].Result != resultOK {
		t.Errorf("as JSON:\n%s", got.stdout)
	}
	c.limitedRights(t)
	c.damage(t, node)
	c.expectDamage(t)
	c.moreDamage(t, node)
	if err := c.StopAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	got = tool(t, t.TempDir(), "", "check", "--kubeconfig", c.kubeconfig)
	if got.code != 2 || !strings.Contains(got.stderr, "connection refused") {
		t.Errorf("without an API server: %+v", got)
	}
}

// limitedRights checks that the drivers' answers replace the requests that the user has no right to make.
func (c *checked) limitedRights(t *testing.T) {
	t.Helper()
	user, err := c.UserConfig("viewer")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, viewer := c.kubeconfigOf(t, user), rbacv1.Subject{Kind: rbacv1.UserKind, Name: "viewer"}
	core, list := []string{""}, []string{"list"}
	c.bind(t, "viewer", viewer,
		rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, Verbs: list},
		rbacv1.PolicyRule{APIGroups: core, Resources: []string{"pods"}, Verbs: list})
	c.says(t, kubeconfig, 1, `cannot create resource "pods/exec"`, "right to get csidrivers.storage.k8s.io",
		"right to list nodes", "Access node is not known to work")
	c.bind(t, "executor", viewer,
		rbacv1.PolicyRule{APIGroups: core, Resources: []string{"pods/exec"}, Verbs: []string{"create", "get"}})
	c.says(t, kubeconfig, 0, "it works on 1 of 1 node", "right to get the URL /metrics", "The installed driver works.")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// damage breaks one thing for each check of an installed driver.
func (c *checked) damage(t *testing.T, node *fakeCluster) {
	t.Helper()
	ctx, now := t.Context(), metav1.DeleteOptions{}
	node.setAnswer("driver", status.Node{Access: &status.Access{Reason: "forbidden; do this"}})
	c.patchDaemonSet(t, 0)
	bindings := c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	must(t, bindings.Delete(ctx, "attributes.fsuser.csi.io", now))
	must(t, bindings.Delete(ctx, "attributes-of-templates.fsuser.csi.io", now))
	must(t, c.StorageV1().CSINodes().Delete(ctx, nodeaccess.Node, now))
	for name, os := range map[string]string{"fargate-1": "linux", "windows-1": "windows"} {
		meta := metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": os}}
		_, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: meta}, metav1.CreateOptions{})
		must(t, err)
	}
	_, err := c.StorageV1().CSIDrivers().Patch(ctx, driverName, types.MergePatchType,
		[]byte(`{"spec": {"podInfoOnMount": false}}`), metav1.PatchOptions{})
	must(t, err)
	c.makeQuota(t, metav1.NamespaceSystem)
	c.makeOpenShift(t)
}

func (c *checked) expectDamage(t *testing.T) {
	t.Helper()
	const again = "install the driver again"
	c.expect(t, c.kubeconfig, 1, lines(head,
		refusal("driver", "DaemonSet fsuser-csi/fsuser-csi: 0 of 1 pods are ready",
			"kubectl -n fsuser-csi describe daemonset,pods"),
		goodVersion, goodImpersonation, goodAuthorizer, goodMutating, goodValidating,
		refusal("quota", "namespace fsuser-csi has no ResourceQuota for the priority class system-node-critical",
			"install with --set resourceQuota.enabled=true"),
		refusal("SecurityContextConstraints", `system:serviceaccount:fsuser-csi:fsuser-csi may not use "privileged"`,
			"install with --set openshift.securityContextConstraint=true"),
		refusal("CSIDriver", "podInfoOnMount is not true", again),
		refusal("driver's policies", "there is no binding of attributes.fsuser.csi.io", again),
		refusal("registration", "0 of 2 Linux nodes; no pod of the driver on fargate-1; a pod of the driver, but not "+
			"registered, on node-1", "kubectl -n fsuser-csi describe pods"),
		refusal("driver's access", "it works on 0 of 1 node", "node node-1: forbidden; do this"),
		"Access node works in this cluster: install with --set access=node,resourceQuota.enabled=true,"+
			"openshift.securityContextConstraint=true"))
}

// moreDamage shows the other results of the same checks.
func (c *checked) moreDamage(t *testing.T, node *fakeCluster) {
	t.Helper()
	ctx, now := t.Context(), metav1.DeleteOptions{}
	node.setAnswer("driver", status.Node{})
	c.makeQuota(t, nodeaccess.System)
	must(t, c.AdmissionregistrationV1().MutatingAdmissionPolicies().Delete(ctx, "declare-references.fsuser.csi.io", now))
	must(t, c.StorageV1().CSIDrivers().Delete(ctx, driverName, now))
	c.bind(t, "use-privileged", rbacv1.Subject{Kind: rbacv1.GroupKind, Name: "system:serviceaccounts:fsuser-csi"},
		rbacv1.PolicyRule{
			APIGroups: []string{sccGroup}, Resources: []string{"securitycontextconstraints"},
			ResourceNames: []string{"privileged"}, Verbs: []string{"use"},
		})
	c.says(t, c.kubeconfig, 1,
		"namespace fsuser-csi has a ResourceQuota for the priority class system-node-critical",
		`system:serviceaccount:fsuser-csi:fsuser-csi may use "privileged"`,
		"the cluster has no CSIDriver fsuser.csi.io", "there is no policy declare-references.fsuser.csi.io",
		"it works on 0 of 1 node; node node-1: the driver does not know yet")
}

// makeQuota creates a ResourceQuota for a cluster in which an admission plugin limits a priority class.
func (c *checked) makeQuota(t *testing.T, namespace string) {
	t.Helper()
	scope := corev1.ScopedResourceSelectorRequirement{
		ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn,
		Values: []string{"system-node-critical"},
	}
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "critical"}}
	quota.Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{scope}}
	_, err := c.CoreV1().ResourceQuotas(namespace).Create(t.Context(), quota, metav1.CreateOptions{})
	must(t, err)
}

// makeOpenShift creates the API group of OpenShift's SecurityContextConstraints.
func (c *checked) makeOpenShift(t *testing.T) {
	t.Helper()
	client, err := dynamic.NewForConfig(c.AdminConfig())
	if err != nil {
		t.Fatal(err)
	}
	definition := &unstructured.Unstructured{}
	if err := definition.UnmarshalJSON([]byte(`{
  "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
  "metadata": {"name": "securitycontextconstraints.security.openshift.io"},
  "spec": {
    "group": "security.openshift.io", "scope": "Cluster",
    "names": {"plural": "securitycontextconstraints", "kind": "SecurityContextConstraints"},
    "versions": [{"name": "v1", "served": true, "storage": true,
      "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]
  }
}`)); err != nil {
		t.Fatal(err)
	}
	definitions := client.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	if _, err := definitions.Create(t.Context(), definition, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the API group", func() bool {
		_, err := c.Discovery().RESTClient().Get().AbsPath("/apis/security.openshift.io/v1").DoRaw(context.Background())
		return err == nil
	})
}
