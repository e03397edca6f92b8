// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	versionutil "k8s.io/apimachinery/pkg/util/version"
)

const (
	driverName       = "fsuser.csi.io"
	serviceAccount   = "fsuser-csi"
	defaultNamespace = "fsuser-csi"
	declarePolicy    = "declare-references.fsuser.csi.io"
	admissionPath    = "/apis/admissionregistration.k8s.io/v1"
	csiDriverPath    = "/apis/storage.k8s.io/v1/csidrivers/" + driverName
	sccGroup         = "security.openshift.io"

	ownAccess     = "driver's access"
	useNamespaces = "install with --set access=namespaces"
	installAgain  = "install the driver again"
)

// checks returns all checks, in the order of the output. checkDriver is the first one, because the others use its
// result.
func checks() []check {
	return []check{
		{"driver", everyAccess, checkDriver},
		{"Kubernetes version", accessNode, checkVersion},
		{"constrained impersonation", accessNode, checkImpersonation},
		{"Node authorizer", accessNode, checkNodeAuthorizer},
		{"mutating policies", accessNode, checkMutatingPolicies},
		{"validating policies", everyAccess, checkValidatingPolicies},
		{"quota", everyAccess, checkQuota},
		{"SecurityContextConstraints", everyAccess, checkSCC},
		{"CSIDriver", installed, checkCSIDriver},
		{"driver's policies", installed, checkPolicies},
		{"registration", installed, checkRegistration},
		{ownAccess, installed, checkOwnAccess},
	}
}

// checkDriver finds the driver's DaemonSet and CSIDriver.
func checkDriver(ctx context.Context, i *inspection) finding {
	i.csiDriver, i.csiDriverErr = read[storagev1.CSIDriver](ctx, i.cluster, csiDriverPath, "")
	path := "/apis/apps/v1/daemonsets"
	if i.driverNamespace != "" {
		path = "/apis/apps/v1/namespaces/" + i.driverNamespace + "/daemonsets"
	}
	all, err := read[appsv1.DaemonSetList](ctx, i.cluster, path, driverLabel)
	switch {
	case err != nil:
		return notKnown(err, "list daemonsets.apps")
	case len(all.Items) == 0 && i.csiDriverErr == nil:
		return isNot("there is the CSIDriver "+driverName+", but no DaemonSet with the label "+driverLabel,
			"install the driver, or correct --driver-namespace")
	case len(all.Items) == 0:
		return isOK("not installed")
	}
	i.daemonSet = &all.Items[0]
	meta, status := i.daemonSet.ObjectMeta, i.daemonSet.Status
	found := fmt.Sprintf("DaemonSet %s/%s: %d of %d pods are ready", meta.Namespace, meta.Name, status.NumberReady,
		status.DesiredNumberScheduled)
	if status.ObservedGeneration < meta.Generation || status.NumberReady < status.DesiredNumberScheduled {
		return isNot(found, "kubectl -n "+meta.Namespace+" describe daemonset,pods")
	}
	return isOK(found)
}

// namespaceOfDriver returns the namespace of the driver, or the namespace of a future installation.
func (i *inspection) namespaceOfDriver() string {
	switch {
	case i.daemonSet != nil:
		return i.daemonSet.Namespace
	case i.driverNamespace != "":
		return i.driverNamespace
	}
	return defaultNamespace
}

// installed reports whether the driver is installed.
func (i *inspection) installed() bool { return i.daemonSet != nil || i.csiDriverErr == nil }

// access returns the --access of the installed driver, or "".
func (i *inspection) access() string {
	if i.daemonSet == nil {
		return ""
	}
	for _, container := range i.daemonSet.Spec.Template.Spec.Containers {
		for _, arg := range container.Args {
			if value, is := strings.CutPrefix(arg, "--access="); is {
				return value
			}
		}
	}
	return "node"
}

func checkVersion(_ context.Context, i *inspection) finding {
	is, err := versionutil.ParseGeneric(i.version.GitVersion)
	if err != nil {
		return finding{Result: resultUnknown, Found: "the API server does not say its version"}
	}
	found := i.version.GitVersion
	emulated, err := versionutil.ParseGeneric(i.version.EmulationMajor + "." + i.version.EmulationMinor)
	if err == nil && (emulated.Major() != is.Major() || emulated.Minor() != is.Minor()) {
		is, found = emulated, found+" as "+emulated.String()
	}
	if is.LessThan(versionutil.MajorMinor(1, 36)) {
		return isNot(found+"; access node needs 1.36", useNamespaces)
	}
	return isOK(found)
}

