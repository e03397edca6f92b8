// SPDX-License-Identifier: Apache-2.0

package e2e

import "k8s.io/apimachinery/pkg/util/version"

// NotInVersion is the beginning of the reason for skipping a test because the cluster's Kubernetes lacks a feature. In
// a cluster of the tests' own, no test is skipped for another reason.
const NotInVersion = "not in this version of Kubernetes: "

// The features that Kubernetes lacks before 1.36.
const (
	MutatingPolicies         = "MutatingAdmissionPolicy v1"
	ConstrainedImpersonation = "constrained impersonation"
)

// Before136 reports whether a version of Kubernetes lacks mutating policies v1 and constrained impersonation.
func Before136(v *version.Version) bool { return v.LessThan(version.MustParseGeneric("1.36")) }

// Access returns the kinds of access that a version of Kubernetes allows, the default of the tests first.
func Access(v *version.Version) []string {
	if Before136(v) {
		return []string{"namespaces", "cluster"}
	}
	return []string{"node", "namespaces", "cluster"}
}
