// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

func TestManifestsAreMadeFromTheChart(t *testing.T) {
	for _, m := range Manifests() {
		t.Run(m.File, func(t *testing.T) {
			want, err := m.Render(t.Context(), ".")
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(m.File)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is not what the chart makes now; run: make manifests", m.File)
			}
		})
	}
}

func TestLint(t *testing.T) {
	for _, access := range []string{"node", "namespaces", "cluster"} {
		if _, err := helm(t.Context(), "lint", "--strict", "chart", "--set", "access="+access); err != nil {
			t.Error(err)
		}
	}
}

func TestValuesThatTheSchemaRefuses(t *testing.T) {
	for _, set := range []string{
		"access=everything", "access=", "access=Node",
		"kubeletRootDir=var/lib/kubelet", "kubeletRootDir=/var/lib/kubelet/", "kubeletRootDir=/",
		"kubeletRootDir=/var/../etc", "kubeletRootDir=/var//lib", "kubeletRootDir=/a:b",
		"kubeletRootDir=/" + strings.Repeat("k", 60),
		"nameOverride=A", "fullnameOverride=a.b", "fullnameOverride=" + strings.Repeat("a", 34),
		`commonLabels.app\.kubernetes\.io/name=a`, `podLabels.helm\.sh/chart=a`, "commonLabels.a=1", "commonAnnotations.a=1",
		"serviceAccount=null", "serviceAccount.create=some", "serviceAccount.name=A", "serviceAccount.token=true",
		"rbac=null", "rbac.install=true",
		"image.digest=sha256:12", "image.digest=latest", "image.pullPolicy=Sometimes", "image.repository=", "image.tag=a/b",
		"image.repository=a:1", "image.repository=/a", "image.registry=", "image.registry=docker",
		"image.registry=example.com/", "image.registry=a.b/c",
		"image.registry=null",
		"logLevel=6", "logLevel=high", "logFormat=yaml", "logFormat=null", "httpPort=0", "updateStrategy.type=Recreate",
		"updateStrategy.rollingUpdate.maxUnavailable=0", "updateStrategy.rollingUpdate.maxUnavailable=0%",
		"updateStrategy.rollingUpdate.maxUnavailable=many", "updateStrategy.rollingUpdate.maxSurge=1",
		"updateStrategy=null", "limits=null", "limits.maxVolumes=0", "limits.maxNodeBytes=1Gi", "limits.podShare=101",
		"limits.maxMessageBytes=1000", "limits.maxOpenFiles=63", "limits.watchDuration=1",
		"extraEnv=a", "extraEnv[0].value=a", "extraEnv[0].name=NODE_NAME", "extraVolumes={a}", "extraVolumeMounts={a}",
		"podSecurityContext.runAsNonRoot=true", "startupProbe.periodSeconds=0", "livenessProbe.httpGet.path=/",
		"readinessProbe.enabled=false", "daemonSetAnnotations.a=1", "podAnnotations.a=1",
		"fsUser.enabled=maybe", "fsUser.default=0", "validate.enabled=2", "allow.enabled=3", "allow.uids={root}",
		"allow.uids={-1}", "allow.uids={1-}",
		"allow.gids={01}", "allow.secrets={a*b}", "allow.secrets={A}", "allow.configMaps=all", "validate.allow=x",
		"validate.templates=Audit", "extraArgs={node}", "extraArgs={--seccomp=false,--state-dir=/run/fsuser.csi.io/other}",
		"metrics.podMonitor.interval=soon", "metrics.serviceMonitor.interval=1", "metrics.prometheusRule.groups={}",
		"grafanaDashboard.namespace=A", "grafanaDashboard.labels.a=1", "grafanaDashboard.folder=a",
		"noSuchValue=1", "image.name=x",
		"resourceQuota.enabled=maybe", "resourceQuota.pods=5", "openshift.securityContextConstraint=privileged",
		"openshift.enabled=true",
		"selinux.context=container_file_t", "selinux.context=a:b:c:s0 d", "selinux.label=a:b:c", "networkPolicy.enabled=some",
		"networkPolicy.from=all", "networkPolicy.from[0].pods=x", "networkPolicy.ingress={}",
		"resources.limits.memory=1.5Gi", "resources.limits.memory=1e9", "resources.limits.memory=0",
		"helmTester=null", "helmTester.image=", "helmTester.enabled=some",
		"flowSchema.enabled=some", "flowSchema.priorityLevel=", "flowSchema.priorityLevel=null",
		"flowSchema.priorityLevel=exempt", "flowSchema.priorityLevel=A", "flowSchema.precedence=1",
	} {
		if _, err := Template(t.Context(), ".", "--set", set); err == nil {
			t.Errorf("--set %s was taken", set)
		} else if !strings.Contains(err.Error(), "schema") {
			t.Errorf("--set %s: %v; want an error of the schema", set, err)
		}
	}
}