// checkImpersonation searches the metrics of the API server for the feature gate of KEP-5284.
func checkImpersonation(ctx context.Context, i *inspection) finding {
	metrics, err := i.client.Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return notKnown(err, "get the URL /metrics of the API server; the feature is on by default since 1.36")
	}
	for line := range strings.Lines(string(metrics)) {
		if !strings.HasPrefix(line, `kubernetes_feature_enabled{name="ConstrainedImpersonation"`) {
			continue
		}
		if strings.HasSuffix(strings.TrimSpace(line), " 1") {
			return isOK("the feature is on")
		}
		return isNot("the feature ConstrainedImpersonation is off", useNamespaces)
	}
	return isNot("the API server does not know the feature ConstrainedImpersonation", useNamespaces)
}

// checkNodeAuthorizer checks the rights of a node. The node and the Secret need not exist: the Node authorizer permits
// any node to read the Node of its own name. It refuses a Secret that no pod on the node declares, with a reason that
// only the Node authorizer gives.
func checkNodeAuthorizer(ctx context.Context, i *inspection) finding {
	const node = "fsuser-csi-check"
	asNode := func(resource authorizationv1.ResourceAttributes) authorizationv1.SubjectAccessReviewSpec {
		resource.Verb, resource.Version = "get", "v1"
		return authorizationv1.SubjectAccessReviewSpec{
			User: "system:node:" + node, Groups: []string{"system:nodes", "system:authenticated"}, ResourceAttributes: &resource,
		}
	}
	own, err := i.mayDo(ctx, asNode(authorizationv1.ResourceAttributes{Resource: "nodes", Name: node}))
	if err != nil {
		return notKnown(err, "create subjectaccessreviews.authorization.k8s.io")
	}
	undeclared, err := i.mayDo(ctx, asNode(authorizationv1.ResourceAttributes{
		Resource: "secrets", Namespace: metav1.NamespaceSystem, Name: "fsuser-csi-check-undeclared",
	}))
	switch {
	case err != nil:
		return notKnown(err, "create subjectaccessreviews.authorization.k8s.io")
	case !own.Status.Allowed:
		return isNot("a node may not read its own Node: the API server has no Node authorizer", useNamespaces)
	case undeclared.Status.Allowed:
		return isNot("a node may read a Secret that no pod on it declares, so each node can read every Secret",
			"remove the rule that allows it, or "+useNamespaces)
	case !strings.Contains(undeclared.Status.Reason, "no relationship found between node"):
		return finding{Result: resultUnknown, Found: fmt.Sprintf("a node may not read a Secret that no pod on it declares, "+
			"but the reason is not the Node authorizer's: %q", undeclared.Status.Reason)}
	}
	return isOK("a node may read only what its pods declare")
}

// checkPolicyAPI checks that the API server has a kind of policy in version v1.
func (i *inspection) checkPolicyAPI(ctx context.Context, resource, remedy string) finding {
	all, err := read[metav1.APIResourceList](ctx, i.cluster, admissionPath, "")
	if err != nil {
		return notKnown(err, "get the URL "+admissionPath)
	}
	if slices.ContainsFunc(all.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }) {
		return isOK("admissionregistration.k8s.io/v1 has " + resource)
	}
	return isNot("admissionregistration.k8s.io/v1 has no "+resource, remedy)
}

func checkMutatingPolicies(ctx context.Context, i *inspection) finding {
	return i.checkPolicyAPI(ctx, "mutatingadmissionpolicies", useNamespaces+", and write csi.readOnly: true in volumes")
}

func checkValidatingPolicies(ctx context.Context, i *inspection) finding {
	return i.checkPolicyAPI(ctx, "validatingadmissionpolicies", "install with --set validate.enabled=false")
}

