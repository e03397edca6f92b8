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

// expectation is that of a spec with another outcome than rewritten.
type expectation struct {
	spec    string // as name returns it
	outcome outcome
	// words are in an event of each of its pods (refused), or in the failure of the spec (notRewritten).
	words  string
	reason string // for people
}

var expectations = []expectation{}