func TestOldKubernetes(t *testing.T) {
	for _, test := range []struct {
		set []string
		ok  bool
	}{
		{[]string{"access=node"}, false},
		{[]string{"access=namespaces"}, true},
		{[]string{"access=cluster"}, true},
		{[]string{"access=namespaces", "fsUser.enabled=true"}, false},
		{[]string{"access=namespaces", "validate.enabled=true", "allow.enabled=true"}, true},
	} {
		_, err := Template(t.Context(), ".", "--kube-version", "1.35.9", "--set", strings.Join(test.set, ","))
		if test.ok != (err == nil) {
			t.Errorf("Kubernetes 1.35 and %s: %v", test.set, err)
		}
		if err != nil && !strings.Contains(err.Error(), "needs Kubernetes 1.36") {
			t.Errorf("Kubernetes 1.35 and %s: %v; want an error that says which one is needed", test.set, err)
		}
	}
	_, err := Template(t.Context(), ".", "--kube-version", "1.35.9")
	if remedy := "--set access=namespaces"; err == nil || !strings.Contains(err.Error(), remedy) {
		t.Errorf("Kubernetes 1.35: error %v; want the remedy %s", err, remedy)
	}
	for _, version := range []string{"1.34.9", "v1.34.3-gke.100"} {
		_, err := Template(t.Context(), ".", "--kube-version", version, "--set", "access=namespaces")
		if want := "chart requires kubeVersion: >=1.35.0-0"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Kubernetes %s: error %v; want %s", version, err, want)
		}
	}
	// The versions of vendors have suffixes.
	if _, err := Template(t.Context(), ".", "--kube-version", "v1.36.2-gke.100"); err != nil {
		t.Error(err)
	}
}

// TestContract checks the requirements of kubelet and the API server, for each kind of access and for values that are
// not the default.
func TestContract(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
	}{
		{"node", nil},
		{"namespaces", []string{"--set", "access=namespaces"}},
		{"cluster", []string{"--set", "access=cluster"}},
		{"another kubelet root", []string{"--set", "kubeletRootDir=/data/k0s/kubelet"}},
		{"all optional parts", []string{"--set", strings.Join([]string{
			"metrics.podMonitor.enabled=true", "metrics.podMonitor.interval=30s", "metrics.podMonitor.labels.release=p",
			"metrics.prometheusRule.enabled=true", "grafanaDashboard.enabled=true",
			"imagePullSecrets[0].name=pull", "nodeSelector.pool=a", "podLabels.team=a", "podAnnotations.note=a", "logLevel=4",
			"updateStrategy.rollingUpdate.maxUnavailable=1", "limits.maxVolumeBytes=1048576", "extraArgs={--seccomp=false}",
			"commonLabels.team=a", "commonAnnotations.note=a", "daemonSetAnnotations.note=a",
			"namespace.create=true", "allow.enabled=true", "allow.secrets={tls}",
			"networkPolicy.enabled=true", "networkPolicy.from[0].ipBlock.cidr=10.0.0.0/8",
			"resourceQuota.enabled=true", "openshift.securityContextConstraint=true",
		}, ",")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects := template(t, test.args...)
			checkCSIDriver(t, objects)
			checkDaemonSet(t, objects)
			checkRules(t, objects)
			for _, o := range objects.all {
				if ns := o.GetNamespace(); ns != "" && ns != Namespace {
					t.Errorf("%s %s is in namespace %s", o.GetKind(), o.GetName(), ns)
				}
			}
		})
	}
}

