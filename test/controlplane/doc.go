// SPDX-License-Identifier: Apache-2.0

// Package controlplane starts a real kube-apiserver and etcd for tests, on free
// ports of 127.0.0.1, with their files in a temporary directory. Package tools
// provides the binaries: run `make control-plane` once.
//
// The control plane has RBAC, the Node authorizer with NodeRestriction, TLS,
// client certificates, service account tokens and watches. It has no controller
// manager, scheduler or node. So no namespace gets its `default` service
// account, and the API server refuses pods in a namespace until a test creates
// that account. There is no garbage collection, and no pod runs. The addresses
// of the `kubernetes` service are published only if Options.Advertise names
// one, because a loopback address is not valid there. Package cluster adds all
// of this.
//
//	cp, err := controlplane.Start(ctx, controlplane.Options{})
//	...
//	defer cp.Stop()
//	cfg, err := cp.UserConfig("system:serviceaccount:kube-system:fsuser-csi")
//	...
//	err = cp.Kubeconfig(filepath.Join(dir, "kubeconfig"), cfg)
//
// A [ControlPlane] runs until Stop. The kernel also kills its two processes
// when the process that started them dies. The data may not survive a crash of
// the machine. Every user of the machine can access this etcd.
package controlplane
