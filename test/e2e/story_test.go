// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import "testing"

// TestE2E is one test, because a cluster takes a while to start. Parts that run in parallel come first, then parts that
// stop the driver or kubelet, then parts that install the driver again. Each part can run alone: -run TestE2E/volumes.
// Parts that test every kind of access themselves, or that do not depend on the access, run only with the version's
// first kind of access.
func TestE2E(t *testing.T) {
	if len(nodes) < 2 {
		t.Log("The tests of several nodes are not part of this run. They take a cluster of the tests' own: make e2e NODES=3")
	}
	if err := install(suite, installedFirst); err != nil {
		t.Fatal(err)
	}
	if len(nodes) == 0 {
		t.Log("The commands of deploy/README.md are not part of this run. They take a cluster of the tests' own: make e2e")
	}
	first, own := installedFirst == manifests()[0], len(nodes) > 0
	for _, part := range []struct {
		name string
		run  func(*testing.T)
		runs bool
	}{
		{"volumes", testVolumes, true},
		{"compared with Kubernetes", testCompare, true},
		{"the driver is away", testDriverAway, true},
		{"the tutorial", testTutorial, first && !before136()},
		{"a hundred pods", testManyPods, first},
		{"access", testAccess, first},
		{"several nodes", testNodes, first && len(nodes) > 1},
		{InstallPage, testInstallPage, first && own},
	} {
		if part.runs && !t.Run(part.name, part.run) && suite.Err() != nil {
			t.Fatal("interrupted")
		}
	}
}

func testVolumes(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		// testLatency is the first, because kubelet takes up to 90 s to refresh the volume for comparison.
		{"a change is seen in milliseconds", testLatency},
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
		{"a program learns of a change", testReload},
		{"a file mounted by subPath", testSubPath},
		{"a failed refresh is told", testTold},
		{"kubectl fsuser status", testKubectlStatus},
		{"the driver keeps only the power that it needs", testLeastPower},
	} {
		t.Run(test.name, test.run)
	}
}
