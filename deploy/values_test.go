// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// daemonSet returns the chart's DaemonSet of this name, with these values.
func daemonSet(t *testing.T, name, set string) appsv1.DaemonSet {
	t.Helper()
	var ds appsv1.DaemonSet
	template(t, "--set", set).find(t, "DaemonSet", name, &ds)
	return ds
}

// Each value of the DaemonSet has its field.
func TestValuesOfTheDaemonSet(t *testing.T) {
	for set, check := range map[string]func(ds appsv1.DaemonSet, pod corev1.PodSpec, c corev1.Container) bool{
		"updateStrategy.type=OnDelete": func(ds appsv1.DaemonSet, _ corev1.PodSpec, _ corev1.Container) bool {
			s := ds.Spec.UpdateStrategy
			return s.Type == appsv1.OnDeleteDaemonSetStrategyType && s.RollingUpdate == nil
		},
		"updateStrategy.rollingUpdate.maxUnavailable=3": func(ds appsv1.DaemonSet, _ corev1.PodSpec,
			_ corev1.Container) bool {
			return ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String() == "3"
		},
		"startupProbe.failureThreshold=7": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return c.StartupProbe.FailureThreshold == 7 && c.StartupProbe.HTTPGet.Path == "/healthz"
		},
		"livenessProbe.timeoutSeconds=7": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return c.LivenessProbe.TimeoutSeconds == 7 && c.LivenessProbe.HTTPGet.Path == "/healthz"
		},
		"readinessProbe=null": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return c.ReadinessProbe.PeriodSeconds == 0 && c.ReadinessProbe.HTTPGet.Path == "/readyz"
		},
		"extraEnv[0].name=GOGC,extraEnv[0].value=a": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return len(c.Env) == 6 && c.Env[5] == corev1.EnvVar{Name: "GOGC", Value: "a"}
		},
		"extraVolumes[0].name=a,extraVolumes[0].configMap.name=b": func(_ appsv1.DaemonSet, pod corev1.PodSpec,
			_ corev1.Container) bool {
			return len(pod.Volumes) == 5 && pod.Volumes[4].ConfigMap.Name == "b"
		},
		"extraVolumeMounts[0].name=a,extraVolumeMounts[0].mountPath=/a": func(_ appsv1.DaemonSet, _ corev1.PodSpec,
			c corev1.Container) bool {
			return len(c.VolumeMounts) == 5 && c.VolumeMounts[4].MountPath == "/a"
		},
		"podSecurityContext.seccompProfile.type=Unconfined": func(_ appsv1.DaemonSet, pod corev1.PodSpec,
			_ corev1.Container) bool {
			return pod.SecurityContext.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined
		},
		"logLevel=4": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Args, "--v=4")
		},
		"logFormat=json": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return slices.Contains(c.Args, "--log-format=json")
		},
		"limits.maxNodeBytes=1073741824,limits.podShare=20": func(_ appsv1.DaemonSet, _ corev1.PodSpec,
			c corev1.Container) bool {
			return slices.Contains(c.Args, "--max-node-bytes=1073741824") && slices.Contains(c.Args, "--pod-share=20")
		},
		"extraArgs={--seccomp=false}": func(_ appsv1.DaemonSet, _ corev1.PodSpec, c corev1.Container) bool {
			return c.Args[len(c.Args)-1] == "--seccomp=false"
		},
		"daemonSetAnnotations.a=b": func(ds appsv1.DaemonSet, _ corev1.PodSpec, _ corev1.Container) bool {
			return ds.Annotations["a"] == "b" && ds.Spec.Template.Annotations["a"] == ""
		},
		"podAnnotations.a=b,podLabels.c=d": func(ds appsv1.DaemonSet, _ corev1.PodSpec, _ corev1.Container) bool {
			pod := ds.Spec.Template
			return pod.Annotations["a"] == "b" && pod.Labels["c"] == "d" && ds.Annotations["a"] == "" && ds.Labels["c"] == ""
		},
		"priorityClassName=a,nodeSelector.b=c": func(_ appsv1.DaemonSet, pod corev1.PodSpec, _ corev1.Container) bool {
			return pod.PriorityClassName == "a" && pod.NodeSelector["b"] == "c"
		},
		"imagePullSecrets[0].name=a,tolerations[0].operator=Exists,tolerations[0].key=b": func(_ appsv1.DaemonSet,
			pod corev1.PodSpec, _ corev1.Container) bool {
			return pod.ImagePullSecrets[0].Name == "a" && len(pod.Tolerations) == 1 && pod.Tolerations[0].Key == "b"
		},
	} {
		ds := daemonSet(t, "fsuser-csi", set)
		if !check(ds, ds.Spec.Template.Spec, ds.Spec.Template.Spec.Containers[0]) {
			t.Errorf("--set %s makes\n%s", set, encode(t, ds))
		}
	}
}

