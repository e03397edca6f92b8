// SPDX-License-Identifier: Apache-2.0

// Package controlplane starts a real kube-apiserver and etcd for tests, on
// 127.0.0.1 with free ports and their files in a temporary folder. The
// binaries are those of package tools: run `make control-plane` once.
//
// It is real where the driver could notice: RBAC and the Node authorizer with
// NodeRestriction, TLS, client certificates, service account tokens, watches.
// What it has not: a controller manager, scheduler or node. So no namespace
// gets its `default` service account, and until a test makes that the API
// server refuses pods in it; nothing is garbage collected, no pod runs. The
// addresses of the `kubernetes` service are not published unless
// Options.Advertise names one, since a loopback address is not a valid one.
// Package cluster adds all that to it.
//
//	cp, err := controlplane.Start(ctx, controlplane.Options{})
//	...
//	defer cp.Stop()
//	cfg, err := cp.UserConfig("system:serviceaccount:kube-system:fsuser-csi")
//	...
//	err = cp.Kubeconfig(filepath.Join(dir, "kubeconfig"), cfg)
//
// A [ControlPlane] lives until Stop. Its two processes also die, by the
// kernel's hand, with the process that started them. Data is not made to
// survive a crash of the machine. This is a fixture: anyone on the machine can
// talk to its etcd.
package controlplane
