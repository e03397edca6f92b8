// SPDX-License-Identifier: Apache-2.0

// Package torture kills, races and soaks the driver: its real binary, the real kernel, a real kube-apiserver and etcd. Kubelet alone is
// played, by its rules. Readers look at the volumes all the time.
//
// Without FSUSER_TORTURE in the environment each test makes a few rounds, as a part of "make test"; "make torture" has them make all.
package torture
