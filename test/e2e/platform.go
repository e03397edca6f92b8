// SPDX-License-Identifier: Apache-2.0

package e2e

import "github.com/fsuser-csi/fsuser-csi/test/controlplane"

// Platform is a platform of docs/platforms.md with a command, and how to set up a cluster like the platform.
type Platform struct {
	// Name is the heading of the platform's section.
	Name string
	// Component is the folder of the platform's component in deploy/kustomize. Empty: the platform has none.
	Component string
	// Setup is a manifest that the cluster has before the driver. Empty: none.
	Setup string
	// Check is a command that succeeds while the driver is installed. Empty: none.
	Check string
	// KubeletRoot is kubelet's root directory. Empty: the default.
	KubeletRoot string
	// Admission is a configuration of the API server's admission plugins. Empty: the default.
	Admission string
}

// podSecurity enforces the level baseline in all namespaces without a level of their own.
const podSecurity = `
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline, enforce-version: latest}
    exemptions: {namespaces: [kube-system]}
`

// privilegedConstraint is OpenShift's resource of SecurityContextConstraints, and its ClusterRole for the constraint
// privileged.
const privilegedConstraint = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: securitycontextconstraints.security.openshift.io}
spec:
  group: security.openshift.io
  names: {plural: securitycontextconstraints, singular: securitycontextconstraints, kind: SecurityContextConstraints}
  scope: Cluster
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:openshift:scc:privileged"}
rules:
- apiGroups: [security.openshift.io]
  resources: [securitycontextconstraints]
  resourceNames: [privileged]
  verbs: [use]
`

// Platforms returns the platforms whose commands TestPlatform runs. The nodes have no SELinux: make vm has such nodes.
func Platforms() []Platform {
	return []Platform{
		{
			Name: "GKE Standard", Component: "gke", Admission: controlplane.LimitSystemClasses,
			Check: "kubectl -n fsuser-csi get resourcequota fsuser-csi",
		},
		{
			Name: "OpenShift", Component: "openshift", Setup: privilegedConstraint,
			Check: "kubectl auth can-i use securitycontextconstraints.security.openshift.io/privileged -n fsuser-csi " +
				"--as=system:serviceaccount:fsuser-csi:fsuser-csi",
		},
		{Name: "EKS"},
		{Name: "k0s", Component: "k0s", KubeletRoot: "/var/lib/k0s/kubelet"},
		{Name: "MicroK8s", Component: "microk8s", KubeletRoot: "/var/snap/microk8s/common/var/lib/kubelet"},
		{Name: "Talos", Admission: podSecurity},
		{Name: "Bottlerocket"},
	}
}

// InstallPage is the name of the part of TestE2E that runs the commands of deploy/README.md.
const InstallPage = "the commands of the installation page"