func checkCSIDriver(t *testing.T, objects objects) {
	t.Helper()
	var d storagev1.CSIDriver
	objects.find(t, "CSIDriver", "fsuser.csi.io", &d)
	s := d.Spec
	const profile = "security.openshift.io/csi-ephemeral-volume-profile"
	for what, ok := range map[string]bool{
		"attachRequired is false": s.AttachRequired != nil && !*s.AttachRequired,
		"podInfoOnMount is true":  s.PodInfoOnMount != nil && *s.PodInfoOnMount,
		"volumeLifecycleModes is Ephemeral": slices.Equal(s.VolumeLifecycleModes,
			[]storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}),
		"fsGroupPolicy is None": s.FSGroupPolicy != nil &&
			*s.FSGroupPolicy == storagev1.NoneFSGroupPolicy,
		"requiresRepublish is true":                  s.RequiresRepublish != nil && *s.RequiresRepublish,
		"no tokens are asked for":                    len(s.TokenRequests) == 0,
		"no NodeGetInfo by the clock":                s.NodeAllocatableUpdatePeriodSeconds == nil,
		"OpenShift's profile is set":                 d.Labels[profile] == "restricted",
		"kubelet passes no SELinux context in flags": s.SELinuxMount == nil || !*s.SELinuxMount,
	} {
		if !ok {
			t.Errorf("CSIDriver: not so: %s", what)
		}
	}
}

func checkDaemonSet(t *testing.T, objects objects) {
	t.Helper()
	var ds appsv1.DaemonSet
	objects.find(t, "DaemonSet", "fsuser-csi", &ds)
	rolling := ds.Spec.UpdateStrategy.RollingUpdate
	if ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || rolling.MaxSurge.String() != "0" ||
		rolling.MaxUnavailable.String() == "0" {
		t.Errorf("updateStrategy is %+v; kubelet can't have two drivers of one name", ds.Spec.UpdateStrategy)
	}
	pod := ds.Spec.Template.Spec
	for what, ok := range map[string]bool{
		"one container":                    len(pod.Containers) == 1 && len(pod.InitContainers) == 0,
		"nothing of the host but its root": !pod.HostNetwork && !pod.HostPID && !pod.HostIPC,
		"tolerates everything": slices.Equal(pod.Tolerations,
			[]corev1.Toleration{{Operator: corev1.TolerationOpExists}}),
		"Linux only":    pod.NodeSelector["kubernetes.io/os"] == "linux",
		"node-critical": pod.PriorityClassName == "system-node-critical",
		"30 s to end":   *pod.TerminationGracePeriodSeconds == 30,
		"its token":     pod.ServiceAccountName == "fsuser-csi" && *pod.AutomountServiceAccountToken,
	} {
		if !ok {
			t.Errorf("DaemonSet: not so: %s", what)
		}
	}
	var account corev1.ServiceAccount
	objects.find(t, "ServiceAccount", "fsuser-csi", &account)
	if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
		t.Error("ServiceAccount: another pod with it would get its token")
	}

	c := pod.Containers[0]
	if sc := c.SecurityContext; !*sc.Privileged || !*sc.ReadOnlyRootFilesystem || *sc.RunAsUser != 0 {
		t.Errorf("securityContext is %+v", sc)
	}
	if _, limited := c.Resources.Limits[corev1.ResourceMemory]; limited || c.Resources.Requests.Cpu().String() != "10m" ||
		c.Resources.Requests.Memory().String() != "32Mi" {
		t.Errorf("resources are %+v", c.Resources)
	}
	for name, probe := range map[string]*corev1.Probe{"/healthz": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet.Path != name || probe.HTTPGet.Port.StrVal != c.Ports[0].Name ||
			probe.HTTPGet.Host != "" {
			t.Errorf("probe of %s is %+v", name, probe)
		}
	}
	if c.StartupProbe == nil || c.StartupProbe.HTTPGet.Path != "/healthz" {
		t.Errorf("startupProbe is %+v", c.StartupProbe)
	}
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.ValueFrom.FieldRef.FieldPath
	}
	wantEnv := map[string]string{
		"NODE_NAME": "spec.nodeName", "POD_IP": "status.podIP",
		"POD_NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name", "POD_UID": "metadata.uid",
	}
	if !maps.Equal(env, wantEnv) {
		t.Errorf("env is %v, want %v", env, wantEnv)
	}
	if address := "--http-address=[$(POD_IP)]:9808"; !slices.Contains(c.Args, address) ||
		c.Ports[0].ContainerPort != 9808 {
		t.Errorf("args %q have no %s", c.Args, address)
	}

	root := ""
	for _, a := range c.Args {
		if value, ok := strings.CutPrefix(a, "--kubelet-root="); ok {
			root = value
		}
	}
	want := map[string]corev1.HostPathType{
		root + "/pods":                  corev1.HostPathDirectory,
		root + "/plugins/fsuser.csi.io": corev1.HostPathDirectoryOrCreate,
		root + "/plugins_registry":      corev1.HostPathDirectory,
		"/run/fsuser.csi.io":            corev1.HostPathDirectoryOrCreate,
	}
	host := map[string]*corev1.HostPathVolumeSource{}
	for _, v := range pod.Volumes {
		if v.HostPath == nil {
			t.Fatalf("volume %s is no hostPath", v.Name)
		}
		host[v.Name] = v.HostPath
		if kind, ok := want[v.HostPath.Path]; !ok || *v.HostPath.Type != kind {
			t.Errorf("hostPath %s of type %s; want %v", v.HostPath.Path, *v.HostPath.Type, want)
		}
	}
	if len(host) != len(want) || len(c.VolumeMounts) != len(want) {
		t.Errorf("%d volumes, %d mounts; want %d of each", len(host), len(c.VolumeMounts), len(want))
	}
	for _, m := range c.VolumeMounts {
		if host[m.Name] == nil || m.MountPath != host[m.Name].Path || m.SubPath != "" {
			t.Errorf("mountPath %s is not the host's path %+v", m.MountPath, host[m.Name])
		}
		if bidirectional := m.MountPropagation != nil; bidirectional != (m.MountPath == root+"/pods") || bidirectional &&
			*m.MountPropagation != corev1.MountPropagationBidirectional {
			t.Errorf("propagation of %s is %v", m.MountPath, m.MountPropagation)
		}
	}
	// This is the longest path of a socket of the driver. The path of a unix socket has at most 107 bytes.
	if longest := root + "/plugins_registry/.fsuser.csi.io-reg.sock"; len(longest) > 107 {
		t.Errorf("%s has %d bytes", longest, len(longest))
	}
}