// checkQuota checks the ResourceQuota of the driver's namespace: if an admission plugin limits a priority class, pods
// of that class require a ResourceQuota in their namespace that names the class.
func checkQuota(ctx context.Context, i *inspection) finding {
	namespace, class := i.namespaceOfDriver(), "system-node-critical"
	if i.daemonSet != nil {
		class = i.daemonSet.Spec.Template.Spec.PriorityClassName
	}
	all, err := read[corev1.ResourceQuotaList](ctx, i.cluster, "/api/v1/resourcequotas", "")
	if err != nil {
		return notKnown(err, "list resourcequotas")
	}
	limited, has := strings.Contains(i.version.GitVersion, "-gke."), false
	for _, quota := range all.Items {
		if namesPriorityClass(quota, class) {
			limited, has = true, has || quota.Namespace == namespace
		}
	}
	switch {
	case namespace == metav1.NamespaceSystem || !limited || class == "":
		return isOK(fmt.Sprintf("the priority class %q needs no ResourceQuota in namespace %s", class, namespace))
	case has:
		return isOK(fmt.Sprintf("namespace %s has a ResourceQuota for the priority class %s", namespace, class))
	}
	i.values = append(i.values, "resourceQuota.enabled=true")
	if i.daemonSet == nil {
		return isOK(fmt.Sprintf("namespace %s will need a ResourceQuota for the priority class %s", namespace, class))
	}
	return isNot(fmt.Sprintf("namespace %s has no ResourceQuota for the priority class %s", namespace, class),
		"install with --set resourceQuota.enabled=true")
}

func namesPriorityClass(quota corev1.ResourceQuota, class string) bool {
	if quota.Spec.ScopeSelector == nil {
		return false
	}
	for _, r := range quota.Spec.ScopeSelector.MatchExpressions {
		if r.ScopeName == corev1.ResourceQuotaScopePriorityClass && slices.Contains(r.Values, class) {
			return true
		}
	}
	return false
}

// checkSCC checks the rights on OpenShift, where the driver's service account must have the right to use a
// SecurityContextConstraint that allows privileged pods.
func checkSCC(ctx context.Context, i *inspection) finding {
	_, err := read[metav1.APIResourceList](ctx, i.cluster, "/apis/"+sccGroup+"/v1", "")
	if apierrors.IsNotFound(err) {
		return isOK("the cluster has none")
	}
	if err != nil {
		return notKnown(err, "get the URL /apis/"+sccGroup+"/v1")
	}
	namespace := i.namespaceOfDriver()
	user := "system:serviceaccount:" + namespace + ":" + serviceAccount
	may, err := i.mayDo(ctx, authorizationv1.SubjectAccessReviewSpec{
		User: user, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: namespace, Verb: "use", Group: sccGroup, Resource: "securitycontextconstraints", Name: "privileged",
		},
	})
	switch {
	case err != nil:
		return notKnown(err, "create subjectaccessreviews.authorization.k8s.io")
	case may.Status.Allowed:
		return isOK(user + ` may use "privileged"`)
	}
	i.values = append(i.values, "openshift.securityContextConstraint=true")
	if i.daemonSet == nil {
		return isOK(user + ` will need the right to use "privileged"`)
	}
	return isNot(user+` may not use "privileged"`, "install with --set openshift.securityContextConstraint=true")
}

func checkCSIDriver(_ context.Context, i *inspection) finding {
	d := i.csiDriver
	switch {
	case apierrors.IsNotFound(i.csiDriverErr):
		return isNot("the cluster has no CSIDriver "+driverName, installAgain)
	case i.csiDriverErr != nil:
		return notKnown(i.csiDriverErr, "get csidrivers.storage.k8s.io")
	case d.Spec.PodInfoOnMount == nil || !*d.Spec.PodInfoOnMount:
		return isNot("podInfoOnMount is not true", installAgain)
	case !slices.Contains(d.Spec.VolumeLifecycleModes, storagev1.VolumeLifecycleEphemeral):
		return isNot("volumeLifecycleModes has no Ephemeral", "delete the CSIDriver, and "+installAgain)
	}
	return isOK(driverName)
}

// policyList is a list of policies, or of their bindings.
type policyList struct {
	Items []struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			PolicyName string `json:"policyName"` // set in a binding
		} `json:"spec"`
	} `json:"items"`
}

