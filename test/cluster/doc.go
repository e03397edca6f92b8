// SPDX-License-Identifier: Apache-2.0

// Package cluster starts a real Kubernetes for tests: etcd, API server,
// scheduler, controller manager, kube-proxy, containerd and kubelet, compiled
// from Go modules, in mount, network, PID, IPC and UTS namespaces of its own. It
// needs Linux and root. The cluster has one node or several.
//
//	c, err := cluster.Up(ctx, cluster.Options{Progress: os.Stderr})
//	...
//	defer c.Down(context.Background())
//	err = c.Import(ctx, "driver.tar")
//	...
//	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
//
// The kubeconfig is good on the machine, so tests stay outside; what has to
// happen inside, in the mount namespace of kubelet for instance, is run by
// [Cluster.Command]. [Node] does that on one of several nodes, cuts the node off
// from the others, and powers it off.
//
// All that the cluster writes is below its run folder. It ends with Down, or
// with the process that called Up, however that ends, unless that asked for a
// cluster that outlives it. See package supervisor for how nothing stays behind.
//
// What it has not: a way out to other networks, a DNS server, an image registry
// (package images makes images).
package cluster