// checkRules checks that the default access has no rule that reads objects, whether it is bound or not.
func checkRules(t *testing.T, objects objects) {
	t.Helper()
	access := objects.access(t)
	var bound []string
	for _, o := range objects.all {
		if o.GetKind() == "RoleBinding" && o.GetName() != "fsuser-csi-privileged" {
			t.Errorf("RoleBinding %s: namespaces consent by themselves", o.GetName())
		}
		if o.GetKind() == "ClusterRoleBinding" {
			var b rbacv1.ClusterRoleBinding
			convert(t, o, &b)
			bound = append(bound, b.RoleRef.Name)
			if len(b.Subjects) != 1 || b.Subjects[0] != (rbacv1.Subject{Kind: "ServiceAccount", Name: "fsuser-csi",
				Namespace: Namespace}) {
				t.Errorf("%s binds %v", b.Name, b.Subjects)
			}
			if b.RoleRef.Name == "fsuser-csi-reader" && !strings.Contains(b.Name, "danger") {
				t.Errorf("%s does not warn by its name", b.Name)
			}
		}
		if o.GetKind() != "ClusterRole" {
			continue
		}
		var r rbacv1.ClusterRole
		convert(t, o, &r)
		for _, rule := range r.Rules {
			if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") || slices.Contains(rule.APIGroups, "*") {
				t.Errorf("%s has a wildcard: %v", r.Name, rule)
			}
			reads := slices.ContainsFunc(rule.Verbs, func(v string) bool { return v == "get" || v == "list" || v == "watch" })
			ofNodes := slices.Equal(rule.Resources, []string{"nodes"}) && slices.Equal(rule.Verbs, []string{"get"}) &&
				access != "node"
			if reads && r.Name != "fsuser-csi-reader" && !ofNodes {
				t.Errorf("%s reads: %v", r.Name, rule)
			}
		}
	}
	slices.Sort(bound)
	want := map[string][]string{
		"node":       {"fsuser-csi", "fsuser-csi-node"},
		"namespaces": {"fsuser-csi"},
		"cluster":    {"fsuser-csi", "fsuser-csi-reader"},
	}[access]
	if !slices.Equal(bound, want) {
		t.Errorf("access %s binds %v, want %v", access, bound, want)
	}
}

func TestImage(t *testing.T) {
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for set, want := range map[string]string{
		"image.pullPolicy=Always":                      "localhost/fsuser-csi:" + appVersion(t),
		"image.registry=example.com":                   "example.com/fsuser-csi:" + appVersion(t),
		"image.registry=ghcr.io,image.repository=me/a": "ghcr.io/me/a:" + appVersion(t),
		"image.registry=registry:5000,image.tag=2.0":   "registry:5000/fsuser-csi:2.0",
		"image.digest=" + digest:                       "localhost/fsuser-csi@" + digest,
		"image.tag=x,image.digest=" + digest:           "localhost/fsuser-csi@" + digest,
	} {
		var ds appsv1.DaemonSet
		template(t, "--set", set).find(t, "DaemonSet", "fsuser-csi", &ds)
		if got := ds.Spec.Template.Spec.Containers[0].Image; got != want {
			t.Errorf("--set %s: image %s, want %s", set, got, want)
		}
	}
}

