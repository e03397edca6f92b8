// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import "testing"

type part struct {
	name string
	run  func(*testing.T)
	once bool // not with another kind of access than the first
}

// TestE2E is one test, because a cluster takes a while to start. Parts that run in parallel come first, then parts that
// stop the driver or kubelet, then parts that install the driver again. Each part can run alone: -run TestE2E/volumes.
// With another kind of access than the version's first, the parts do not run that go through every kind of access
// themselves, or do not depend on the access.
func TestE2E(t *testing.T) {
	severalNodes := part{"several nodes", testNodes, true}
	if len(nodes) < 2 {
		t.Log("The tests of several nodes are not part of this run. They take a cluster of the tests' own: make e2e NODES=3")
		severalNodes.run = nil
	}
	for _, part := range []part{
		{"volumes", testVolumes, false},
		{"compared with Kubernetes", testCompare, false},
		{"the driver is away", testDriverAway, false},
		{"a hundred pods", testManyPods, true},
		{"access", testAccess, true},
		severalNodes,
		{"uninstall", testUninstall, true},
		{"helm", testHelm, true},
	} {
		if part.run == nil || part.once && installedFirst != manifests()[0] {
			continue
		}
		if !t.Run(part.name, part.run) && suite.Err() != nil {
			t.Fatal("interrupted")
		}
	}
}

func testVolumes(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"a change is seen in milliseconds", testLatency}, // first: kubelet takes up to 90 s for the volume it is compared with
		{"README's example", testREADME},
		{"README's example in a Deployment", testDeployment},
		{"README's example of a described volume", testREADMEVolume},
		{"the Secret comes after the pod", testSecretAfterPod},
		{"a ConfigMap", testConfigMap},
		{"items", testItems},
		{"several objects", testProjected},
		{"optional", testOptional},
		{"nodePublishSecretRef", testNodePublishSecretRef},
		{"the owner is runAsUser", testOwnerFromPod},
		{"a sidecar", testSidecar},
		{"two users in one pod", testTwoUsers},
		{"hostUsers false", testUserNamespace},
		{"fsGroup", testFSGroup},
		{"a restricted namespace", testRestricted},
		{"what is wrong is said", testRefused},
		{"a failed refresh is told", testTold},
		{"kubectl fsuser status", testKubectlStatus},
		{"the driver keeps only the power that it needs", testLeastPower},
	} {
		t.Run(test.name, test.run)
	}
}
