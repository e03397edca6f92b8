// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command conformance runs Kubernetes' own tests of Secret, ConfigMap, downward API and projected volumes, from its e2e.test, with every
// volume of theirs rewritten to this driver. The cluster has the driver and its policy fs-user.fsuser.csi.io as users install them;
// policies.yaml annotates the namespaces of the tests, and refuses each pod that still mounts a volume of Kubernetes itself.
//
//	make conformance                               # builds e2e.test, too; writes docs/conformance.md
//	go run ./test/conformance -run 'Projected secret' -keep # some, in a cluster that stays; writes nothing
//	go run ./test/conformance -in-tree             # without the driver: what Kubernetes does by itself
//
// Each spec passes with volumes of the driver alone, or stands in specs.go with what happens in its place, and why. Anything else fails
// the run: one that fails or is skipped, one that passes though it should not, one of the list that does not exist.
package main