// Each policy exists with its bindings if its value is set, and the API server does not evaluate it for unrelated pods.
func TestPoliciesAreValues(t *testing.T) {
	for set, want := range map[string][]string{
		"access=node":                  {"declare-references", "attributes"},
		"access=namespaces":            {"declare-references", "attributes"},
		"validate.enabled=false":       {"declare-references"},
		"validate=null":                {"declare-references"},
		"fsUser.enabled=true":          {"declare-references", "attributes", "fs-user", "fs-user-left-alone"},
		"fsUser=null":                  {"declare-references", "attributes"},
		"allow.enabled=true":           {"declare-references", "attributes", "allow"},
		"allow.uids={5}":               {"declare-references", "attributes"},
		"allow=null,access=namespaces": {"declare-references", "attributes"},
	} {
		got := map[string]bool{}
		bound := map[string]bool{}
		for _, o := range template(t, "--set", set).all {
			name := strings.TrimSuffix(o.GetName(), ".fsuser.csi.io")
			switch o.GetKind() {
			case "MutatingAdmissionPolicy", "ValidatingAdmissionPolicy":
				got[name] = true
				conditions, _, _ := unstructured.NestedSlice(o.Object, "spec", "matchConditions")
				if failure, _, _ := unstructured.NestedString(o.Object, "spec", "failurePolicy"); len(conditions) == 0 ||
					failure == "" {
					t.Errorf("%s: %d matchConditions, failurePolicy %q", name, len(conditions), failure)
				}
			case "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicyBinding":
				policy, _, _ := unstructured.NestedString(o.Object, "spec", "policyName")
				bound[strings.TrimSuffix(policy, ".fsuser.csi.io")] = true
			}
		}
		if !maps.Equal(got, bound) {
			t.Errorf("--set %s: policies %v, bound %v", set, got, bound)
		}
		if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, slices.Sorted(slices.Values(want))) {
			t.Errorf("--set %s: policies %v, want %v", set, names, want)
		}
	}
}

func TestNamespaceLetsPrivilegedPodsIn(t *testing.T) {
	var ns corev1.Namespace
	template(t, "--set", "namespace.create=true").find(t, "Namespace", Namespace, &ns)
	for _, mode := range []string{"enforce", "audit", "warn"} {
		if got := ns.Labels["pod-security.kubernetes.io/"+mode]; got != "privileged" {
			t.Errorf("%s is %q", mode, got)
		}
	}
	if got := ns.Labels["security.openshift.io/scc.podSecurityLabelSync"]; got != "false" {
		t.Errorf("podSecurityLabelSync is %q: OpenShift would set labels of its own", got)
	}
	// helm install has already created the namespace, and refuses a chart that creates it again.
	if template(t).has("Namespace") {
		t.Error("the default makes the namespace")
	}
}

func TestSELinuxContext(t *testing.T) {
	const talos = "system_u:object_r:ephemeral_t:s0"
	for set, want := range map[string][]string{
		"selinux.context=null": nil, "selinux.context=": {"--selinux-context="},
		"selinux.context=" + talos: {"--selinux-context=" + talos},
	} {
		var ds appsv1.DaemonSet
		template(t, "--set", set).find(t, "DaemonSet", "fsuser-csi", &ds)
		var got []string
		for _, arg := range ds.Spec.Template.Spec.Containers[0].Args {
			if strings.HasPrefix(arg, "--selinux-context") {
				got = append(got, arg)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("--set %s: got %q, want %q", set, got, want)
		}
	}
}

func TestNetworkPolicy(t *testing.T) {
	if template(t).has("NetworkPolicy") {
		t.Error("the default has a NetworkPolicy")
	}
	const peer = "networkPolicy.from[0].namespaceSelector.matchLabels.team=monitoring"
	port, tcp := intstr.FromInt32(9900), corev1.ProtocolTCP
	for set, want := range map[string][]networkingv1.NetworkPolicyIngressRule{
		"networkPolicy.enabled=true": nil, // A policy without rules denies all, but a rule without peers would allow all.
		"networkPolicy.enabled=true,httpPort=9900," + peer: {{
			From: []networkingv1.NetworkPolicyPeer{
				{NamespaceSelector: metav1.SetAsLabelSelector(labels.Set{"team": "monitoring"})},
			},
			Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}},
		}},
	} {
		objects := template(t, "--set", set)
		var ds appsv1.DaemonSet
		objects.find(t, "DaemonSet", "fsuser-csi", &ds)
		var policy networkingv1.NetworkPolicy
		objects.find(t, "NetworkPolicy", "fsuser-csi", &policy)
		spec := networkingv1.NetworkPolicySpec{
			PodSelector: *ds.Spec.Selector, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: want,
		}
		if policy.Namespace != Namespace || !equality.Semantic.DeepEqual(policy.Spec, spec) {
			t.Errorf("--set %s: namespace %s, got\n%+v\nwant\n%+v", set, policy.Namespace, policy.Spec, spec)
		}
	}
}

