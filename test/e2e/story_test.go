// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import "testing"

// TestE2E is one story, since a start takes a while: what goes on beside each other first, then what takes the driver or kubelet away, then
// what installs it anew. Each part can also be run alone: -run TestE2E/volumes.
func TestE2E(t *testing.T) {
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"volumes", testVolumes},
		{"compared with Kubernetes", testCompare},
		{"the driver is away", testDriverAway},
		{"a hundred pods", testManyPods},
		{"access", testAccess},
		{"uninstall", testUninstall},
		{"helm", testHelm},
	} {
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
		{"the Secret comes after the pod", testSecretAfterPod},
		{"a ConfigMap", testConfigMap},
		{"items", testItems},
		{"optional", testOptional},
		{"nodePublishSecretRef", testNodePublishSecretRef},
		{"the owner is runAsUser", testOwnerFromPod},
		{"two users in one pod", testTwoUsers},
		{"hostUsers false", testUserNamespace},
		{"fsGroup", testFSGroup},
		{"a restricted namespace", testRestricted},
		{"what is wrong is said", testRefused},
		{"a failed refresh is told", testTold},
		{"the driver keeps only the power that it needs", testLeastPower},
	} {
		t.Run(test.name, test.run)
	}
}
