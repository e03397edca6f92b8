// SPDX-License-Identifier: Apache-2.0

// Package torture kills the driver, races its calls and soaks it: its real binary, the real kernel, a real
// kube-apiserver and etcd. Only kubelet is simulated, with its rules. Meanwhile a process holds the directory of a
// volume, the API server answers from an old cache, or an object is updated without end. Readers read the volumes all
// the time.
//
// Without FSUSER_TORTURE in the environment, each test makes a few rounds, as a part of "make test". In "make torture",
// each test makes all rounds. TestDay, with the build tag soak, is "make soak".
package torture