// The pod of helm test must not match the selector of the DaemonSet, whose controller would adopt it. Its volume
// requires no right in the release's namespace.
func TestHelmTest(t *testing.T) {
	for _, access := range []string{"node", "namespaces", "cluster"} {
		objects := templateOfTest(t, "access="+access)
		var pod corev1.Pod
		objects.find(t, "Pod", "fsuser-csi-test", &pod)
		var secret corev1.Secret
		objects.find(t, "Secret", "fsuser-csi-test", &secret)
		ds := daemonSet(t, "fsuser-csi", "access="+access)
		for key, value := range ds.Spec.Selector.MatchLabels {
			if pod.Labels[key] == value {
				t.Errorf("access %s: the pod of the test has the label %s=%s of the driver's pods", access, key, value)
			}
		}
		for _, o := range []metav1.Object{&pod, &secret} {
			if got := o.GetAnnotations()["helm.sh/hook"]; got != "test" {
				t.Errorf("access %s: the hook is %q", access, got)
			}
		}
		csi := pod.Spec.Volumes[0].CSI
		if byKubelet := csi.NodePublishSecretRef != nil; byKubelet != (access == "namespaces") ||
			byKubelet == (csi.VolumeAttributes["secretName"] != "") {
			t.Errorf("access %s: the volume is %+v", access, csi)
		}
	}
	if templateOfTest(t, "helmTester.enabled=false").has("Pod") {
		t.Error("helmTester.enabled=false: there is a pod")
	}
}

