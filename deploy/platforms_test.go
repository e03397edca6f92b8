// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

// The chart creates the objects for a platform on that platform, unless a value says otherwise.
func TestPlatformsAreDetected(t *testing.T) {
	gke, openshift := []string{"--kube-version", "v1.36.2-gke.100"}, []string{"--api-versions", "security.openshift.io/v1"}
	for _, test := range []struct {
		platform           []string
		set                string
		quota, roleBinding bool
	}{
		{nil, "logLevel=0", false, false},
		{nil, "resourceQuota.enabled=true", true, false},
		{nil, "openshift.securityContextConstraint=true", false, true},
		{gke, "logLevel=0", true, false},
		{gke, "resourceQuota=null", true, false},
		{gke, "resourceQuota.enabled=false", false, false},
		{openshift, "logLevel=0", false, true},
		{openshift, "openshift=null", false, true},
		{openshift, "openshift.securityContextConstraint=false", false, false},
	} {
		objects := template(t, append(test.platform, "--set", test.set)...)
		if got := objects.has("ResourceQuota"); got != test.quota {
			t.Errorf("%s --set %s: ResourceQuota: %v, want %v", test.platform, test.set, got, test.quota)
		}
		if got := objects.has("RoleBinding"); got != test.roleBinding {
			t.Errorf("%s --set %s: RoleBinding: %v, want %v", test.platform, test.set, got, test.roleBinding)
		}
	}
}

// An API server with GKE's configuration refuses the driver's pods without the quota, and admits them with the quota.
func TestResourceQuota(t *testing.T) {
	config := filepath.Join(t.TempDir(), "admission.yaml")
	if err := os.WriteFile(config, []byte(controlplane.LimitSystemClasses), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--admission-control-config-file=" + config}})
	c.install(t, "node")
	create := func() error {
		pod := podWith("")
		pod.GenerateName, pod.Spec.PriorityClassName, pod.Spec.ServiceAccountName = "driver-", "system-node-critical",
			"fsuser-csi"
		_, err := c.CoreV1().Pods(Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		return err
	}
	if err := create(); err == nil || !strings.Contains(err.Error(), "insufficient quota to match these scopes") {
		t.Fatalf("without a quota: error %v, want one that asks for a quota", err)
	}
	c.create(t, template(t, "--set", "resourceQuota.enabled=true", "--show-only", "templates/resourcequota.yaml"))
	// The controller manager, which does not run here, would do this with a new quota.
	quotas := c.CoreV1().ResourceQuotas(Namespace)
	quota, err := quotas.Get(t.Context(), "fsuser-csi", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	quota.Status = corev1.ResourceQuotaStatus{
		Hard: quota.Spec.Hard, Used: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")},
	}
	if _, err := quotas.UpdateStatus(t.Context(), quota, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, create)
}

// With OpenShift's ClusterRole, the driver's pods may use the privileged constraint in the driver's namespace, and
// nobody else may.
func TestSecurityContextConstraint(t *testing.T) {
	c := startCluster(t)
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:openshift:scc:privileged"},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"security.openshift.io"}, Resources: []string{"securitycontextconstraints"},
			ResourceNames: []string{"privileged"}, Verbs: []string{"use"},
		}},
	}
	if _, err := c.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.install(t, "node", "openshift.securityContextConstraint=true")
	mayUse := func(account, namespace string) bool {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + Namespace + ":" + account,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Group: "security.openshift.io", Resource: "securitycontextconstraints", Name: "privileged", Verb: "use",
				Namespace: namespace,
			},
		}}
		got, err := c.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return got.Status.Allowed
	}
	eventually(t, func() error {
		if !mayUse("fsuser-csi", Namespace) {
			return fmt.Errorf("the driver may not use the constraint")
		}
		return nil
	})
	if mayUse("default", Namespace) {
		t.Error("other pods of the namespace may use the constraint")
	}
	if mayUse("fsuser-csi", apps) {
		t.Error("the driver may use the constraint in another namespace")
	}
}

func TestAffinity(t *testing.T) {
	const term = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution." +
		"nodeSelectorTerms[0].matchExpressions[0]"
	nodes := map[string]labels.Set{
		"any":     {"kubernetes.io/os": "linux"},
		"fargate": {"eks.amazonaws.com/compute-type": "fargate"},
		"virtual": {"type": "virtual-kubelet"},
		"typed":   {"type": "gpu", "eks.amazonaws.com/compute-type": "auto"},
	}
	for set, want := range map[string]string{
		"logLevel=0":    "any typed",
		"affinity=null": "any fargate typed virtual",
		term + ".key=type," + term + ".operator=In," + term + ".values={gpu}": "typed",
	} {
		var ds appsv1.DaemonSet
		template(t, "--set", set).find(t, "DaemonSet", "fsuser-csi", &ds)
		var got []string
		for _, name := range []string{"any", "fargate", "typed", "virtual"} {
			if mayRunOn(t, ds.Spec.Template.Spec.Affinity, nodes[name]) {
				got = append(got, name)
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("--set %s: the driver may run on %s, want %s", set, got, want)
		}
	}
}

// mayRunOn applies the scheduler's rule for expressions with In and NotIn: any term must match, with all its
// expressions.
func mayRunOn(t *testing.T, affinity *corev1.Affinity, node labels.Set) bool {
	t.Helper()
	if affinity == nil {
		return true
	}
	operators := map[corev1.NodeSelectorOperator]selection.Operator{
		corev1.NodeSelectorOpIn: selection.In, corev1.NodeSelectorOpNotIn: selection.NotIn,
	}
	for _, term := range affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		selector := labels.NewSelector()
		for _, e := range term.MatchExpressions {
			requirement, err := labels.NewRequirement(e.Key, operators[e.Operator], e.Values)
			if err != nil {
				t.Fatal(err)
			}
			selector = selector.Add(*requirement)
		}
		if selector.Matches(node) {
			return true
		}
	}
	return false
}
