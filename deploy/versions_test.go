// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

// The policies compile and work on an API server of each supported version. Mutating policies require 1.36.
func TestKubernetesVersions(t *testing.T) {
	for version, mutates := range map[string]bool{"1.35": false, "1.36": true, "1.37": true} {
		t.Run(version, func(t *testing.T) {
			c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--emulated-version=" + version}})
			set := "namespace.create=true,allow.enabled=true,allow.uids={1000}"
			if mutates {
				set += ",access=node,fsUser.enabled=true"
			} else {
				set += ",access=namespaces"
			}
			c.create(t, template(t, "--kube-version", version+".0", "--set", set))
			podOf := func(attributes ...string) *corev1.Pod {
				return podWith("p", secretVolume("s", "s"), driverVolume("v", attributes...))
			}
			c.mayNot(t, podOf("volume", "s", "uid", "x"), `volumeAttributes[uid]: Invalid value: "x"`)
			c.mayNot(t, podOf("volume", "missing", "uid", "1000"), "the pod has no volume of this name")
			c.mayNot(t, podOf("volume", "s", "uid", "2000"), "uid 2000 is not allowed here")
			pod := podOf("volume", "s", "uid", "1000")
			if _, err := c.dryRunPod(t, pod); err != nil {
				t.Error(err)
			}
			if !mutates {
				return
			}
			pod = annotated("1000", secretVolume("s", "s"), readOnly(driverVolume("v", "secretName", "a", "uid", "1000"), nil))
			eventually(t, func() error {
				got, err := c.dryRunPod(t, pod)
				if err == nil && len(got.Spec.Volumes) != 4 {
					err = fmt.Errorf("volumes are %s", encode(t, got.Spec.Volumes))
				}
				return err
			})
		})
	}
}