// checkPolicies checks that the policy that completes the driver's volumes exists, and that each policy of the driver
// has a binding, without which the policy has no effect.
func checkPolicies(ctx context.Context, i *inspection) finding {
	var names, unbound []string
	for _, kind := range []string{"mutating", "validating"} {
		policies, err := read[policyList](ctx, i.cluster, admissionPath+"/"+kind+"admissionpolicies", driverLabel)
		if apierrors.IsNotFound(err) {
			continue // The API server has no such policies.
		}
		if err != nil {
			return notKnown(err, "list "+kind+"admissionpolicies.admissionregistration.k8s.io")
		}
		bindings, err := read[policyList](ctx, i.cluster, admissionPath+"/"+kind+"admissionpolicybindings", "")
		if err != nil {
			return notKnown(err, "list "+kind+"admissionpolicybindings.admissionregistration.k8s.io")
		}
		if kind == "mutating" && !policies.has(declarePolicy) {
			return isNot("there is no policy "+declarePolicy, installAgain)
		}
		for _, p := range policies.Items {
			names = append(names, p.Name)
			if !bindings.bind(p.Name) {
				unbound = append(unbound, p.Name)
			}
		}
	}
	if len(unbound) > 0 {
		return isNot("there is no binding of "+strings.Join(unbound, ", "), installAgain)
	}
	return isOK(strings.Join(names, ", "))
}

func (l policyList) has(policy string) bool {
	for _, p := range l.Items {
		if p.Name == policy {
			return true
		}
	}
	return false
}

func (l policyList) bind(policy string) bool {
	for _, b := range l.Items {
		if b.Spec.PolicyName == policy {
			return true
		}
	}
	return false
}

// checkRegistration checks that kubelet has registered the driver on each Linux node with a pod of the driver. The
// DaemonSet excludes the other nodes.
func checkRegistration(ctx context.Context, i *inspection) finding {
	nodes, err := read[corev1.NodeList](ctx, i.cluster, "/api/v1/nodes", "kubernetes.io/os=linux")
	if err != nil {
		return notKnown(err, "list nodes")
	}
	csiNodes, err := read[storagev1.CSINodeList](ctx, i.cluster, "/apis/storage.k8s.io/v1/csinodes", "")
	if err != nil {
		return notKnown(err, "list csinodes.storage.k8s.io")
	}
	pods, err := i.drivers(ctx)
	if err != nil {
		return notKnown(err, "list pods")
	}
	var missing, excluded []string
	for _, n := range nodes.Items {
		switch {
		case registered(csiNodes.Items, n.Name):
		case slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == n.Name }):
			missing = append(missing, n.Name)
		default:
			excluded = append(excluded, n.Name)
		}
	}
	found := fmt.Sprintf("%d of %s", len(nodes.Items)-len(missing)-len(excluded), count(len(nodes.Items), "Linux node"))
	if len(excluded) > 0 {
		found += "; no pod of the driver on " + strings.Join(excluded, ", ")
	}
	if len(missing) > 0 {
		return isNot(found+"; a pod of the driver, but not registered, on "+strings.Join(missing, ", "),
			"kubectl -n "+i.namespaceOfDriver()+" describe pods")
	}
	return isOK(found)
}

func registered(csiNodes []storagev1.CSINode, node string) bool {
	isOurs := func(d storagev1.CSINodeDriver) bool { return d.Name == driverName }
	return slices.ContainsFunc(csiNodes, func(n storagev1.CSINode) bool {
		return n.Name == node && slices.ContainsFunc(n.Spec.Drivers, isOurs)
	})
}

// checkOwnAccess asks the driver of each node whether its access works.
func checkOwnAccess(ctx context.Context, i *inspection) finding {
	pods, err := i.drivers(ctx)
	if err != nil {
		return notKnown(err, "list pods")
	}
	answers, errs := i.ask(ctx, pods)
	var refused, open []string
	for n, pod := range pods {
		access := answers[n].Access
		switch {
		case errs[n] != nil:
			open = append(open, fmt.Sprintf("node %s: %v", pod.Spec.NodeName, errs[n]))
		case access == nil:
			open = append(open, fmt.Sprintf("node %s: the driver does not know yet", pod.Spec.NodeName))
		case !access.Ready:
			refused = append(refused, fmt.Sprintf("node %s: %s", pod.Spec.NodeName, access.Reason))
		}
	}
	found := fmt.Sprintf("it works on %d of %s", len(pods)-len(refused)-len(open), count(len(pods), "node"))
	switch {
	case len(refused) > 0:
		return isNot(found, strings.Join(refused, "; "))
	case len(open) > 0 || len(pods) == 0:
		return finding{Result: resultUnknown, Found: strings.Join(append([]string{found}, open...), "; ")}
	}
	return isOK(found)
}
