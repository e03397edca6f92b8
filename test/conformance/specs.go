// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import "regexp"

// groups are the groups of specs about the volumes that the fs-user policy moves. Each has at least one spec.
func groups() []string {
	return []string{
		"[sig-storage] Secrets",
		"[sig-storage] ConfigMap",
		"[sig-storage] Projected secret",
		"[sig-storage] Projected configMap",
		"[sig-storage] Projected combined",
		"[sig-storage] Projected downwardAPI",
		"[sig-storage] Downward API volume",
		"[sig-storage] Subpath Atomic writer volumes",
		"[sig-storage] Subpath Container restart",
		"[sig-storage] EmptyDir wrapper volumes",
		"[sig-storage] Ephemeralstorage",
	}
}

// externalStorage is the group of Kubernetes' specs for CSI drivers, with the driver in testDriver.
const externalStorage = "External Storage [Driver: fsuser.csi.io]"

// testDriver describes the driver to the external-storage suite. The path is relative to the repository.
const testDriver = "test/conformance/testdriver.yaml"

// notApplicable matches the specs of the groups whose volumes this driver does not support: git repositories, writable
// volumes, PersistentVolumeClaims.
const notApplicable = `EmptyDir wrapper volumes .* git_repo|read/write inline ephemeral volume|expansion of pvcs`

// outcome is what a spec must show in addition to passing.
type outcome int

const (
	// published means that the spec has pods, that all their volumes are of the driver, and that all pods run.
	published outcome = iota
	// missing means that the spec has pods, that all their volumes are of the driver, and that no pod runs, because an
	// object or a key is missing.
	missing
	// noPod means that the spec has no pod.
	noPod
)

var (
	missingSpecs = regexp.MustCompile(`Should fail non-optional pod creation|pod refers to non-existent`)
	noPodSpecs   = regexp.MustCompile(`should be immutable`)
)

func outcomeOf(spec string) outcome {
	switch {
	case missingSpecs.MatchString(spec):
		return missing
	case noPodSpecs.MatchString(spec):
		return noPod
	}
	return published
}