// templateOfTest returns the objects including those of helm test.
func templateOfTest(t *testing.T, set string) objects {
	t.Helper()
	out, err := helm(t.Context(), "template", "fsuser-csi", "chart", "--namespace", Namespace, "--kube-version", oldest,
		"--set", set)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

// All objects have the standard labels and the administrator's own. The driver's pods do not have the labels about
// Helm.
func TestLabels(t *testing.T) {
	objects := template(t, "--set", strings.Join([]string{
		"commonLabels.team=a", "commonAnnotations.note=b", "namespace.create=true", "fsUser.enabled=true",
		"allow.enabled=true",
		"networkPolicy.enabled=true", "resourceQuota.enabled=true", "openshift.securityContextConstraint=true",
		"metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true", "grafanaDashboard.enabled=true",
	}, ","))
	kinds := map[string]bool{}
	for _, o := range objects.all {
		kinds[o.GetKind()] = true
		for key, want := range map[string]string{
			"app.kubernetes.io/name": "fsuser-csi", "app.kubernetes.io/instance": "fsuser-csi",
			"app.kubernetes.io/component": "csi-driver", "app.kubernetes.io/version": appVersion(t),
			"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "fsuser-csi-" + appVersion(t), "team": "a",
		} {
			if got := o.GetLabels()[key]; got != want {
				t.Errorf("%s %s: label %s is %q, want %q", o.GetKind(), o.GetName(), key, got, want)
			}
		}
		if got := o.GetAnnotations()["note"]; got != "b" {
			t.Errorf("%s %s: the common annotation is %q", o.GetKind(), o.GetName(), got)
		}
	}
	if len(kinds) != 17 {
		t.Errorf("the chart makes %d kinds of objects, want 17, all but the PodMonitor: %v", len(kinds), kinds)
	}
	var ds appsv1.DaemonSet
	objects.find(t, "DaemonSet", "fsuser-csi", &ds)
	pod := ds.Spec.Template.Labels
	if pod["team"] != "a" || pod["app.kubernetes.io/instance"] != "fsuser-csi" || pod["helm.sh/chart"] != "" {
		t.Errorf("the labels of pods are %v", pod)
	}
	// The selector of a DaemonSet can't be changed.
	if selector := ds.Spec.Selector.MatchLabels; len(selector) != 1 || selector["app.kubernetes.io/name"] != "fsuser-csi" {
		t.Errorf("the selector is %v", selector)
	}
}

// With other names, no object refers to a name that does not exist.
func TestNames(t *testing.T) {
	const more = ",access=cluster,networkPolicy.enabled=true,flowSchema.enabled=true," +
		"openshift.securityContextConstraint=true"
	for _, test := range []struct{ set, label, name, account string }{
		{"nameOverride=other", "other", "other", "other"},
		{"fullnameOverride=full", "fsuser-csi", "full", "full"},
		{"nameOverride=other,fullnameOverride=full,serviceAccount.name=mine", "other", "full", "mine"},
		{"serviceAccount.create=false,serviceAccount.name=mine", "fsuser-csi", "fsuser-csi", "mine"},
	} {
		set := test.set + more
		objects := template(t, "--set", set)
		var ds appsv1.DaemonSet
		objects.find(t, "DaemonSet", test.name, &ds)
		pod := ds.Spec.Template
		if ds.Spec.Selector.MatchLabels["app.kubernetes.io/name"] != test.label ||
			pod.Labels["app.kubernetes.io/name"] != test.label || pod.Spec.ServiceAccountName != test.account {
			t.Errorf("--set %s makes\n%s", set, encode(t, ds))
		}
		if got := objects.has("ServiceAccount"); got == strings.Contains(set, "create=false") {
			t.Errorf("--set %s: ServiceAccount: %v", set, got)
		}
		var roles []string
		for _, o := range objects.all {
			switch o.GetKind() {
			case "ClusterRole":
				roles = append(roles, o.GetName())
			case "ClusterRoleBinding", "RoleBinding":
				checkBinding(t, o, test.account, append(roles, "system:openshift:scc:privileged"))
			}
			if name := o.GetName(); !strings.HasSuffix(name, ".csi.io") && name != test.account &&
				!strings.HasPrefix(name, test.name) {
				t.Errorf("--set %s: %s has the name %s", set, o.GetKind(), name)
			}
		}
		subject, _, _ := unstructured.NestedSlice(objects.object(t, "FlowSchema").Object, "spec", "rules")
		if !strings.Contains(string(encode(t, subject)), `"name":"`+test.account+`"`) {
			t.Errorf("--set %s: the FlowSchema is for\n%s", set, encode(t, subject))
		}
		peers, _, _ := unstructured.NestedString(objects.object(t, "NetworkPolicy").Object, "spec", "podSelector",
			"matchLabels", "app.kubernetes.io/name")
		if peers != test.label {
			t.Errorf("--set %s: the NetworkPolicy is for %s", set, peers)
		}
	}
}

func checkBinding(t *testing.T, o *unstructured.Unstructured, account string, roles []string) {
	t.Helper()
	var b rbacv1.ClusterRoleBinding // A RoleBinding has the same fields.
	convert(t, o, &b)
	if b.Subjects[0].Name != account || !slices.Contains(roles, b.RoleRef.Name) {
		t.Errorf("%s binds %s to %s; the roles are %q", b.Name, b.RoleRef.Name, b.Subjects[0].Name, roles)
	}
}

func (o objects) object(t *testing.T, kind string) *unstructured.Unstructured {
	t.Helper()
	i := slices.IndexFunc(o.all, func(one *unstructured.Unstructured) bool { return one.GetKind() == kind })
	if i < 0 {
		t.Fatalf("there is no %s", kind)
	}
	return o.all[i]
}

func TestServiceAccount(t *testing.T) {
	var account corev1.ServiceAccount
	template(t, "--set", "serviceAccount.annotations.a=b").find(t, "ServiceAccount", "fsuser-csi", &account)
	if account.Annotations["a"] != "b" {
		t.Errorf("the annotations are %v", account.Annotations)
	}
}

func TestWithoutRBAC(t *testing.T) {
	for _, access := range []string{"node", "namespaces", "cluster"} {
		objects := template(t, "--set", "rbac.create=false,openshift.securityContextConstraint=true,access="+access)
		for _, kind := range []string{"ClusterRole", "ClusterRoleBinding", "RoleBinding"} {
			if objects.has(kind) {
				t.Errorf("access %s: there is a %s", access, kind)
			}
		}
	}
}

// If the chart can't use a value, the message names the value to set.
func TestRefusedWithTheRemedy(t *testing.T) {
	for set, remedy := range map[string]string{
		"kubeletRoot=/var/lib/k0s/kubelet":         "kubeletRoot has been renamed to kubeletRootDir",
		"verbosity=0":                              "verbosity has been renamed to logLevel",
		"maxUnavailable=1":                         "renamed to updateStrategy.rollingUpdate.maxUnavailable",
		"serviceAccount.create=false":              "needs serviceAccount.name",
		"extraArgs={--max-node-bytes=5}":           "set limits.maxNodeBytes instead",
		"extraArgs={--seccomp=false,--pod-share=}": "set limits.podShare instead",
		"metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true": "Set one to false",
	} {
		if _, err := Template(t.Context(), ".", "--set", set); err == nil || !strings.Contains(err.Error(), remedy) {
			t.Errorf("--set %s: error %v, want %q", set, err, remedy)
		}
	}
}