// Before 1.36, Kubernetes has no mutating policies. The chart omits them, and people write csi.readOnly themselves.
func TestNoMutatingPolicyInOldKubernetes(t *testing.T) {
	for _, access := range []string{"namespaces", "cluster"} {
		if template(t, "--set", "access="+access, "--kube-version", "1.35.9").has("MutatingAdmissionPolicy") {
			t.Errorf("access %s: Kubernetes 1.35 gets a MutatingAdmissionPolicy", access)
		}
	}
}

// An expression of more than ten lines is a program, and programs belong in the driver.
func TestExpressionsAreShort(t *testing.T) {
	const maxLines, maxBytes = 10, 10 * 120
	block := regexp.MustCompile(`^( *)(- )?\w*[eE]xpression: >-$`)
	seen := 0
	out, err := Template(t.Context(), ".", "--set", "fsUser.enabled=true,allow.enabled=true")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	for i, line := range lines {
		match := block.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		seen++
		indented := strings.Repeat(" ", len(match[1])+len(match[2])+1)
		n, length := 0, 0
		for _, line := range lines[i+1:] {
			if !strings.HasPrefix(line, indented) {
				break
			}
			n, length = n+1, length+len(strings.TrimSpace(line))
		}
		if n == 0 || n > maxLines || length > maxBytes {
			t.Errorf("an expression of %d lines and %d bytes:\n%s", n, length, strings.Join(lines[max(0, i-1):i+1+n], "\n"))
		}
	}
	if seen == 0 {
		t.Error("no expression was found")
	}
}

// objects are the objects of a rendered chart.
type objects struct{ all []*unstructured.Unstructured }

func template(t *testing.T, args ...string) objects {
	t.Helper()
	out, err := Template(t.Context(), ".", args...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func parse(t *testing.T, manifests []byte) objects {
	t.Helper()
	var all []*unstructured.Unstructured
	for _, document := range bytes.Split(manifests, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(document, &o.Object); err != nil {
			t.Fatalf("%v:\n%s", err, document)
		}
		if len(o.Object) > 0 {
			all = append(all, o)
		}
	}
	return objects{all}
}

func (o objects) find(t *testing.T, kind, name string, into any) {
	t.Helper()
	for _, one := range o.all {
		if one.GetKind() == kind && one.GetName() == name {
			convert(t, one, into)
			return
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
}

func (o objects) has(kind string) bool {
	return slices.ContainsFunc(o.all, func(one *unstructured.Unstructured) bool { return one.GetKind() == kind })
}

// access returns the --access of the driver. The rules must match it.
func (o objects) access(t *testing.T) string {
	t.Helper()
	var ds appsv1.DaemonSet
	o.find(t, "DaemonSet", "fsuser-csi", &ds)
	args := ds.Spec.Template.Spec.Containers[0].Args
	switch {
	case args[0] == "node" && slices.Contains(args, "--access=node"):
		return "node"
	case !slices.Contains(args, "--access=service-account"):
		t.Fatalf("args are %q", args)
	}
	for _, one := range o.all {
		if one.GetKind() == "ClusterRoleBinding" && strings.Contains(one.GetName(), "danger") {
			return "cluster"
		}
	}
	return "namespaces"
}

// convert is strict: a field that the API does not have is an error.
func convert(t *testing.T, from *unstructured.Unstructured, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(from.Object, into, true); err != nil {
		t.Fatalf("%s %s: %v", from.GetKind(), from.GetName(), err)
	}
}

func appVersion(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("chart", "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var chart struct{ AppVersion string }
	if err := yaml.Unmarshal(content, &chart); err != nil {
		t.Fatal(err)
	}
	return chart.AppVersion
}
