// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

// containers are the groups of specs that are about the volumes that the policy rewrites. Each has to have one, at least.
var containers = []string{
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

// skipped matches specs of these groups that are about none of them.
const skipped = `\[sig-storage\] EmptyDir wrapper volumes .* git_repo`

// An outcome is what has to come of a spec.
type outcome int

const (
	// rewritten: it passes, its pods have only volumes of the driver, and run. What comes of every spec that is not listed.
	rewritten outcome = iota
	// refused: it passes, and what it waits for is that the driver refuses a volume.
	refused
	// noVolume: it passes, and has no pod.
	noVolume
	// notRewritten: the policy leaves its volume alone, for which the run refuses its pod.
	notRewritten
)

// expectation is that of specs with another outcome than rewritten.
type expectation struct {
	outcome outcome
	// words are in a warning about each of its pods, the driver's (refused); or in the policy's, when the pod is made (notRewritten).
	words  string
	reason string   // for people
	specs  []string // as name returns them
}

var expectations = []expectation{
	{noVolume, "", "a test of the API alone", []string{
		"[sig-storage] ConfigMap should be immutable if `immutable` field is set",
		"[sig-storage] Secrets should be immutable if `immutable` field is set",
	}},
	{refused, `code = NotFound desc = ConfigMap "`, "the driver waits for the ConfigMap, and says that it is missing", []string{
		"[sig-storage] ConfigMap Should fail non-optional pod creation due to configMap object does not exist",
		"[sig-storage] Ephemeralstorage When pod refers to non-existent ephemeral storage should allow deletion of pod with invalid volume : configmap",
		"[sig-storage] Projected configMap Should fail non-optional pod creation due to configMap object does not exist",
	}},
	{refused, `code = NotFound desc = Secret "`, "the driver waits for the Secret, and says that it is missing", []string{
		"[sig-storage] Ephemeralstorage When pod refers to non-existent ephemeral storage should allow deletion of pod with invalid volume : projected",
		"[sig-storage] Ephemeralstorage When pod refers to non-existent ephemeral storage should allow deletion of pod with invalid volume : secret",
		"[sig-storage] Projected secret Should fail non-optional pod creation due to secret object does not exist",
		"[sig-storage] Secrets Should fail non-optional pod creation due to secret object does not exist",
	}},
	{refused, `has no key "data-4"`, "the driver waits for the key, and says that it is missing", []string{
		"[sig-storage] ConfigMap Should fail non-optional pod creation due to the key in the configMap object does not exist",
		"[sig-storage] Projected configMap Should fail non-optional pod creation due to the key in the configMap object does not exist",
	}},
	{notRewritten, "the driver does not take the path of an item",
		"The path of an item ends with a newline, and the driver takes no control characters. The same test of ConfigMaps has another path, and passes.", []string{
			"[sig-storage] Projected secret Should fail non-optional pod creation due to the key in the secret object does not exist",
			"[sig-storage] Secrets Should fail non-optional pod creation due to the key in the secret object does not exist",
		}},
	// Their pods tell limits whatever else they are about, and have none.
	{notRewritten, "a limit that the container does not set",
		"The volume tells a limit that the container does not set. In its place Kubernetes tells what the node has, which the pod does not show.", []string{
			"[sig-storage] Downward API volume should provide node allocatable (cpu) as default cpu limit if the limit is not set",
			"[sig-storage] Downward API volume should provide node allocatable (memory) as default memory limit if the limit is not set",
			"[sig-storage] Downward API volume should provide podname as non-root with fsgroup",
			"[sig-storage] Downward API volume should provide podname as non-root with fsgroup and defaultMode",
			"[sig-storage] Downward API volume should provide podname only",
			"[sig-storage] Downward API volume should set DefaultMode on files",
			"[sig-storage] Downward API volume should set DefaultUser on files",
			"[sig-storage] Downward API volume should set mode on item file",
			"[sig-storage] Downward API volume should set user on item file",
			"[sig-storage] Downward API volume should update annotations on modification",
			"[sig-storage] Downward API volume should update labels on modification",
			"[sig-storage] Projected downwardAPI should provide node allocatable (cpu) as default cpu limit if the limit is not set",
			"[sig-storage] Projected downwardAPI should provide node allocatable (memory) as default memory limit if the limit is not set",
			"[sig-storage] Projected downwardAPI should provide podname as non-root with fsgroup",
			"[sig-storage] Projected downwardAPI should provide podname as non-root with fsgroup and defaultMode",
			"[sig-storage] Projected downwardAPI should provide podname only",
			"[sig-storage] Projected downwardAPI should set DefaultMode on files",
			"[sig-storage] Projected downwardAPI should set DefaultUser on files",
			"[sig-storage] Projected downwardAPI should set mode on item file",
			"[sig-storage] Projected downwardAPI should set user on item file",
			"[sig-storage] Projected downwardAPI should update annotations on modification",
			"[sig-storage] Projected downwardAPI should update labels on modification",
		}},
}
