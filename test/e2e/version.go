// SPDX-License-Identifier: Apache-2.0

package e2e

import "k8s.io/apimachinery/pkg/util/version"

// NotInVersion begins the reason with which a test is skipped because the cluster's Kubernetes lacks a feature. No test
// is skipped for another reason in a cluster of the tests' own.
const NotInVersion = "not in this version of Kubernetes: "

// What Kubernetes lacks before 1.36.
const (
	MutatingPolicies         = "MutatingAdmissionPolicy v1"
	ConstrainedImpersonation = "constrained impersonation"
)

// Before136 says whether a version of Kubernetes lacks mutating policies v1 and constrained impersonation.
func Before136(v *version.Version) bool { return v.LessThan(version.MustParseGeneric("1.36")) }

// Access returns the kinds of access that a version of Kubernetes allows, the default of the tests first.
func Access(v *version.Version) []string {
	if Before136(v) {
		return []string{"namespaces", "cluster"}
	}
	return []string{"node", "namespaces", "cluster"}
}
